"""The processor files of a checkpoint decide what its model sees, as they do in transformers."""

import json
import shutil

import numpy as np
import pytest
import torch
from tiny_inputs import frames

from streamingvlm.config import SamplingConfig, VideoConfig, resolve
from streamingvlm.errors import CheckpointError
from streamingvlm.model.loading import load_model
from streamingvlm.model.vision import preprocess

SMALL = {"min_pixels": 3136, "max_pixels": 50176}
HALF = {"image_mean": [0.5, 0.5, 0.5], "image_std": [0.5, 0.5, 0.5]}


@pytest.fixture
def checkpoint(tiny_checkpoint, tmp_path):
    """Give a function that loads a tiny checkpoint with these files beside it: their names, without .json."""

    def load(model_type="qwen2_5_vl", own=None, **files):
        folder = shutil.copytree(tiny_checkpoint(model_type), tmp_path / f"copy{len(list(tmp_path.iterdir()))}")
        for name, content in files.items():
            (folder / f"{name}.json").write_text(content if isinstance(content, str) else json.dumps(content))
        if own is not None:
            config = json.loads((folder / "config.json").read_text())
            (folder / "config.json").write_text(json.dumps(config | {"streamingvlm": own}))
        return load_model(folder, device="cpu")

    return load


def limits(model):
    video = resolve(VideoConfig, None, model.stream_defaults)
    return video.min_pixels, video.max_pixels


def test_a_fine_tune_is_watched_with_its_own_pixels_and_values(checkpoint, caplog):
    model = checkpoint(preprocessor_config=SMALL | HALF)
    assert limits(model) == (3136, 50176)
    assert (model.family.image_mean, model.family.image_std) == ((0.5,) * 3, (0.5,) * 3)
    [line] = caplog.messages
    assert "preprocessor_config.json: min_pixels=3136, max_pixels=50176, image_mean=(0.5, 0.5, 0.5)" in line


def test_the_pixels_are_those_of_transformers_own_processor(checkpoint):
    """The pictures of PIL's processor are compared, as the one for video needs torchvision; PIL rounds differently."""
    from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import Qwen2VLImageProcessorPil

    picture = frames(3, num_frames=1, height=300, width=420)[0]
    for settings in (SMALL | HALF, {"size": {"shortest_edge": 3136, "longest_edge": 20000}, "resample": 2}):
        model = checkpoint(preprocessor_config=settings)
        own = model.vision_encoder(**model.stream_defaults).patches(picture[None])
        theirs = Qwen2VLImageProcessorPil(**settings)(np.asarray(picture.permute(1, 2, 0)), return_tensors="pt")
        assert list(own[1]) == theirs["image_grid_thw"][0].tolist()
        assert (own[0] - theirs["pixel_values"]).abs().max() < 2.1 / 255 / min(model.family.image_std)


@pytest.mark.parametrize(
    ("files", "expected"),
    [
        ({"preprocessor_config": {"size": {"shortest_edge": 3136, "longest_edge": 50176}}}, (3136, 50176)),
        ({"preprocessor_config": {"size": {"min_pixels": 3136, "max_pixels": 50176}}}, (3136, 50176)),
        ({"preprocessor_config": {**SMALL, "size": {"shortest_edge": 5, "longest_edge": 6}}}, (3136, 50176)),
        ({"preprocessor_config": {"max_pixels": 50176}}, (50176, 50176)),  # transformers' least would be larger
        ({"preprocessor_config": {"max_pixels": None, "min_pixels": None}}, (78400, 602112)),
        ({"preprocessor_config": {"min_pixels": 9999}, "video_preprocessor_config": SMALL}, (3136, 50176)),
        ({"video_preprocessor_config": {}, "processor_config": {"video_processor": SMALL}}, (3136, 50176)),
        ({"preprocessor_config": SMALL, "processor_config": {"image_processor": {"max_pixels": 1}}}, (3136, 50176)),
    ],
)
def test_every_spelling_is_read_from_the_file_that_transformers_reads(checkpoint, files, expected):
    assert limits(checkpoint(**files)) == expected


