"""How a checkpoint was shown video travels with it: written by training, obeyed and guarded by a stream."""

import json
import logging
import shutil

import pytest

from streamingvlm.config import CacheConfig, SamplingConfig, VideoConfig
from streamingvlm.inference.session import StreamingSession
from streamingvlm.model.loading import load_model
from streamingvlm.model.stream_settings import SETTINGS_KEY, contradictions, stream_settings
from streamingvlm.turns import TurnFormat

CACHE = CacheConfig(text_sink_tokens=64, text_window_tokens=128, vision_window_s=8.0, turn_window_s=8.0)
VIDEO = VideoConfig(fps=4.0, turn_s=0.5, min_pixels=50_000, max_pixels=200_000, resize="qwen_vl_utils")
SAMPLING = SamplingConfig(temperature=0.0, repetition_penalty=1.0, max_new_tokens=30)


@pytest.fixture
def model(tiny_checkpoint, tmp_path):
    """Give a tiny Qwen2.5-VL that was trained, and saved by transformers, with settings unlike the defaults."""
    trained = load_model(tiny_checkpoint("qwen2_5_vl"), device="cpu")
    settings = stream_settings(CACHE, VIDEO, SAMPLING, turn_format="patch-seconds-1")
    setattr(trained.hf.config, SETTINGS_KEY, settings | {"training": {"steps": 7}})
    folder = shutil.copytree(tiny_checkpoint("qwen2_5_vl"), tmp_path / "trained")
    trained.hf.save_pretrained(folder)
    return load_model(folder, device="cpu")


def test_a_session_watches_as_training_did(model, caplog):
    session = StreamingSession(model)
    assert session.cache_config == CACHE
    assert session.sampling_config == SAMPLING
    assert session.video_config == VideoConfig(**{**vars(VIDEO), "turn_format": "patch-seconds-1"})
    assert session.format.name == "patch-seconds-1"
    assert model.stream_defaults["training"] == {"steps": 7}
    assert caplog.records == []


def test_training_goes_on_in_the_format_of_the_checkpoint(model):
    """Whoever starts from its weights gets its format, unless they ask for another."""
    assert model.family.turn_format == "patch-seconds-1"
    assert TurnFormat.of(model.tokenizer, model.family, VideoConfig()).name == "patch-seconds-1"


def test_settings_are_plain_json():
    settings = stream_settings(CACHE, VIDEO, turn_format="time-range-1")
    assert json.loads(json.dumps(settings)) == settings
    assert "temperature" not in settings
    assert "policy" not in settings, "a way of streaming, not of training"


@pytest.mark.parametrize(
    ("asked", "told"),
    [
        ({"turn_format": "time-range-1"}, "video.turn_format=time-range-1 (trained with patch-seconds-1)"),
        ({"fps": 2.0}, "video.fps=2.0 (trained with 4.0)"),
        ({"turn_s": 1.0, "fps": 2.0}, "video.fps=2.0 (trained with 4.0), video.turn_s=1.0 (trained with 0.5)"),
        ({"resize": "processor"}, "video.resize=processor (trained with qwen_vl_utils)"),
    ],
)
def test_other_turns_than_those_of_training_are_possible_and_told_of_once(model, asked, told, caplog):
    session = StreamingSession(model, video=asked)
    assert all(getattr(session.video_config, name) == value for name, value in asked.items())
    assert [record.levelno for record in caplog.records] == [logging.WARNING]
    assert told in caplog.text
    session.reset()
    assert len(caplog.records) == 1


def test_windows_and_sampling_are_a_streams_own(model, caplog):
    StreamingSession(model, cache={"vision_window_s": 4.0}, sampling={"temperature": 1.0}, video={"prefetch": 5})
    assert caplog.records == []


def test_nothing_is_known_of_a_checkpoint_that_says_nothing():
    assert contradictions(VIDEO, {}) == []
