"""The renderer: the same image at every size and frame rate, and in the mp4."""

from dataclasses import replace
from itertools import islice

import av
import numpy as np
import pytest
import torch

from streamingvlm.errors import ConfigError
from streamingvlm.pitch import KINDS, Match, render, write_mp4
from streamingvlm.pitch.field import UNITS_PER_PIXEL
from streamingvlm.pitch.sprites import SIDE_RGB


@pytest.fixture(scope="module")
def seconds():
    return list(islice(Match(1).seconds(), 400))


def test_frames_of_a_second(seconds):
    frames = render(seconds[0])
    assert frames.dtype == torch.uint8 and frames.shape == (2, 3, 112, 112)
    assert render(seconds[0], size=224, fps=5).shape == (5, 3, 224, 224)


def test_players_have_the_colour_of_their_side(seconds):
    for second in seconds[::20]:
        picture, frame = render(second)[0], second.keyframes[0]
        for player, place in enumerate(frame.players):
            if abs(place.x - frame.ball.x) + abs(place.y - frame.ball.y) > 8 * UNITS_PER_PIXEL:
                pixel = picture[:, place.y // UNITS_PER_PIXEL, place.x // UNITS_PER_PIXEL]
                assert tuple(pixel.tolist()) == SIDE_RGB[second.colours[player // 4]]


def test_every_size_shows_the_same_picture(seconds):
    for kind in KINDS:
        second = next(second for second in seconds if second.kind is kind)
        small = render(second).float()
        large = torch.nn.functional.avg_pool2d(render(second, size=448).float(), 4)
        assert (small - large).abs().mean() < 0.5
        assert (small - large).abs().max() < 64  # each size rounds positions to a quarter of its own pixel


def test_every_even_frame_rate_contains_the_keyframes(seconds):
    for second in seconds[:30]:
        assert render(second, fps=24)[::12].equal(render(second))


def test_a_fractional_frame_rate_gives_the_nearest_whole_number_of_frames(seconds):
    assert len(render(seconds[0], fps=29.97)) == 30
    assert len(render(seconds[0], fps=1.4)) == 1


def test_score_side_and_clubs_are_not_shown(seconds):
    for second in seconds[:100]:
        blind = replace(second, score=(7, 3), side=None, actor=None, clubs=("Albion", "City"))
        assert render(blind).equal(render(second))


@pytest.mark.parametrize(
    ("options", "fault"), [({"size": 100}, "size 100"), ({"size": 0}, "size 0"), ({"fps": 0.4}, "fps")]
)
def test_invalid_sizes_and_frame_rates_are_rejected(seconds, options, fault):
    with pytest.raises(ConfigError, match=fault):
        render(seconds[0], **options)


def test_the_mp4_shows_the_frames_of_the_model(seconds, tmp_path):
    path = tmp_path / "a match = 1.mp4"
    write_mp4(path, seed=1, duration_s=4, size=224)
    with av.open(str(path)) as container:
        pictures = {frame.time: frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)}
    assert len(pictures) == 4 * 24
    for second in seconds[:4]:
        for half, frame in enumerate(render(second, size=224)):
            picture = pictures[second.index + half / 2].astype(int)
            assert np.abs(picture - frame.permute(1, 2, 0).numpy()).mean() < 4
