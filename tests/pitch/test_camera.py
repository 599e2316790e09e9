"""The camera: which instant of the match each frame of a turn shows, and how it is compressed."""

from itertools import islice

import pytest
import torch

from streamingvlm.errors import ConfigError
from streamingvlm.pitch import Match, render
from streamingvlm.pitch.camera import Camera, draw_camera


@pytest.fixture(scope="module")
def seconds():
    return list(islice(Match(1).seconds(), 12))


def frames_of(camera, seconds, **options):
    return [frames for _, frames in camera.turns(seconds, **options)]


def test_the_default_camera_takes_the_frames_of_the_renderer(seconds):
    for fps in (2, 5):
        for second, frames in Camera().turns(seconds, fps=fps):
            assert frames.equal(render(second, fps=fps))


@pytest.mark.parametrize(("phase_ms", "eighths"), [(-250, -2), (-125, -1), (125, 1), (250, 2)])
def test_a_phase_shows_the_match_earlier_or_later(seconds, phase_ms, eighths):
    whole = torch.cat([render(second, fps=8) for second in seconds])
    for number, frames in enumerate(frames_of(Camera(phase_ms=phase_ms), seconds)):
        assert frames.equal(whole[[max(0, 8 * number + eighths), 8 * number + 4 + eighths]])


def test_a_moment_shows_the_newest_frame_at_or_before_it(seconds):
    whole = torch.cat([render(second, fps=25) for second in seconds])
    for number, frames in enumerate(frames_of(Camera(rate=25), seconds)):
        assert frames.equal(whole[[25 * number, 25 * number + 12]])


def test_jitter_shows_no_frame_before_it_was_taken():
    camera = Camera(rate=25, jitter_ms=40)
    ages = [moment - camera._shown_ms(moment) for moment in range(0, 60_000, 500)]
    assert min(ages[1:]) >= 0 and max(ages) <= 40 + 2 * 40
    assert len(set(ages)) > 20


def test_scale_and_compression_leave_the_picture_recognizable(seconds):
    camera = Camera(jpeg_quality=40, size=224, scale_percent=75)
    for plain, frames in zip(frames_of(Camera(size=224), seconds), frames_of(camera, seconds), strict=True):
        assert frames.shape == (2, 3, 168, 168)
        restored = torch.nn.functional.interpolate(frames, size=(224, 224), mode="bilinear")
        assert 0 < (restored.float() - plain.float()).abs().mean() < 6


def test_drawn_cameras_differ_and_are_reproducible():
    assert draw_camera(3) == draw_camera(3)
    assert len({draw_camera(seed).phase_ms for seed in range(50)}) > 25


def test_a_phase_that_belongs_to_another_turn_is_rejected():
    with pytest.raises(ConfigError, match="phase_ms=-300 of the camera is out of range; give -250 to 250"):
        Camera(phase_ms=-300)
