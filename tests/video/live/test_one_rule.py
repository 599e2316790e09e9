"""One numbered clip through every door: a sample is the newest frame at or before its moment."""

import base64
import sys
import time
from fractions import Fraction
from itertools import islice
from types import SimpleNamespace

import pytest
import torch
from live_sources import WebServer, ffmpeg
from numbered_pictures import picture
from rtsp_server import RtspServer

from streamingvlm.config import LiveConfig, VideoConfig
from streamingvlm.errors import VideoError
from streamingvlm.serving.chat_requests import ChatRequest, clip_turns
from streamingvlm.serving.server_config import ServerLimits
from streamingvlm.video import PushedFrames, open_source, open_video

RATES = [2, 5, 8, 12, 24, 25, Fraction(30000, 1001)]
SECONDS = 3
MOMENTS = [Fraction(k, 2) for k in range(2 * SECONDS)]


def seen(turns, numbers):
    """Return the number of the frame at each moment; the last turn may be cut off by the end."""
    return [number for turn in numbers(turns) for number in turn][: len(MOMENTS)]


@pytest.fixture(params=RATES, ids=lambda rate: f"{float(rate):.4g}")
def times_s(request, regular_times):
    return regular_times(request.param, round(SECONDS * request.param))


@pytest.fixture
def rule(times_s, expected):
    return expected(times_s, MOMENTS)


@pytest.mark.parametrize("decoder", ["pyav", "decord"])
def test_a_file(tmp_path, write_clip, times_s, rule, numbers, decoder):
    if decoder == "decord":
        pytest.importorskip("decord", reason="decord has wheels for Linux on x86-64 alone")
    path = write_clip(tmp_path / "clip.mp4", times_s)
    assert seen(open_video(path, decoder=decoder), numbers) == rule


def test_frames_pushed_at_their_times(times_s, rule, numbers):
    frames = PushedFrames(max_frames=len(times_s))
    for number, time_s in enumerate(times_s):
        frames.push(torch.from_numpy(picture(number, 64, 48)).permute(2, 0, 1), captured_s=12345.6 + float(time_s))
    frames.close()
    with open_source(frames, live=LiveConfig(policy="wait")) as video:
        assert seen(video, numbers) == rule


@pytest.mark.parametrize("container", ["ts", "mkv"])
def test_a_pipe(tmp_path, write_clip, times_s, rule, numbers, container, monkeypatch):
    path = write_clip(tmp_path / f"clip.{container}", times_s)
    with open(path, "rb") as pipe:
        monkeypatch.setattr(sys, "stdin", SimpleNamespace(buffer=pipe))
        with open_source("-") as video:
            assert seen(video, numbers) == rule


def test_http(tmp_path, write_clip, times_s, rule, numbers):
    write_clip(tmp_path / "clip.mp4", times_s, muxer_options={"movflags": "faststart"})
    with WebServer(tmp_path) as server, open_source(f"{server.address}/clip.mp4") as video:
        assert seen(video, numbers) == rule


def test_hls(tmp_path, write_clip, times_s, rule, numbers):
    segments = ["-c", "copy", "-f", "hls", "-hls_playlist_type", "vod", "-hls_time", "1", tmp_path / "clip.m3u8"]
    with ffmpeg("-i", write_clip(tmp_path / "clip.mp4", times_s), *segments) as process:
        process.wait(30)
    with WebServer(tmp_path) as server, open_source(f"{server.address}/clip.m3u8") as video:
        assert seen(video, numbers) == rule


def test_rtsp_from_wherever_it_begins(camera_clip, numbers):
    server = RtspServer(camera_clip, epoch_s=time.time()).start()
    try:
        with open_source(f"rtsp://127.0.0.1:{server.port}/stream", live=LiveConfig(policy="coalesce")) as video:
            shown = [number for turn in numbers(islice(video, 4)) for number in turn]
    finally:
        server.close()
    assert [number - shown[0] for number in shown] == [25 * k // 2 for k in range(8)]


def test_the_clip_of_a_chat(tmp_path, write_clip, times_s, rule, numbers):
    data = base64.b64encode(write_clip(tmp_path / "clip.mp4", times_s).read_bytes()).decode()
    part = {"type": "video_url", "video_url": {"url": f"data:video/mp4;base64,{data}"}}
    request = ChatRequest(messages=[{"role": "user", "content": [part]}])
    turns = clip_turns(request, tmp_path, VideoConfig(), ServerLimits())
    assert seen([turn.video for turn in turns], numbers) == rule


def test_a_file_played_as_if_it_were_live(tmp_path, write_clip, regular_times, expected, numbers):
    times_s = regular_times(24, 24 * SECONDS)
    path = write_clip(tmp_path / "clip.mp4", times_s, rate=24)
    with open_source(path, live=LiveConfig(policy="drop")) as video:
        assert seen(video, numbers) == expected(times_s, MOMENTS)


def test_an_mp4_whose_index_cannot_be_reached_names_what_is_needed(
    tmp_path, write_noisy_clip, regular_times, monkeypatch
):
    path = write_noisy_clip(tmp_path / "clip.mp4", regular_times(25, 250))  # more than FFmpeg keeps of a stream
    line = r"is an mp4 with its index at the end.*serve it with Range requests.*faststart.*-f mpegts"
    with WebServer(tmp_path) as server, pytest.raises(VideoError, match=line):
        open_source(f"{server.address}/clip.mp4")
    with open(path, "rb") as pipe:
        monkeypatch.setattr(sys, "stdin", SimpleNamespace(buffer=pipe))
        with pytest.raises(VideoError, match=line):
            open_source("-")
