"""decord must read the same as PyAV, or fail with one line."""

import sys
from fractions import Fraction

import numpy as np
import pytest
import torch

from streamingvlm.errors import VideoError
from streamingvlm.video import open_video

pytest.importorskip("decord", reason="decord has wheels for Linux on x86-64 alone")


def assert_same(path, **settings):
    by_pyav = list(open_video(path, **settings))
    by_decord = list(open_video(path, decoder="decord", **settings))
    assert [(s.index, s.start_s, s.end_s, s.num_repeated) for s in by_decord] == [
        (s.index, s.start_s, s.end_s, s.num_repeated) for s in by_pyav
    ]
    for mine, theirs in zip(by_decord, by_pyav, strict=True):
        assert torch.equal(mine.frames, theirs.frames)
    return by_decord


@pytest.mark.parametrize(
    "rate", [Fraction(24000, 1001), 25, 30, Fraction(60000, 1001)], ids=lambda r: f"{float(r):.3f}"
)
def test_ordinary_files_give_the_same_turns(tmp_path, write_clip, regular_times, rate):
    path = write_clip(tmp_path / "clip.mp4", regular_times(rate, int(rate * 5)), rate=rate)
    assert len(assert_same(path)) == 5


@pytest.mark.parametrize(
    ("codec", "options"),
    [
        ("libx265", {"x265-params": "log-level=none:keyint=20:open-gop=1"}),
        ("libx264", {"x264-params": "open-gop=1:bframes=3:keyint=20"}),
        ("libx264", {"x264-params": "intra-refresh=1:keyint=20"}),
        ("mpeg4", {"bf": "2"}),
    ],
    ids=["hevc", "open-gop", "intra-refresh", "mpeg4"],
)
def test_keyframes_that_are_no_clean_start_give_the_same_turns(tmp_path, write_clip, regular_times, codec, options):
    path = write_clip(tmp_path / "clip.mp4", regular_times(25, 150), codec=codec, codec_options=options)
    assert len(assert_same(path)) == 6


def test_variable_frame_rate_gives_the_same_turns(tmp_path, write_clip):
    steps = np.random.default_rng(5).choice([1500, 3003, 9000, 40000], size=80)
    times_s = [Fraction(int(tick), 90000) for tick in np.concatenate([[0], np.cumsum(steps)])]
    assert len(assert_same(write_clip(tmp_path / "screen.mp4", times_s))) > 5


def test_rotation_odd_sizes_late_starts_and_other_rates(tmp_path, write_clip, regular_times):
    phone = write_clip(tmp_path / "phone.mp4", regular_times(30, 90), rotation=90, rate=30)
    assert_same(phone)
    late = write_clip(tmp_path / "late.mp4", regular_times(25, 100, start_s=7), size=(51, 39), pix_fmt="yuv444p")
    assert_same(late, fps=1.5, turn_s=1.2)
    assert_same(late, start_s=1.5)


def test_a_transport_stream_is_rejected(tmp_path, write_clip, regular_times):
    path = write_clip(tmp_path / "clip.ts", regular_times(25, 50))
    with pytest.raises(VideoError, match="use decoder 'pyav'"):
        open_video(path, decoder="decord")


def test_damage_ends_in_a_line_that_names_the_remedy(tmp_path, write_clip, regular_times, damage, cut):
    fast = {"movflags": "faststart"}
    corrupt = damage(write_clip(tmp_path / "a.mp4", regular_times(25, 250), muxer_options=fast), at=0.5, length=0.1)
    with pytest.raises(VideoError, match=r"damaged or cut off.*use decoder 'pyav'"):
        list(open_video(corrupt, decoder="decord"))
    short = cut(write_clip(tmp_path / "b.mp4", regular_times(25, 250), muxer_options=fast), keep=0.6)
    with pytest.raises(VideoError, match=r"damaged or cut off.*use decoder 'pyav'"):
        list(open_video(short, decoder="decord"))


@pytest.mark.parametrize(("decoder", "module"), [("decord", "decord"), ("pyav", "av")])
def test_a_decoder_that_is_not_installed_is_named(tmp_path, write_clip, regular_times, monkeypatch, decoder, module):
    path = write_clip(tmp_path / "clip.mp4", regular_times(25, 25))
    monkeypatch.setitem(sys.modules, module, None)
    monkeypatch.delitem(sys.modules, f"streamingvlm.video.{decoder}", raising=False)
    with pytest.raises(VideoError, match=f"not installed.*pip install {module}"):
        open_video(path, decoder=decoder)
