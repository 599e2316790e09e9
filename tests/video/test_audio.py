"""The audio of real files, on the clock of their frames."""

import numpy as np
import pytest
from published_layouts import write_video

from streamingvlm.errors import VideoError
from streamingvlm.video.audio import SAMPLE_RATE, read_audio


def loud_seconds(pieces):
    """The seconds of stream time in which there is a tone for most of the time."""
    loud = set()
    for start_s, samples in pieces:
        times = np.floor(start_s + np.arange(len(samples)) / SAMPLE_RATE + 1e-9).astype(int)
        for second in np.unique(times):
            if np.abs(samples[times == second]).mean() > 0.1:
                loud.add(int(second))
    return loud


def test_a_tone_is_at_its_time(tmp_path):
    path = write_video(tmp_path / "clip.mp4", 12, tone_at_s=[2, 3, 7])
    [(start_s, samples)] = read_audio(path)
    assert start_s == 0
    assert samples.dtype == np.float32 and samples.ndim == 1
    assert len(samples) == pytest.approx(12 * SAMPLE_RATE, abs=0.1 * SAMPLE_RATE)
    assert loud_seconds([(start_s, samples)]) == {2, 3, 7}
    assert np.abs(samples).max() == pytest.approx(0.5, abs=0.1)


def test_audio_that_begins_later_than_the_frames_keeps_its_time(tmp_path):
    path = write_video(tmp_path / "clip.mkv", 12, tone_at_s=[7, 8], sound_from_s=5.0)
    assert loud_seconds(read_audio(path)) == {7, 8}


def test_pieces_join_to_the_whole_and_are_cut_where_it_is_quiet(tmp_path):
    path = write_video(tmp_path / "clip.mp4", 40, tone_at_s=[s for s in range(40) if s % 5 != 3])
    whole = np.concatenate([samples for _, samples in read_audio(path)])
    pieces = list(read_audio(path, piece_s=10))
    assert np.array_equal(np.concatenate([samples for _, samples in pieces]), whole)
    starts_s = [start_s for start_s, _ in pieces]
    assert starts_s == pytest.approx(np.cumsum([0, *(len(samples) / SAMPLE_RATE for _, samples in pieces[:-1])]))
    assert [int(start_s) % 5 for start_s in starts_s[1:]] == [3] * (len(starts_s) - 1)
    assert all(len(samples) <= 10 * SAMPLE_RATE for _, samples in pieces)


def test_a_video_without_audio_is_named(tmp_path):
    path = write_video(tmp_path / "silent.mp4", 2)
    with pytest.raises(VideoError, match=r"silent\.mp4' has no audio"):
        list(read_audio(path))


def test_a_file_that_is_not_a_video_is_named(tmp_path):
    (tmp_path / "x.mp4").write_text("no video")
    with pytest.raises(VideoError, match="cannot be opened"):
        list(read_audio(tmp_path / "x.mp4"))
