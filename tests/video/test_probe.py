"""A probe finds from the beginning and the end of a file what reading it all would give."""

from fractions import Fraction

import pytest

from streamingvlm.errors import VideoError
from streamingvlm.video import open_video
from streamingvlm.video.probe import probe_video


@pytest.mark.parametrize("container", ["mp4", "mkv", "ts"])
@pytest.mark.parametrize("num_frames", [1, 12, 25, 26, 249, 250, 251, 263])
def test_as_many_turns_as_a_reader_yields(tmp_path, write_clip, regular_times, container, num_frames):
    path = write_clip(tmp_path / f"clip.{container}", regular_times(25, num_frames))
    with open_video(path) as video:
        turns = list(video)
    assert probe_video(path).num_turns == len(turns)


@pytest.mark.parametrize("turn_s", [0.5, 2.0])
def test_turns_of_another_length(tmp_path, write_clip, regular_times, turn_s):
    path = write_clip(tmp_path / "clip.mp4", regular_times(Fraction(30000, 1001), 400))
    with open_video(path, fps=4, turn_s=turn_s) as video:
        turns = list(video)
    assert probe_video(path, fps=4, turn_s=turn_s).num_turns == len(turns)


def test_the_size_is_as_displayed(tmp_path, write_clip, regular_times):
    path = write_clip(tmp_path / "clip.mp4", regular_times(25, 30), size=(64, 48), rotation=90)
    probe = probe_video(path)
    assert (probe.width, probe.height) == (48, 64)


def test_a_truncated_file_counts_what_is_there_and_what_is_missing(tmp_path, write_noisy_clip, regular_times, cut):
    path = write_noisy_clip(tmp_path / "c.mp4", regular_times(25, 300), muxer_options={"movflags": "faststart"})
    assert probe_video(path).missing_s == 0
    with open_video(cut(path, keep=0.5)) as video:
        turns = list(video)
    probe = probe_video(path)
    assert probe.num_turns == len(turns)
    assert probe.missing_s == pytest.approx(12 - len(turns), abs=0.1)


def test_the_middle_of_a_long_file_is_not_decoded(tmp_path, write_clip, regular_times, damage):
    path = write_clip(tmp_path / "clip.ts", regular_times(25, 1000))
    whole = probe_video(path)
    assert probe_video(damage(path, at=0.4, length=0.2)) == whole


@pytest.mark.parametrize(
    "content, reason", [(None, "does not exist"), (b"", "is empty"), (b"text\n" * 99, "not a video")]
)
def test_a_file_without_video_is_named(tmp_path, content, reason):
    path = tmp_path / "x.mp4"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(VideoError, match=reason):
        probe_video(path)


def test_audio_only_is_an_error(tmp_path, write_audio):
    with pytest.raises(VideoError, match="audio only"):
        probe_video(write_audio(tmp_path / "speech.mp4"))
