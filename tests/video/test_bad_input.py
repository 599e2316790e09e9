"""Bad files: either one clear line at once, or what is readable and counts of the rest."""

import os

import numpy as np
import pytest

from streamingvlm.errors import VideoError
from streamingvlm.video import open_video
from streamingvlm.video.pyav import PyAVSource


def error_line(path, **settings) -> str:
    with pytest.raises(VideoError) as caught:
        open_video(path, **settings)
    message = str(caught.value)
    assert "\n" not in message
    assert repr(os.fspath(path)) in message
    return message


DECODERS = pytest.mark.parametrize("decoder", ["pyav", "decord"])


@DECODERS
def test_a_missing_file(tmp_path, decoder):
    assert "does not exist" in error_line(tmp_path / "nowhere.mp4", decoder=decoder)


@DECODERS
def test_a_folder(tmp_path, decoder):
    assert "is a folder" in error_line(tmp_path, decoder=decoder)


@DECODERS
def test_an_empty_file(tmp_path, decoder):
    path = tmp_path / "empty.mp4"
    path.touch()
    assert "is empty" in error_line(path, decoder=decoder)


@DECODERS
@pytest.mark.parametrize("name", ["notes.mp4", "notes.txt", "notes.ts", "notes"])
def test_a_text_file(tmp_path, decoder, name):
    path = tmp_path / name
    path.write_text("00:00:01 kick-off\n00:00:09 a corner\n" * 200)
    message = error_line(path, decoder=decoder)
    assert "not a video" in message
    assert "name a video file" in message


@DECODERS
def test_audio_only(tmp_path, write_audio, decoder):
    assert "audio only" in error_line(write_audio(tmp_path / "speech.mp4"), decoder=decoder)


@DECODERS
def test_an_mp4_cut_off_before_its_index(tmp_path, write_clip, regular_times, cut, decoder):
    path = cut(write_clip(tmp_path / "recording.mp4", regular_times(25, 100)), keep=0.4)
    message = error_line(path, decoder=decoder)
    assert "moov" in message
    assert "copy or download it again" in message


def test_an_address_is_not_a_file():
    assert "open_source" in error_line("https://example.org/match.mp4")


def test_frames_of_which_none_can_be_decoded(tmp_path, write_clip, regular_times):
    path = write_clip(tmp_path / "noise.mp4", regular_times(25, 50), muxer_options={"movflags": "faststart"})
    head, mark, frames = path.read_bytes().partition(b"mdat")
    path.write_bytes(head + mark + b"\xff" * len(frames))
    assert "no frame that can be decoded" in error_line(path)


def test_a_truncated_mp4_yields_what_is_there_and_counts_what_is_missing(
    tmp_path, write_clip, regular_times, cut, numbers
):
    path = write_clip(tmp_path / "clip.mp4", regular_times(25, 250), muxer_options={"movflags": "faststart"})
    with open_video(cut(path, keep=0.6)) as video:
        turns = list(video)
    assert 3 <= len(turns) <= 7
    assert numbers(turns)[:3] == [[0, 12], [25, 37], [50, 62]]
    assert video.info.duration_s == pytest.approx(10)
    assert video.skipped.missing_s == pytest.approx(10 - turns[-1].start_s, abs=1.0)
    assert "before its announced end" in video.skipped.describe()


def test_a_truncated_matroska_file_yields_what_is_there_and_counts_what_is_missing(
    tmp_path, write_clip, regular_times, cut
):
    with open_video(cut(write_clip(tmp_path / "clip.mkv", regular_times(25, 250)), keep=0.6)) as video:
        turns = list(video)
    assert 3 <= len(turns) <= 7
    assert "before its announced end" in video.skipped.describe()


