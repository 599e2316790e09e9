import itertools
import json

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from streamingvlm.errors import VideoError
from streamingvlm.model import attention, loading
from streamingvlm.model.attention import WINDOWED_ATTENTION
from streamingvlm.model.family import FAMILIES
from streamingvlm.model.loading import load_model
from streamingvlm.model.vision import VisionFeatures, capped_max_pixels, preprocess, smart_size

QWEN2_5 = FAMILIES["qwen2_5_vl"]
MIN_PIXELS, MAX_PIXELS = 100 * 28 * 28, 768 * 28 * 28


def random_frames(num_frames, height, width, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(0, 256, (num_frames, 3, height, width), dtype=torch.uint8, generator=generator)


def unpatched(pixel_values, grid, family):
    """Put patches back into normalised frames by plain loops over where each one came from."""
    t, h, w = grid
    size, depth, merge = family.patch_size, family.temporal_patch_size, family.merge_size
    frames = np.zeros((t * depth, 3, h * size, w * size), dtype=np.float32)
    rows = iter(pixel_values.numpy().reshape(-1, 3, depth, size, size))
    for time, block_row, block_column, row, column in itertools.product(
        range(t), range(h // merge), range(w // merge), range(merge), range(merge)
    ):
        y, x = (block_row * merge + row) * size, (block_column * merge + column) * size
        patch = next(rows).transpose(1, 0, 2, 3)
        frames[time * depth : (time + 1) * depth, :, y : y + size, x : x + size] = patch
    return frames


def as_pixels(pixel_values, grid, family):
    """Undo normalisation: the resized frames as integers."""
    mean, std = (np.array(v, dtype=np.float64).reshape(3, 1, 1) for v in (family.image_mean, family.image_std))
    return np.rint((unpatched(pixel_values, grid, family) * std + mean) * 255).astype(int)


@pytest.mark.parametrize("case", range(4))
def test_preprocessing_is_the_recorded_one_to_the_last_bit(carried_golden, case):
    recorded = np.load(carried_golden / "preprocess.npz")
    min_pixels, max_pixels = (int(value) for value in recorded[f"case{case}/min_max_pixels"])
    pixel_values, grid = preprocess(
        torch.from_numpy(recorded[f"case{case}/frames"]), family=QWEN2_5, min_pixels=min_pixels, max_pixels=max_pixels
    )
    assert [list(grid)] == recorded[f"case{case}/video_grid_thw"].tolist()
    np.testing.assert_array_equal(pixel_values.numpy(), recorded[f"case{case}/pixel_values_videos"])


@pytest.mark.parametrize(
    ("height", "width", "size"),
    [
        (360, 640, (364, 644)),
        (480, 854, (476, 840)),
        (720, 1280, (560, 1008)),
        (1080, 1920, (560, 1008)),
        (1920, 1080, (1008, 560)),
        (112, 112, (280, 280)),
        (42, 70, (224, 364)),
    ],
)
def test_sizes_of_common_videos(height, width, size):
    assert smart_size(height, width, factor=28, min_pixels=MIN_PIXELS, max_pixels=MAX_PIXELS) == size


@given(
    height=st.integers(1, 3000),
    width=st.integers(1, 3000),
    factor=st.sampled_from([28, 32]),
    min_tokens=st.integers(1, 300),
    spare_tokens=st.integers(300, 1000),
)
def test_a_size_is_made_of_whole_tokens_and_within_the_limits(height, width, factor, min_tokens, spare_tokens):
    if max(height, width) > 200 * min(height, width):
        width = height
    min_pixels, max_pixels = min_tokens * factor**2, (min_tokens + spare_tokens) * factor**2
    new_height, new_width = smart_size(height, width, factor=factor, min_pixels=min_pixels, max_pixels=max_pixels)
    assert new_height % factor == 0
    assert new_width % factor == 0
    assert min(new_height, new_width) >= factor
    assert min_pixels <= new_height * new_width
    # A strip of one token's height cannot shrink further than that.
    assert new_height * new_width <= max_pixels or min(new_height, new_width) == factor


def test_a_strip_is_refused():
    with pytest.raises(VideoError, match="201x1 pixels is more than 200 times as long as wide; crop the video"):
        smart_size(1, 201, factor=28, min_pixels=1, max_pixels=10**6)


@pytest.mark.parametrize(
    ("num_frames", "asked", "given"),
    [
        (2, 768 * 784, 602_112),  # 768 tokens of 28 x 28
        (2, 12_845_056, 602_112),  # more is never given
        (2, 200_000, 200_000),  # less is
        (600, 602_112, 301_056),  # two frames share a token: 0.9 * 128000 * 784 * 2 / 600
        (5000, 602_112, 82_320),  # but never below 1.05 of the least: 1.05 * 78400
    ],
)
def test_the_cap_of_qwen_vl_utils(num_frames, asked, given):
    assert capped_max_pixels(num_frames, factor=28, min_pixels=MIN_PIXELS, max_pixels=asked) == pytest.approx(given)


def test_the_cap_applies_to_the_resize_of_qwen_vl_utils_alone():
    frames = random_frames(2, 720, 1280)
    uncapped = preprocess(frames, family=QWEN2_5, max_pixels=10**7)[1]
    capped = preprocess(frames, family=QWEN2_5, max_pixels=10**7, resize="qwen_vl_utils")[1]
    assert uncapped == (1, 52, 92)
    assert capped == (1, 40, 72)


@pytest.mark.parametrize(("height", "width"), [(90, 160), (40, 64), (333, 271)])
def test_the_resize_of_qwen_vl_utils_is_a_rounded_float_resize(height, width):
    frames = (random_frames(2, height, width) > 127).to(torch.uint8) * 255  # the sharpest edges there are
    frames[1] = random_frames(1, height, width)[0]
    pixel_values, grid = preprocess(frames, family=QWEN2_5, min_pixels=80 * 784, resize="qwen_vl_utils")
    resized = as_pixels(pixel_values, grid, QWEN2_5)

    planes = frames.numpy().astype(np.float32).reshape(-1, height, width)
    size = (grid[2] * 14, grid[1] * 14)
    oracle = [np.asarray(Image.fromarray(plane).resize(size, Image.Resampling.BICUBIC)) for plane in planes]
    oracle = np.stack(oracle).reshape(resized.shape).clip(0, 255)
    assert np.abs(resized - oracle).max() < 0.51  # rounding, and a hundredth for the order of the float sums


def test_the_two_resizes_differ_on_sharp_edges():
    frames = (random_frames(2, 90, 160) > 127).to(torch.uint8) * 255
    by_processor, by_utils = (
        as_pixels(*preprocess(frames, family=QWEN2_5, resize=resize), QWEN2_5)
        for resize in ("processor", "qwen_vl_utils")
    )
    difference = np.abs(by_processor - by_utils)
    assert difference.max() > 5
    assert np.median(difference) <= 2


def test_frames_of_a_fitting_size_are_not_touched():
    frames = random_frames(2, 280, 336)
    for resize in ("processor", "qwen_vl_utils"):
        pixel_values, grid = preprocess(frames, family=QWEN2_5, resize=resize)
        np.testing.assert_array_equal(as_pixels(pixel_values, grid, QWEN2_5), frames.numpy())


@pytest.mark.parametrize("resize", ["processor", "qwen_vl_utils"])
def test_an_incomplete_temporal_patch_repeats_the_last_frame(resize):
    frames = random_frames(3, 100, 120)
    padded = torch.cat([frames, frames[-1:]])
    odd, even = (preprocess(f, family=QWEN2_5, resize=resize) for f in (frames, padded))
    assert odd[1] == even[1]
    assert odd[1][0] == 2
    assert torch.equal(odd[0], even[0])


@pytest.mark.parametrize(
    "frames",
    [
        torch.zeros(2, 3, 56, 56),
        torch.zeros(2, 56, 56, 3, dtype=torch.uint8),
        torch.zeros(0, 3, 5, 5, dtype=torch.uint8),
    ],
    ids=["float", "channels last", "none"],
)
def test_what_are_no_frames_is_refused(frames):
    with pytest.raises(VideoError, match=r"expected uint8 \[F, 3, H, W\]"):
        preprocess(frames, family=QWEN2_5)


@pytest.mark.parametrize("model_type", FAMILIES)
def test_turns_encoded_one_by_one_equal_the_whole_video(tiny_checkpoint, model_type):
    vision = load_model(tiny_checkpoint(model_type), device="cpu").vision_encoder(min_pixels=1)
    frames = random_frames(8, 112, 84)
    whole = vision.features(frames)
    turns = [vision.features(turn) for turn in frames.split(2)]
    assert whole.grid == (4, 4, 3)
    assert {turn.grid for turn in turns} == {(1, 4, 3)}
    assert torch.equal(whole.embeddings, torch.cat([turn.embeddings for turn in turns]))
    assert len(whole.deepstack) == (2 if model_type == "qwen3_vl" else 0)
    for level, features in enumerate(whole.deepstack):
        assert torch.equal(features, torch.cat([turn.deepstack[level] for turn in turns]))


@pytest.mark.parametrize("model_type", FAMILIES)
def test_several_videos_in_one_pass_are_each_as_alone(tiny_checkpoint, model_type):
    vision = load_model(tiny_checkpoint(model_type), device="cpu").vision_encoder(min_pixels=1)
    sizes = [(2, 56, 84), (4, 112, 56), (2, 140, 168)]
    videos = [vision.patches(random_frames(*size, seed)) for seed, size in enumerate(sizes)]
    for video, together in zip(videos, vision.features_of_many(videos), strict=True):
        assert_alike(vision.features_of(*video), together)


def assert_alike(one: VisionFeatures, other: VisionFeatures):
    assert one.grid == other.grid
    assert len(one.deepstack) == len(other.deepstack)
    for mine, yours in zip(one.rows(0, len(one.embeddings)), other.rows(0, len(other.embeddings)), strict=True):
        assert (mine - yours).abs().max() < 1e-5


@pytest.mark.parametrize("has_kernel", [False, True])
@pytest.mark.parametrize("model_type", FAMILIES)
def test_all_windows_at_once_are_as_transformers_takes_them_one_by_one(
    tiny_checkpoint, model_type, has_kernel, monkeypatch
):
    stock = load_model(tiny_checkpoint(model_type), device="cpu").vision_encoder(min_pixels=1)
    monkeypatch.setattr(loading, "_uses_windowed_attention", lambda *_: True)
    if has_kernel:
        monkeypatch.setattr(attention, "supports_varlen", lambda query: True)
        monkeypatch.setattr(attention, "_varlen", window_by_window)
    windowed = load_model(tiny_checkpoint(model_type), device="cpu").vision_encoder(min_pixels=1)
    assert windowed.tower.config._attn_implementation == WINDOWED_ATTENTION
    for size in [(2, 56, 84), (4, 140, 196)]:
        frames = random_frames(*size)
        assert_alike(stock.features(frames), windowed.features(frames))


def window_by_window(query, keys, values, *, offsets, max_seqlens, is_causal, scaling):
    """What the kernel is documented to do."""
    assert not is_causal
    outputs = []
    for first, stop in itertools.pairwise(offsets[0].tolist()):
        assert stop - first <= max_seqlens[0] == max_seqlens[1]
        scores = torch.einsum("qhd,khd->hqk", query[first:stop], keys[first:stop]) * scaling
        outputs.append(torch.einsum("hqk,khd->qhd", scores.softmax(-1), values[first:stop]))
    return torch.cat(outputs)


def test_features_are_embeddings_and_their_grid(tiny_checkpoint):
    vision = load_model(tiny_checkpoint("qwen2_5_vl"), device="cpu").vision_encoder()
    features = vision.features(random_frames(2, 720, 1280))
    assert features.grid == (1, 20, 36)
    assert features.embeddings.shape == (720, 64)
    assert not features.embeddings.requires_grad


def test_time_on_the_rotary_axis():
    assert FAMILIES["qwen2_5_vl"].with_vision_config({"tokens_per_second": 2}).temporal_step(0.5) == 1.0
    assert FAMILIES["qwen2_5_vl"].temporal_step(0.25) == 1.0
    assert FAMILIES["qwen2_vl"].with_vision_config({"patch_size": 14}).temporal_step(0.25) == 1.0


def test_the_vision_path_is_the_recorded_one(golden):
    runs = [path for path in sorted(golden.glob("*.npz")) if "r000/pixel_values_videos" in np.load(path).files]
    if not runs:
        pytest.skip(f"no run in {golden} has its vision path recorded")
    frames = torch.from_numpy(np.load(golden / "frames.npz")["frames"])
    vision = load_model(golden / "model", device="cpu").vision_encoder(min_pixels=1)
    for path in runs:
        constants = json.loads(path.with_suffix(".json").read_text("utf-8"))["constants"]
        turns = frames.split(round(constants["fps"] * constants["chunk_duration"]))
        run = np.load(path)
        for key in run.files:
            turn = turns[int(key[1:4])]
            if key.endswith("pixel_values_videos"):
                np.testing.assert_array_equal(preprocess(turn, family=vision.family, min_pixels=1)[0].numpy(), run[key])
            elif key.endswith("vision_out"):
                np.testing.assert_allclose(vision.features(turn)[0].numpy(), run[key], atol=1e-5)
