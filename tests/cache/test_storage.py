"""Keys and values in fp8: the error is bounded, and moving rows does not change them."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from tiny_inputs import frames

from streamingvlm.cache.kv_cache import KVPool, bytes_per_token, rotate
from streamingvlm.cache.storage import Fp8Storage, PlainStorage, storage_named
from streamingvlm.config import CacheConfig
from streamingvlm.errors import ConfigError
from streamingvlm.inference.engine import Engine
from streamingvlm.inference.session import StreamingSession
from streamingvlm.model.loading import load_model

SIZE = 16
# float8_e4m3fn has three bits after the point, and a row's scale is rounded to the dtype of the model.
HALF_STEP = 2.0**-4
VIDEO = {"fps": 2.0, "min_pixels": 1, "max_pixels": 84 * 84}
GREEDY = {"temperature": 0.0, "repetition_penalty": 1.0, "max_new_tokens": 4}
SMALL = {"text_sink_tokens": 8, "text_window_tokens": 8, "vision_window_s": 3.0, "turn_window_s": 3.0}


@pytest.fixture(scope="module")
def model(tiny_checkpoint):
    return load_model(tiny_checkpoint(), device="cpu")


@given(
    row=st.lists(st.floats(-1e4, 1e4, width=32), min_size=SIZE, max_size=SIZE),
    dtype=st.sampled_from([torch.float32, torch.bfloat16]),
)
def test_the_error_is_at_most_half_a_step_of_the_number_or_of_the_smallest_of_its_row(row, dtype):
    x = torch.tensor([row]).to(dtype)
    storage = Fp8Storage(SIZE, dtype)
    kept = storage.encode(x)
    assert kept.dtype == torch.uint8 and kept.shape == (1, SIZE + 4)
    back = storage.decode(kept)
    assert back.dtype == dtype
    smallest_step = x.abs().max().float() / 448 * 2.0**-9
    bound = (HALF_STEP * x.abs().float() + smallest_step) * 1.02 + 1e-30
    assert ((back.float() - x.float()).abs() <= bound).all()


def test_rows_are_independent_of_each_other():
    storage = Fp8Storage(SIZE, torch.float32)
    small, large = torch.full((1, SIZE), 1e-3), torch.full((1, SIZE), 1e3)
    both = storage.decode(storage.encode(torch.cat((small, large))))
    assert torch.allclose(both[0], small[0], rtol=1e-3) and torch.allclose(both[1], large[0], rtol=1e-3)


def test_moving_a_stream_does_not_change_its_rows():
    pool = KVPool(2, 2, SIZE, 20, torch.float32, torch.device("cpu"), cache_dtype="fp8", is_elastic=True)
    first, second = pool.open(8), pool.open(8)
    keys = torch.randn(5, 2, SIZE)
    rows = torch.arange(second.extent.start, second.extent.start + 5)
    for layer in range(2):
        pool.write_(layer, rows, keys, keys, keys)
    second.num_tokens = 5
    before = second.keys[:, :, :5].clone()
    first.close()
    second.gather_([range(1), range(2, 4)])
    second.reserve_(40)
    assert torch.equal(second.keys[:, :, :3], before[:, :, [0, 2, 3]])


def test_rotation_applies_to_the_stored_keys():
    pool = KVPool(1, 1, SIZE, 8, torch.float32, torch.device("cpu"), cache_dtype="fp8")
    cache = pool.open(8)
    keys = torch.randn(4, 1, SIZE)
    pool.write_(0, torch.arange(cache.extent.start, cache.extent.start + 4), keys, keys, keys)
    cache.num_tokens = 4
    angles = torch.randn(4, SIZE // 2).repeat(1, 2)
    cache.rotate_(angles.cos(), angles.sin())
    decode = pool.storage.decode
    expected = rotate(decode(cache.keys[0, 0, :4]), angles.cos(), angles.sin())
    rotated = decode(cache.rotated[0, 0, :4])
    assert (rotated - expected).abs().max() <= HALF_STEP * expected.abs().max()


def test_an_fp8_stream_is_close_to_the_plain_one_in_less_memory(model):
    layouts, states = {}, {}
    for dtype in (None, "fp8"):
        session = StreamingSession(model, cache={**SMALL, "dtype": dtype}, video=VIDEO, sampling=GREEDY)
        for turn in range(3):
            session.step(frames(turn), max_new_tokens=1)
        decode = session.engine.runner.pool.storage.decode
        layouts[dtype] = session.layout
        states[dtype] = decode(session.inspect().values)
    assert layouts[None] == layouts["fp8"]
    error = (states["fp8"] - states[None]).abs().max() / states[None].abs().max()
    assert 0 < error < 2 * HALF_STEP
    text = model.text_model.config
    assert bytes_per_token(text, torch.float32) == 3 * 2 * 2 * 16 * 4
    assert bytes_per_token(text, torch.float32, "fp8") == 3 * 2 * 2 * (16 + 4)


def test_an_fp8_engine_opens_streams_without_a_dtype(model):
    engine = Engine(model, num_slots=2, cache_dtype="fp8")
    opened = StreamingSession(engine.model, engine=engine, cache=SMALL, video=VIDEO, sampling=GREEDY)
    assert opened.inspect().keys.dtype == torch.uint8
    assert opened.step(frames(0)).num_tokens > 0
    with pytest.raises(ConfigError, match=r"cache\.dtype=fp8 is not that of the engine"):
        StreamingSession(model, engine=Engine(model, num_slots=1), cache={**SMALL, "dtype": "fp8"}, video=VIDEO)


def test_an_unknown_dtype_is_refused():
    with pytest.raises(ConfigError, match=r"cache\.dtype=int2"):
        CacheConfig(dtype="int2")
    assert isinstance(storage_named(None, SIZE, torch.float32), PlainStorage)