@pytest.mark.parametrize("name", ["h264.mp4", "h264.ts", "h264.mkv", "hevc.mp4"])
def test_a_corrupt_middle_is_skipped_and_counted(tmp_path, write_noisy_clip, regular_times, damage, numbers, name):
    codec, quiet = ("libx265", {"x265-params": "log-level=none"}) if "hevc" in name else ("libx264", {})
    options = {"preset": "ultrafast", **quiet}
    path = write_noisy_clip(tmp_path / name, regular_times(25, 150), codec=codec, codec_options=options)
    with open_video(damage(path, at=0.4, length=0.1)) as video:
        turns = list(video)
    assert len(turns) == 6
    found = numbers(turns)
    assert found[:2] == [[0, 12], [25, 37]]
    assert found[-2:] == [[100, 112], [125, 137]]
    line = video.skipped.describe()
    assert line is not None
    assert "\n" not in line


def test_a_corrupt_middle_of_avi_whose_stamps_count_packets_is_cut_out(
    tmp_path, write_noisy_clip, regular_times, damage, numbers
):
    path = write_noisy_clip(tmp_path / "clip.avi", regular_times(25, 150), codec="mpeg4")
    with open_video(damage(path, at=0.4, length=0.1)) as video:
        found = numbers(video)
    assert len(found) in (5, 6)
    assert (found[0][0], found[-1][-1] > 125) == (0, True)
    assert video.skipped.describe() is not None


def test_frames_still_in_the_decoder_when_reading_fails_keep_their_times(
    tmp_path, write_clip, regular_times, numbers, monkeypatch
):
    path = write_clip(tmp_path / "clip.mp4", regular_times(25, 100))
    whole = numbers(open_video(path))
    read = PyAVSource._packets

    def failing(self):
        yield from (packet for packet in read(self) if packet is None or packet.dts is not None)

    monkeypatch.setattr(PyAVSource, "_packets", failing)
    assert numbers(open_video(path)) == whole


def test_noise_at_the_end_of_a_stream_raises_no_error(tmp_path, write_clip, regular_times, damage):
    path = damage(write_clip(tmp_path / "clip.ts", regular_times(25, 100)), at=0.8, length=0.2)
    with open_video(path) as video:
        assert 2 <= len(list(video)) <= 4


def test_a_damaged_frame_rate_does_not_make_the_stream_endless(tmp_path, write_clip, regular_times, numbers):
    path = write_clip(tmp_path / "clip.avi", regular_times(25, 75), codec="mpeg4")
    data = bytearray(path.read_bytes())
    scale = data.index(b"strh") + 28  # the header of the stream: frames take dwScale / dwRate seconds
    data[scale : scale + 4] = b"\xff\xff\xff\x7f"
    path.write_bytes(data)
    with open_video(path) as video:
        assert numbers(video) == [[0, 12], [25, 37], [50, 62]]
    assert video.skipped.num_clock_jumps > 0


def outcome(path) -> str:
    """Read a file to its end: the line to show the user, if any."""
    try:
        with open_video(path) as video:
            shapes = {turn.frames.shape[:2] for turn in video}
    except VideoError as error:
        return str(error)
    assert shapes == {(2, 3)}
    return video.skipped.describe() or ""


def test_any_damage_at_all_ends_in_seconds_or_in_a_video_error(tmp_path, write_clip, regular_times):
    clips = [
        write_clip(tmp_path / "a.mp4", regular_times(25, 60), muxer_options={"movflags": "faststart"}),
        write_clip(tmp_path / "b.ts", regular_times(25, 60)),
        write_clip(tmp_path / "c.mkv", regular_times(25, 60)),
    ]
    random = np.random.default_rng(7)
    for trial in range(60):
        clip = clips[trial % len(clips)]
        data = bytearray(clip.read_bytes())
        for position in random.integers(0, len(data), size=random.integers(1, 40)):
            data[position] = random.integers(256)
        damaged = tmp_path / f"damaged{clip.suffix}"
        damaged.write_bytes(data[: random.integers(len(data) // 2, len(data) + 1)])
        assert "\n" not in outcome(damaged)
