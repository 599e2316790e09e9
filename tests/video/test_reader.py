"""Intact files of every kind, read through `open_video`."""

from fractions import Fraction

import av
import numpy as np
import pytest
import torch
from av.video.reformatter import VideoReformatter

from streamingvlm.errors import ConfigError, VideoError
from streamingvlm.video import open_video
from streamingvlm.video.orientation import Orientation
from streamingvlm.video.pyav import to_rgb

RATES = [Fraction(24000, 1001), 24, 25, Fraction(30000, 1001), 30, 50, Fraction(60000, 1001), 60]


def sample_times(num, fps=2, start_s=0):
    return [Fraction(start_s) + Fraction(k) / Fraction(fps) for k in range(num)]


def flat(lists):
    return [item for inner in lists for item in inner]


@pytest.mark.parametrize("container", ["mp4", "mkv", "ts"])
@pytest.mark.parametrize("rate", RATES, ids=lambda rate: f"{float(rate):.3f}")
def test_every_turn_has_two_distinct_frames_of_the_right_time(
    tmp_path, write_clip, regular_times, numbers, expected, rate, container
):
    times_s = regular_times(rate, int(5 * rate))
    path = write_clip(tmp_path / f"clip.{container}", times_s, rate=rate)
    with open_video(path) as video:
        turns = list(video)
        assert video.info.average_fps == pytest.approx(float(rate), rel=1e-3)
    found = flat(numbers(turns))
    assert [(s.index, s.start_s, s.end_s, s.num_repeated) for s in turns] == [(i, i, i + 1, 0) for i in range(5)]
    assert len(set(found)) == 10
    assert found == expected(times_s, sample_times(10))
    assert video.skipped.describe() is None


def test_variable_frame_rate_follows_the_timestamps(tmp_path, write_clip, numbers, expected):
    steps = np.random.default_rng(3).choice([1500, 3003, 9000, 20000, 40000], size=120)
    times_s = [Fraction(int(tick), 90000) for tick in np.concatenate([[0], np.cumsum(steps)])]
    path = write_clip(tmp_path / "screen.mp4", times_s)
    turns = list(open_video(path))
    assert flat(numbers(turns)) == expected(times_s, sample_times(2 * len(turns)))
    assert len(turns) == int(times_s[-1]) + 1
    assert sum(turn.num_repeated for turn in turns) == 0


@pytest.mark.parametrize(("fps", "turn_s"), [(1.5, 1.0), (4, 0.5), (2, 2.5), (0.8, 2.0), (3.7, 1.3)])
def test_fractional_rates_and_turns(tmp_path, write_clip, regular_times, numbers, expected, fps, turn_s):
    times_s = regular_times(30, 240)
    path = write_clip(tmp_path / "clip.mp4", times_s, rate=30)
    turns = list(open_video(path, fps=fps, turn_s=turn_s))
    num_frames = round(fps * turn_s)
    assert all(turn.frames.shape == (num_frames, 3, 48, 64) for turn in turns)
    turn, step = Fraction(str(turn_s)), 1 / Fraction(str(fps))
    times = [i * turn + k * step for i in range(len(turns)) for k in range(num_frames)]
    assert flat(numbers(turns)) == expected(times_s, times)
    assert turns[-1].end_s >= 8.0 > turns[-1].start_s


@pytest.mark.parametrize("first_stamp_s", [1.4, 3600, (2**33 - 90000 * 3) / 90000], ids=["small", "hour", "wraps"])
def test_a_transport_stream_whose_clock_starts_anywhere_starts_at_zero(
    tmp_path, write_clip, regular_times, numbers, expected, first_stamp_s
):
    times_s = regular_times(25, 150, start_s=Fraction(round(first_stamp_s * 90000), 90000))
    path = write_clip(tmp_path / "broadcast.ts", times_s)
    with open_video(path) as video:
        turns = list(video)
    assert [turn.start_s for turn in turns] == [0, 1, 2, 3, 4, 5]
    assert flat(numbers(turns)) == expected(times_s, sample_times(12))
    assert video.skipped.describe() is None


