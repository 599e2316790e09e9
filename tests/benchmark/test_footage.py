"""Endless footage: noise, a match, or a file in a loop."""

from itertools import islice

import pytest
import torch

from streamingvlm.benchmark.endless_footage import endless_turns, load_turns
from streamingvlm.config import VideoConfig
from streamingvlm.errors import ConfigError, VideoError
from streamingvlm.pitch import write_mp4

SIZE = {"height": 20, "width": 30}


@pytest.mark.parametrize("fps, turn_s, num_frames", [(2.0, 1.0, 2), (3.0, 2.0, 6)])
def test_noise_has_the_size_and_the_number_of_frames(fps, turn_s, num_frames):
    video = VideoConfig(fps=fps, turn_s=turn_s)
    turns = load_turns("noise", video, **SIZE)
    assert all(turn.shape == (num_frames, 3, 20, 30) and turn.dtype == torch.uint8 for turn in turns)
    with endless_turns("noise", video, **SIZE) as footage:
        shown = list(islice(footage, 5))
    assert [turn.start_s for turn in shown] == [index * turn_s for index in range(5)]
    assert torch.equal(shown[0].frames, shown[len(turns)].frames)


def test_a_match_is_rendered_at_the_frame_rate_in_turns_of_a_second():
    assert load_turns("match", VideoConfig(fps=4.0), **SIZE)[0].shape[0] == 4
    with pytest.raises(ConfigError, match="source=noise"):
        load_turns("match", VideoConfig(turn_s=2.0), **SIZE)


def test_a_file_loops_and_its_clock_goes_on(tmp_path):
    path = tmp_path / "match.mp4"
    write_mp4(path, 7, 3)
    with endless_turns(str(path), VideoConfig(), **SIZE) as footage:
        shown = list(islice(footage, 7))
    assert [turn.index for turn in shown] == list(range(7))
    assert torch.equal(shown[0].frames, shown[3].frames) and not torch.equal(shown[0].frames, shown[1].frames)
    assert len(load_turns(str(path), VideoConfig(), **SIZE)) == 3


def test_a_missing_file_is_named():
    with pytest.raises(VideoError, match=r"nowhere\.mp4"):
        load_turns("nowhere.mp4", VideoConfig(), **SIZE)