@pytest.mark.parametrize(
    ("model_type", "least", "most"),
    [("qwen2_vl", 3136, 12845056), ("qwen2_5_vl", 3136, 12845056), ("qwen3_vl", 4096, 25165824)],
)
def test_the_limits_of_released_checkpoints_leave_the_papers(checkpoint, caplog, model_type, least, most):
    size = {"shortest_edge": least, "longest_edge": most}
    assert checkpoint(model_type, preprocessor_config={"size": size}).stream_defaults == {}
    assert caplog.messages == []
    # A least of one's own beside the most of the release says nothing about the most.
    share = 2 if model_type == "qwen3_vl" else 1
    own = checkpoint(model_type, preprocessor_config={"size": size | {"shortest_edge": 200704}})
    assert own.stream_defaults == {"min_pixels": 200704 // share}


@pytest.mark.parametrize("most", [50000, 100352, 333333])
@pytest.mark.parametrize(("height", "width"), [(90, 160), (720, 1280), (500, 333)])
def test_qwen3_counts_pixels_over_the_frames_of_a_turn_as_transformers_does(checkpoint, most, height, width):
    from transformers.models.qwen3_vl.video_processing_qwen3_vl import smart_resize

    size = {"shortest_edge": 4096, "longest_edge": most}
    model = checkpoint("qwen3_vl", own={"fps": 4.0, "turn_s": 1.0}, video_preprocessor_config={"size": size})
    pixels = {name: model.stream_defaults[name] for name in ("min_pixels", "max_pixels")}
    _, grid = model.vision_encoder(**pixels).patches(frames(0, 4, height, width))
    expected = smart_resize(4, height, width, 2, 32, 4096, most)
    assert (grid[1] * 16, grid[2] * 16) == expected


def test_the_streamingvlm_key_wins(checkpoint, caplog):
    model = checkpoint(own={"max_pixels": 100352, "temperature": 0.5}, preprocessor_config=SMALL,
                       generation_config={"temperature": 0.3, "top_p": 0.8})  # fmt: skip
    assert limits(model) == (3136, 100352)
    sampling = resolve(SamplingConfig, None, model.stream_defaults)
    assert (sampling.temperature, sampling.top_p) == (0.5, 0.8)
    assert [line.rpartition("in ")[2] for line in caplog.messages] == [
        "preprocessor_config.json: min_pixels=3136", "generation_config.json: top_p=0.8"
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("settings", "of_value"),
    [
        ({"do_normalize": False}, lambda v: v / 255),
        ({"do_rescale": False}, lambda v: (v - 0.5) / 0.5),
        ({"rescale_factor": 1 / 127.5}, lambda v: (v / 127.5 - 0.5) / 0.5),
        ({"image_mean": 0.25, "image_std": 2}, lambda v: (v / 255 - 0.25) / 2),
    ],
)
def test_every_way_to_normalise_is_followed(checkpoint, settings, of_value):
    family = checkpoint(preprocessor_config=HALF | settings).family
    pixels, _ = preprocess(torch.full((2, 3, 56, 56), 200, dtype=torch.uint8), family=family, min_pixels=1)
    assert torch.allclose(pixels, torch.tensor(of_value(200.0)), rtol=1e-5)


@pytest.mark.parametrize(
    ("stated", "expected"),
    [
        ({"temperature": 0.3, "top_p": 0.8, "top_k": 20}, {"temperature": 0.3, "top_p": 0.8}),
        ({"do_sample": False, "max_new_tokens": 32}, {"temperature": 0.0, "max_new_tokens": 32}),
        ({"top_k": 1, "temperature": 0.4}, {"temperature": 0.0}),
        ({"do_sample": True, "temperature": 1e-6, "repetition_penalty": 1.05}, {}),  # Qwen2.5-VL's
        ({"top_k": 1, "top_p": 0.001, "temperature": 0.01}, {}),  # Qwen2-VL's
        ({"top_k": 20, "top_p": 0.8, "temperature": 0.7, "repetition_penalty": 1.0}, {}),  # Qwen3-VL's
        ({"eos_token_id": 2}, {}),
    ],
)
def test_sampling_of_its_own_is_followed_and_that_of_a_release_is_not(checkpoint, stated, expected):
    assert checkpoint(generation_config=stated).stream_defaults == expected


@pytest.mark.parametrize(
    ("files", "message"),
    [
        ({"preprocessor_config": "{"}, "is not JSON (Expecting property name"),
        ({"preprocessor_config": "[]"}, "holds no JSON object of settings"),
        ({"processor_config": {"video_processor": 1}}, "holds no JSON object of settings"),
        ({"preprocessor_config": {"size": 224}}, "holds no JSON object of settings"),
        ({"preprocessor_config": {"max_pixels": "many"}}, "has max_pixels='many', expected a number"),
        ({"preprocessor_config": {"patch_size": 16}}, "has patch_size=16, but config.json says 14"),
        ({"preprocessor_config": {"merge_size": 1}}, "has merge_size=1, but config.json says 2"),
        ({"preprocessor_config": {"resample": 1}}, "has resample=1, expected 3 (bicubic) or 2 (bilinear)"),
        ({"preprocessor_config": {"do_resize": False}}, "has do_resize=false, but frames have to fit whole tokens"),
        ({"preprocessor_config": {"image_mean": [0.5]}}, "has image_mean=[0.5], expected one number for each of 3"),
        ({"preprocessor_config": {"image_std": 0}}, "has image_std=0, expected one number for each of 3"),
        ({"generation_config": {"temperature": -1}}, "has temperature=-1, expected a number"),
    ],
)
def test_a_file_that_cannot_be_followed_is_named(checkpoint, files, message):
    with pytest.raises(CheckpointError) as error:
        checkpoint(**files)
    assert message in str(error.value) and "\n" not in str(error.value)