@pytest.mark.parametrize("degrees", [0, 90, 180, -90])
def test_rotation_metadata_is_applied(tmp_path, write_clip, regular_times, degrees):
    plain = next(open_video(write_clip(tmp_path / "plain.mp4", regular_times(25, 25))))
    path = write_clip(tmp_path / "phone.mp4", regular_times(25, 25), rotation=degrees)
    with open_video(path) as video:
        turned = next(video)
    assert torch.equal(turned.frames, torch.rot90(plain.frames, degrees // 90, (2, 3)))
    assert (video.info.height, video.info.width) == turned.frames.shape[2:]
    assert video.info.rotation == -degrees % 360


@pytest.mark.parametrize("size", [(63, 48), (64, 47), (51, 39)])
def test_odd_sizes_keep_every_row_and_column(tmp_path, write_clip, regular_times, numbers, size):
    path = write_clip(tmp_path / "odd.mp4", regular_times(25, 50), size=size, pix_fmt="yuv444p")
    turns = list(open_video(path))
    assert turns[0].frames.shape == (2, 3, size[1], size[0])
    assert numbers(turns) == [[0, 12], [25, 37]]


@pytest.mark.parametrize(
    ("codec", "pix_fmt", "name"),
    [
        ("libx264", "gray", "gray.mp4"),
        ("libx265", "yuv420p10le", "ten_bit.mp4"),
        ("libvpx-vp9", "yuv420p", "clip.webm"),
        ("mpeg4", "yuv420p", "clip.avi"),
        ("libx264", "yuv420p", "raw.h264"),
        ("mjpeg", "yuvj420p", "clip.mov"),
    ],
)
def test_other_codecs_and_pixel_formats_become_rgb(tmp_path, write_clip, regular_times, numbers, codec, pix_fmt, name):
    quiet = {"x265-params": "log-level=none"} if codec == "libx265" else {}
    path = write_clip(tmp_path / name, regular_times(25, 75), codec=codec, pix_fmt=pix_fmt, codec_options=quiet)
    turns = list(open_video(path))
    assert all(turn.frames.dtype == torch.uint8 and turn.frames.shape == (2, 3, 48, 64) for turn in turns)
    assert numbers(turns) == [[0, 12], [25, 37], [50, 62]]


def test_colours_survive(tmp_path, write_clip, regular_times):
    def paint(_, width, height):
        return np.full((height, width, 3), (200, 60, 20), np.uint8)

    path = write_clip(tmp_path / "red.mp4", regular_times(25, 25), draw=paint)
    mean = next(open_video(path)).frames.float().mean((0, 2, 3))
    assert mean.tolist() == pytest.approx([200, 60, 20], abs=4)


def test_a_reserved_colour_tag_is_ignored():
    frames = [av.VideoFrame.from_ndarray(np.full((8, 8, 3), (200, 60, 20), np.uint8), format="rgb24") for _ in range(2)]
    untagged, reserved = (frame.reformat(format="yuv444p") for frame in frames)
    reserved.colorspace = 3
    with pytest.raises(av.FFmpegError):
        reserved.reformat(format="rgb24")
    images = [
        to_rgb(frame, (frame.height, frame.width), Orientation(), VideoReformatter()) for frame in (untagged, reserved)
    ]
    assert torch.equal(*images)


def test_a_short_last_turn_is_padded(tmp_path, write_clip, regular_times, numbers):
    turns = list(open_video(write_clip(tmp_path / "clip.mp4", regular_times(25, 58))))
    assert numbers(turns) == [[0, 12], [25, 37], [50, 57]]
    turns = list(open_video(write_clip(tmp_path / "clip.mp4", regular_times(25, 51))))
    assert numbers(turns) == [[0, 12], [25, 37], [50, 50]]
    assert [turn.num_repeated for turn in turns] == [0, 0, 1]


def test_half_a_second_and_a_single_frame_are_one_turn_each(tmp_path, write_clip, regular_times, numbers):
    half = list(open_video(write_clip(tmp_path / "half.mp4", regular_times(30, 15), rate=30)))
    assert numbers(half) == [[0, 14]]
    single = list(open_video(write_clip(tmp_path / "single.mp4", regular_times(30, 1), rate=30)))
    assert numbers(single) == [[0, 0]]
    assert single[0].num_repeated == 1


def test_a_gap_in_the_timestamps_repeats_the_newest_frame_and_is_counted(tmp_path, write_clip, regular_times, numbers):
    times_s = regular_times(25, 25) + regular_times(25, 25, start_s=4)
    with open_video(write_clip(tmp_path / "gap.ts", times_s)) as video:
        turns = list(video)
    assert numbers(turns) == [[0, 12], [24, 24], [24, 24], [24, 24], [25, 37]]
    assert [turn.num_repeated for turn in turns] == [0, 1, 2, 2, 0]
    assert video.skipped.gap_s == pytest.approx(3.0, abs=0.05)
    assert "gaps of 3.0 s" in video.skipped.describe()


def test_joined_recordings_whose_clock_restarts_continue(tmp_path, write_clip, regular_times, numbers):
    one = write_clip(tmp_path / "one.ts", regular_times(25, 50, start_s=100))
    two = write_clip(tmp_path / "two.ts", regular_times(25, 50, start_s=10))
    joined = tmp_path / "joined.ts"
    joined.write_bytes(one.read_bytes() + two.read_bytes())
    with open_video(joined) as video:
        turns = list(video)
    assert len(turns) == 4
    assert flat(numbers(turns))[:4] == [0, 12, 25, 37]
    assert video.skipped.num_clock_jumps == 1
    assert "1 jump of the clock" in video.skipped.describe()


def test_a_change_of_resolution_is_counted(tmp_path, write_clip, regular_times, numbers):
    small = write_clip(tmp_path / "small.ts", regular_times(25, 60, start_s=10), size=(64, 48))
    large = write_clip(tmp_path / "large.ts", regular_times(25, 65, start_s=10 + Fraction(60, 25)), size=(128, 96))
    joined = tmp_path / "joined.ts"
    joined.write_bytes(small.read_bytes() + large.read_bytes())
    with open_video(joined) as video:
        turns = list(video)
    assert [turn.frames.shape[2:] for turn in turns] == [(48, 64)] * 2 + [(96, 128)] * 3
    assert flat(numbers(turns)) == [0, 12, 25, 37, 50, 2, 15, 27, 40, 52]
    assert video.skipped.num_resolution_changes == 1
    assert "size changed 1 time" in video.skipped.describe()


@pytest.mark.parametrize("container", ["mp4", "ts", "mkv"])
@pytest.mark.parametrize("start_s", [0.3, 4.0, 7.5])
def test_reading_may_start_anywhere(tmp_path, write_clip, regular_times, numbers, expected, container, start_s):
    times_s = regular_times(25, 225, start_s=50)
    path = write_clip(tmp_path / f"clip.{container}", times_s)
    with open_video(path, start_s=start_s) as video:
        turns = list(video)
    assert [(s.index, s.start_s) for s in turns] == [(i, start_s + i) for i in range(len(turns))]
    assert turns[-1].end_s >= 9.0 > turns[-1].start_s
    times = sample_times(2 * len(turns), start_s=Fraction(str(start_s)))
    assert flat(numbers(turns)) == expected(times_s, times)
    assert video.skipped.describe() is None


@pytest.mark.parametrize("container", ["mp4", "h264"])
def test_a_start_beyond_the_end_is_an_error(tmp_path, write_clip, regular_times, container):
    path = write_clip(tmp_path / f"clip.{container}", regular_times(25, 50))
    with pytest.raises(VideoError, match="ends before start_s = 60"):
        list(open_video(path, start_s=60))


def test_cover_art_is_not_the_video(tmp_path, write_clip, regular_times, numbers):
    clip = write_clip(tmp_path / "clip.mp4", regular_times(25, 50))
    covered = tmp_path / "covered.mp4"
    with av.open(str(clip)) as source, av.open(str(covered), "w") as target:
        cover = target.add_stream("mjpeg", rate=1)
        cover.width, cover.height, cover.pix_fmt = 320, 240, "yuvj420p"
        cover.disposition = av.stream.Disposition.attached_pic
        copy = target.add_stream_from_template(source.streams.video[0])
        target.mux(cover.encode(av.VideoFrame.from_ndarray(np.zeros((240, 320, 3), np.uint8), format="rgb24")))
        for packet in source.demux(video=0):
            if packet.dts is not None:
                packet.stream = copy
                target.mux(packet)
    turns = list(open_video(covered))
    assert numbers(turns) == [[0, 12], [25, 37]]


def test_names_with_colons_spaces_and_percents_open(tmp_path, write_clip, regular_times, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name in ("a b=c, d.mp4", "http:odd.mp4", "50%02d.mp4"):
        path = write_clip(tmp_path / "plain.mp4", regular_times(25, 25)).rename(tmp_path / name)
        assert len(list(open_video(path.name))) == 1


def test_info_holds_the_metadata_of_the_file(tmp_path, write_clip, regular_times):
    info = open_video(write_clip(tmp_path / "clip.mp4", regular_times(50, 125), rate=50)).info
    assert (info.width, info.height, info.codec, info.rotation) == (64, 48, "h264", 0)
    assert (info.duration_s, info.average_fps) == pytest.approx((2.5, 50.0))


@pytest.mark.parametrize(
    "settings", [{"fps": -2}, {"turn_s": 0}, {"prefetch": 0}, {"decoder": "cinema"}, {"start_s": -1}]
)
def test_settings_out_of_range_are_rejected_before_the_file_is_opened(settings):
    with pytest.raises(ConfigError, match=next(iter(settings))):
        open_video("no_such_file.mp4", **settings)


@pytest.mark.parametrize("fps", [1, 2])
@pytest.mark.parametrize("decoder", ["pyav", "decord"])
def test_frames_are_channels_last_in_memory(tmp_path, write_clip, regular_times, decoder, fps):
    path = write_clip(tmp_path / "clip.mp4", regular_times(25, 50), rate=25)
    with open_video(path, decoder=decoder, fps=fps) as video:
        frames = next(iter(video)).frames
    width = frames.shape[-1]
    assert frames.shape[:2] == (fps, 3)
    assert frames.stride()[1:] == (1, 3 * width, 3)
