"""Chunks of prepared data become the examples that match a stream, with a length known in advance."""

import pickle
import tracemalloc

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from prepared_pitch import write_prepared

from streamingvlm.config import VideoConfig
from streamingvlm.data.chunks import CachedTokenizer, previous_ids
from streamingvlm.data.prepared import PreparedData
from streamingvlm.errors import ConfigError, DataError
from streamingvlm.model.family import FAMILIES
from streamingvlm.model.loading import load_model
from streamingvlm.pitch.tokenizer import build_tokenizer
from streamingvlm.training.collate import Collate, EncodeVision, model_inputs, with_pixels
from streamingvlm.training.feature_store import FeatureStore
from streamingvlm.training.prepared_chunks import ChunkDataset, ChunkSettings, check_videos_exist, drop_middle_lines
from streamingvlm.training.sft_model import SFTModel
from streamingvlm.training.vision_cache import CachedVision, VisionReader
from streamingvlm.turns import TurnFormat

SMALL = {"min_pixels": 56 * 56, "max_pixels": 84 * 84}


@pytest.fixture(scope="module")
def prepared(tmp_path_factory):
    folder = tmp_path_factory.mktemp("data")
    return PreparedData.open(write_prepared(folder, num_matches=2, duration_s=12), cache_folder=folder / "cache")


def dataset_of(model, prepared, *, train_vision=False, split="train", settings=None, max_chunks=None, **video):
    """Return the chunks of a model and the batch transform that adds their vision."""
    config = VideoConfig(**SMALL | video)
    tower = model.hf.model.visual.requires_grad_(train_vision)
    turns = TurnFormat.of(CachedTokenizer(model.tokenizer), model.family, config)
    store = FeatureStore(None, max_bytes=0)
    if train_vision:
        known = {"family": model.family, "tower_digest": "", "dtype": tower.dtype}
        reader, batch_transform = (
            VisionReader(store, video=config, video_root=prepared.video_root, **known),
            with_pixels,
        )
    else:
        vision = CachedVision(tower, model.family, config, store, video_root=prepared.video_root)
        reader, batch_transform = vision.reader, EncodeVision(vision.encode)
    shown = {"family": model.family, "video": config, "split": split, "max_chunks": max_chunks}
    return ChunkDataset(prepared, turns, reader, settings, **shown), batch_transform


@pytest.mark.parametrize("model_type", FAMILIES)
@pytest.mark.parametrize("video", [{}, {"resize": "qwen_vl_utils", "max_pixels": 60 * 90}, {"fps": 4.0}], ids=str)
def test_the_length_is_known_before_a_frame_is_decoded(tiny_checkpoint, prepared, model_type, video):
    dataset, _ = dataset_of(load_model(tiny_checkpoint(model_type), device="cpu"), prepared, **video)
    assert len(dataset) == 2
    for index in range(len(dataset)):
        assert dataset.length(index) == len(dataset[index].input_ids)


def test_an_example_longer_than_a_pack_is_named_in_advance(tiny_checkpoint, prepared):
    dataset, _ = dataset_of(load_model(tiny_checkpoint(), device="cpu"), prepared)
    longest = max(range(len(dataset)), key=dataset.length)
    dataset.check_fits(dataset.length(longest))
    with pytest.raises(ConfigError, match=f"{dataset.name(longest)} is an example of {dataset.length(longest)} tokens"):
        dataset.check_fits(dataset.length(longest) - 1)


def test_earlier_text_and_the_query_are_in_the_example(tiny_checkpoint, prepared):
    dataset, _ = dataset_of(load_model(tiny_checkpoint(), device="cpu"), prepared, split="held_out")
    recording = prepared.recordings[1]
    text = dataset.turn_format.tokenizer.decode(dataset[1].input_ids.tolist())
    before = " ".join(line for line in recording["lines"][:4] if line)
    assert f"{recording['previous_text']} {before}<|im_end|>" in text
    assert text.count("Say what happens.") == 1
    assert [f"Time={turn}.0-{turn + 1}.0s" in text for turn in (3, 4, 11)] == [False, True, True]
    labels = dataset[1].labels
    said = dataset.turn_format.tokenizer.decode(labels[labels >= 0].tolist()).split("<|im_end|>")
    assert [reply.removesuffix(" ...").strip() for reply in said[:-1]] == recording["lines"][4:12]
    assert dataset.name(1) == "1.mp4 at 4 s"


def test_earlier_text_can_be_left_out(tiny_checkpoint, prepared):
    model = load_model(tiny_checkpoint(), device="cpu")
    dataset, _ = dataset_of(model, prepared, settings=ChunkSettings(has_previous_text=False))
    assert "previous text\n<|im_end|>" in model.tokenizer.decode(dataset[1].input_ids)
    with pytest.raises(ConfigError, match="text_sink_tokens=-1"):
        ChunkSettings(text_sink_tokens=-1)


# One for all examples: creating it takes longer than using it.
TURNS = TurnFormat(CachedTokenizer(build_tokenizer()), temporal_step=2.0)


@given(
    lines=st.lists(st.sampled_from(["", "shot", "pass by red", "goal for red! it is 1-0"]), max_size=30),
    intro=st.sampled_from(["", "Rovers in red, City in blue."]),
    sink=st.integers(0, 20),
    window=st.integers(0, 20),
    step=st.integers(1, 24),
)
def test_dropping_middle_lines_does_not_change_the_previous_text(lines, intro, sink, window, step):
    lengths = np.array([len(TURNS.speech_ids(line)) for line in lines], dtype=np.int32)
    kept = {"sink_tokens": sink, "window_tokens": window}
    short, num_dropped = drop_middle_lines(lines, lengths, **kept)
    kept["step_tokens"] = step
    expected = previous_ids(TURNS, intro, lines, **kept)
    assert previous_ids(TURNS, intro, short, num_left_out=num_dropped, **kept) == expected
    assert len(short) <= len(lines)


def test_hours_of_text_become_few_lines():
    lines = ["pass by red"] * 7200
    short, num_dropped = drop_middle_lines(lines, np.full(7200, 3), sink_tokens=512, window_tokens=512)
    assert (len(short), num_dropped) == (2 * 171, 3 * (7200 - 2 * 171))


@pytest.mark.parametrize("model_type", FAMILIES)
@pytest.mark.parametrize("packed", [False, True])
def test_a_trained_tower_gives_the_losses_of_a_frozen_one(tiny_checkpoint, prepared, model_type, packed):
    """The same losses from pixels as from features, and gradients in the whole tower."""
    losses = []
    for train_vision in (False, True):
        model = load_model(tiny_checkpoint(model_type), device="cpu")
        dataset, batch_transform = dataset_of(model, prepared, train_vision=train_vision)
        module = SFTModel(model.hf, train_vision=train_vision)
        batch = batch_transform(Collate(0, packed=packed)([dataset[0], dataset[1]]))
        losses.append(module(**model_inputs(batch))["losses"])
    torch.testing.assert_close(*losses, atol=1e-5, rtol=1e-5)
    losses[1].sum().backward()
    assert all(weights.grad is not None for weights in model.hf.model.visual.parameters())


def test_held_out_chunks_are_few_and_spread(tiny_checkpoint, prepared):
    model = load_model(tiny_checkpoint(), device="cpu")
    assert dataset_of(model, prepared, max_chunks=5)[0].rows.tolist() == [0, 1]
    assert dataset_of(model, prepared, split="held_out", max_chunks=1)[0].rows.tolist() == [2]


def test_data_that_does_not_fit_is_refused(tiny_checkpoint, prepared, tmp_path):
    model = load_model(tiny_checkpoint(), device="cpu")
    with pytest.raises(DataError, match="no chunk of the split validation"):
        dataset_of(model, prepared, split="validation")
    with pytest.raises(DataError, match="turns of 1 s"):
        dataset_of(model, prepared, turn_s=2.0)
    with pytest.raises(DataError, match=r"2 of 2 videos are not in .*0\.mp4, 1\.mp4\); put them there"):
        check_videos_exist(prepared, tmp_path)
    check_videos_exist(prepared, prepared.video_root)


def test_few_missing_videos_are_named_and_their_chunks_skipped(tmp_path, caplog):
    prepared = PreparedData.open(write_prepared(tmp_path / "data", num_matches=2, duration_s=8))
    (prepared.video_root / "1.mp4").unlink()
    check_videos_exist(prepared, prepared.video_root, 0.5)
    assert "1 of 2 videos are not in" in caplog.text and "(1.mp4); their 1 of 2 chunks are skipped" in caplog.text
    with pytest.raises(DataError, match=r"1 of 2 videos are not in .*1\.mp4"):
        check_videos_exist(prepared, prepared.video_root, 0.4)


def test_memory_does_not_grow_with_the_previous_texts_seen():
    turns = TurnFormat(CachedTokenizer(build_tokenizer()), temporal_step=2.0)
    tracemalloc.start()
    sizes = []
    for number in range(120):
        turns.encode_plain(f"example {number} " + "said before " * 4500)
        sizes.append(tracemalloc.get_traced_memory()[0])
    tracemalloc.stop()
    assert sizes[119] <= 1.02 * sizes[59]


def test_the_reader_of_a_worker_can_be_pickled(tiny_checkpoint, prepared):
    dataset, _ = dataset_of(load_model(tiny_checkpoint(), device="cpu"), prepared)
    assert pickle.loads(pickle.dumps(dataset.vision)).video == dataset.vision.video
