"""Live sources against real servers on loopback: RTSP, RTMP, HLS, HTTP, a pipe, a camera."""

import gc
import io
import os
import subprocess
import sys
import threading
import time
from itertools import islice, pairwise
from types import SimpleNamespace

import psutil
import pytest
from live_sources import FPS, LivePlaylist, WebServer, ffmpeg
from rtsp_server import RtspServer

from streamingvlm.config import LiveConfig
from streamingvlm.errors import ConfigError, VideoError
from streamingvlm.video import open_source
from streamingvlm.video.live import connection

FAST_RETRIES = LiveConfig(policy="coalesce", retry_min_s=0.05, retry_max_s=0.2, stall_timeout_s=1.0)
CLIP_S = 30


@pytest.fixture
def camera(camera_clip):
    """Start cameras at a port; all are closed at the end."""
    cameras = []

    def start(**settings):
        cameras.append(RtspServer(camera_clip, **settings).start())
        return cameras[-1]

    yield start
    for each in cameras:
        each.close()


def watching_threads():
    return [thread for thread in threading.enumerate() if thread.name.startswith("watch ")]


def wait_until(condition, patience_s=20.0):
    """Wait for another thread; a hang fails the test."""
    deadline_s = time.monotonic() + patience_s
    while not condition():
        assert time.monotonic() < deadline_s, "the other thread did not get there"
        time.sleep(0.02)


def true_age_s(number, epoch_s):
    """Seconds since the frame of this number was last shown."""
    return (time.time() - epoch_s - number / FPS) % CLIP_S


def test_rtsp_yields_turns_of_new_frames_in_real_time(camera, numbers):
    epoch_s = time.time()
    server = camera(epoch_s=epoch_s)
    with open_source(f"rtsp://127.0.0.1:{server.port}/stream", live=FAST_RETRIES) as video:
        assert (video.info.width, video.info.height, video.info.codec) == (64, 48, "h264")
        assert video.policy == "coalesce"
        for turn in islice(video, 4):
            [[_, newest]] = numbers([turn])
            reported_s = time.monotonic() - turn.captured_s
            assert reported_s == pytest.approx(true_age_s(newest, epoch_s), abs=0.1)
            shown = numbers([turn])[0]
            assert len(set(shown)) == 2
    assert watching_threads() == []


def test_a_camera_that_goes_off_and_on_leaves_a_gap_of_that_length(camera, numbers, caplog):
    epoch_s = time.time()
    server = camera(epoch_s=epoch_s)
    turns = []
    with open_source(f"rtsp://127.0.0.1:{server.port}/stream", live=FAST_RETRIES) as video:
        for turn in video:
            turns.append(turn)
            if len(turns) == 2:
                server.close()
                off_s = time.monotonic()
                time.sleep(2.5)
                server = camera(port=server.port, epoch_s=epoch_s)
                on_s = time.monotonic()
            if turn.start_s > turns[0].start_s + 6:
                break
        assert video.skipped.num_reconnects == 1
        assert on_s - off_s - 0.5 < video.skipped.lost_s < on_s - off_s + 5  # a frame covers half a second
        assert "reconnected 1 time; no frame for" in video.skipped.describe()
    gap_s = max(then.start_s - before.end_s for before, then in pairwise(turns))
    assert 1 <= gap_s <= 5
    # Stream time and the numbers of the frames agree, before and after the gap.
    shown_s = [(s.captured_s, numbers([s])[0][-1] / FPS) for s in (turns[0], turns[-1])]
    (before_s, first), (after_s, last) = shown_s
    assert (last - first) % CLIP_S == pytest.approx(after_s - before_s, abs=0.1)
    assert "disconnected" in caplog.text and "reconnected after" in caplog.text


def test_a_camera_that_stalls_is_broken(camera):
    server = camera(epoch_s=time.time())
    with open_source(f"rtsp://127.0.0.1:{server.port}/stream", live=FAST_RETRIES) as video:
        next(video)
        server.is_stalled.set()
        stalled_s = time.monotonic()
        wait_until(lambda: server.num_plays > 1)
        assert time.monotonic() - stalled_s > FAST_RETRIES.stall_timeout_s / 2
        server.is_stalled.clear()
        assert next(turn for turn in video if turn.captured_s > stalled_s + 1)
        assert video.skipped.num_reconnects == 1


def test_the_stream_ends_with_an_error_after_retry_for_s(camera):
    server = camera(epoch_s=time.time())
    live = LiveConfig(policy="wait", retry_min_s=0.05, retry_max_s=0.1, retry_for_s=0.3)
    with open_source(f"rtsp://me:secret@127.0.0.1:{server.port}/stream", live=live) as video:
        next(video)
        server.close()
        with pytest.raises(VideoError, match=r"live\.retry_for_s = 0\.3 s") as caught:
            list(video)
    assert "secret" not in str(caught.value) and "\n" not in str(caught.value)


def test_user_and_password_are_used_and_never_shown(camera, caplog):
    server = camera(epoch_s=time.time(), credentials="me:se/cret")
    with open_source(f"rtsp://me:se%2Fcret@127.0.0.1:{server.port}/stream?key=hidden", live=FAST_RETRIES) as video:
        next(video)
        server.disconnect_clients()
        next(video)
        while video.skipped.num_reconnects == 0:
            next(video)
        assert [thread.name for thread in watching_threads() if "cret" in thread.name or "hidden" in thread.name] == []
    with pytest.raises(VideoError, match=r"401.*user:password@host") as caught:
        open_source(f"rtsp://me:wrongword@127.0.0.1:{server.port}/stream?key=hidden")
    texts = caplog.text + str(caught.value) + repr(caught.value) + str(caught.value.__cause__)
    assert "127.0.0.1" in texts
    assert not [word for word in ("cret", "hidden", "wrongword") if word in texts]


@pytest.mark.parametrize("scheme", ["rtsp", "rtmp", "http"])
def test_a_refused_connection_is_one_line_at_once(scheme):
    with pytest.raises(VideoError, match=r"connection refused.*check the address") as caught:
        open_source(f"{scheme}://me:secret@127.0.0.1:1/stream")
    assert "secret" not in str(caught.value) and "\n" not in str(caught.value)


def test_the_backlog_of_a_model_that_takes_nothing_stays_bounded(camera):
    server = camera(epoch_s=time.time())
    live = LiveConfig(policy="coalesce", max_frames=4)
    with open_source(f"rtsp://127.0.0.1:{server.port}/stream", fps=8, turn_s=0.25, live=live) as video:
        time.sleep(3)
        assert video._backlog.num_frames <= 4
        turn = next(video)
        assert turn.end_s - turn.start_s > 2


def test_a_garbage_collected_reader_ends_its_thread_and_connection(camera):
    server = camera(epoch_s=time.time())
    video = open_source(f"rtsp://127.0.0.1:{server.port}/stream", live=FAST_RETRIES)
    next(video)
    before = len(psutil.Process().net_connections())
    del video
    gc.collect()
    wait_until(lambda: not watching_threads())
    assert len(psutil.Process().net_connections()) < before


def test_rtmp_from_ffmpegs_server(camera_clip, numbers):
    with WebServer() as free:  # a port that is free
        port = free.server_address[1]
    address = f"rtmp://127.0.0.1:{port}/live/match"
    sender = ["-re", "-i", camera_clip, "-c", "copy", "-f", "flv", "-listen", "1", address]
    with ffmpeg(*sender), open_when_there(address) as video:
        turns = list(islice(video, 2))
        assert watched_in_order(numbers(turns))
        assert video.policy == "drop"


def open_when_there(address, **settings):
    deadline_s = time.monotonic() + 30
    while True:
        try:
            return open_source(address, **settings)
        except VideoError:
            assert time.monotonic() < deadline_s, f"no answer at {address}"
            time.sleep(0.1)


def watched_in_order(seconds_of_numbers):
    shown = [number for turn in seconds_of_numbers for number in turn]
    return len(shown) == len(set(shown)) and shown == sorted(shown)


def test_hls_is_paced_turn_by_turn_though_it_arrives_in_segments(camera_clip, tmp_path, numbers):
    playlist = LivePlaylist(camera_clip, tmp_path, segment_s=2)
    with WebServer(tmp_path) as server:
        server.pages["/live.m3u8"] = playlist
        with open_source(f"{server.address}/live.m3u8", live=LiveConfig(policy="drop", retry_max_s=0.5)) as video:
            turns = list(islice(video, 4))
            assert [s.start_s for s in turns] == [0, 1, 2, 3]
            assert sum(s.dropped_s for s in turns) == 0
            # From one turn to the next 25 frames, give or take one.
            newest = [shown[-1] for shown in numbers(turns)]
            assert {abs(then - before - FPS) <= 1 for before, then in pairwise(newest)} == {True}


def test_hls_that_disconnects_repeats_nothing_and_ends_with_its_playlist(camera_clip, tmp_path, numbers, caplog):
    playlist = LivePlaylist(camera_clip, tmp_path, segment_s=1)
    with WebServer(tmp_path) as server:
        server.pages["/live.m3u8"] = playlist
        port = server.server_address[1]
        video = open_source(f"{server.address}/live.m3u8", live=FAST_RETRIES)
        turns = list(islice(video, 2))
    wait_until(lambda: "disconnected" in caplog.text)
    with WebServer(tmp_path, port) as server, video:
        server.pages["/live.m3u8"] = playlist
        while video.skipped.num_reconnects == 0:
            turns.append(next(video))
        turns += islice(video, 2)
        playlist.ends_s = time.monotonic() + 1
        turns += list(video)
    shown = [number for turn in numbers(turns) for number in turn]
    assert shown == sorted(shown)
    assert len(set(shown)) > len(shown) / 2
    assert playlist.num_segments * FPS > shown[-1]


def test_a_recording_at_an_address_is_read_like_a_file(camera_clip, numbers):
    with (
        WebServer(camera_clip.parent) as server,
        open_source(f"{server.address}/{camera_clip.name}", fps=1, turn_s=2) as video,
    ):
        assert (video.policy, video.info.duration_s) == ("wait", CLIP_S)
        turns = list(video)
    assert [s.start_s for s in turns] == list(range(0, CLIP_S, 2))
    assert all(s.frames.shape == (2, 3, 48, 64) for s in turns)
    assert watched_in_order(numbers(turns))


PLAYLIST = "#EXTM3U\n#EXT-X-VERSION:3\n#EXT-X-TARGETDURATION:60\n#EXTINF:60,\n{}\n#EXT-X-ENDLIST\n"


@pytest.mark.parametrize(
    "page",
    [
        lambda clip: PLAYLIST.format(f"file://{clip}").encode(),
        lambda clip: PLAYLIST.format(f"concat:{clip}|{clip}").encode(),
        lambda clip: PLAYLIST.format(f"subfile,,start,0,end,100000,,:{clip}").encode(),
        lambda clip: f"ffconcat version 1.0\nfile {clip}\n".encode(),
        lambda clip: f"ffconcat version 1.0\nfile file:{clip}\n".encode(),
        lambda clip: f"file://{clip}",  # a redirect
        lambda clip: b"v=0\no=- 0 0 IN IP4 127.0.0.1\ns=x\nc=IN IP4 127.0.0.1\nt=0 0\nm=video 5004 RTP/AVP 33\n",
    ],
    ids=["file", "concat", "subfile", "ffconcat", "ffconcat-file", "redirection", "sdp"],
)
def test_the_network_cannot_reach_files_or_other_protocols(page, camera_clip, tmp_path, monkeypatch):
    clip = camera_clip
    with WebServer(tmp_path) as server:
        server.pages["/trap"] = lambda: page(clip)
        with pytest.raises(VideoError, match="/trap") as caught:
            open_source(f"{server.address}/trap")
        assert "\n" not in str(caught.value)
        # The next test shows that FFmpeg follows these pages without the whitelists.
        assert server.requested == ["/trap"]


def test_the_traps_are_traps(camera_clip, tmp_path):
    """Without the whitelists the same pages lead FFmpeg to the file."""
    import av

    for name, text in (
        ("list.m3u8", PLAYLIST.format(f"file://{camera_clip}")),
        ("list.txt", f"ffconcat version 1.0\nfile {camera_clip}\n"),
    ):
        (tmp_path / name).write_text(text)
        options = {"protocol_whitelist": "file,http,tcp", "safe": "0", "allowed_extensions": "ALL"}
        with av.open(str(tmp_path / name), options=options | {"extension_picky": "0"}) as container:
            assert container.streams.video[0].width == 64


def test_a_server_with_an_untrusted_certificate_is_rejected(camera_clip, tmp_path):
    import ssl

    key, certificate = tmp_path / "key.pem", tmp_path / "certificate.pem"
    make_certificate(key, certificate)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate, key)
    server = WebServer(camera_clip.parent)
    server.socket = context.wrap_socket(server.socket, server_side=True)
    address = f"https://127.0.0.1:{server.server_address[1]}/{camera_clip.name}"
    server.handle_error = lambda *_: None
    with server:
        with pytest.raises(VideoError, match="cannot be opened"):
            open_source(address)
        with open_source(address, live=LiveConfig(verify_tls=False)) as video:
            assert next(video).index == 0


def make_certificate(key, certificate):
    command = "openssl req -x509 -newkey rsa:2048 -nodes -days 2 -subj /CN=127.0.0.1"
    subprocess.run(
        [*command.split(), "-keyout", key, "-out", certificate, "-addext", "subjectAltName=IP:127.0.0.1"],
        check=True,
        capture_output=True,
    )


@pytest.mark.parametrize("container", ["mpegts", "matroska", "flv", "h264"])
def test_a_pipe_is_read_to_its_end(container, camera_clip, numbers, monkeypatch):
    with ffmpeg("-i", camera_clip, "-c", "copy", "-f", container, "-", stdout=subprocess.PIPE) as sender:
        monkeypatch.setattr(sys, "stdin", SimpleNamespace(buffer=sender.stdout))
        with open_source("-", fps=1, turn_s=2) as video:
            assert (video.policy, video.info.codec) == ("wait", "h264")
            turns = list(video)
    assert [s.start_s for s in turns] == list(range(0, CLIP_S, 2))
    assert watched_in_order(numbers(turns))


def test_a_silent_pipe_can_be_closed(monkeypatch, camera_clip):
    read_end, write_end = os.pipe()
    os.set_blocking(write_end, False)
    with open(read_end, "rb") as pipe:
        monkeypatch.setattr(sys, "stdin", SimpleNamespace(buffer=pipe))
        with ffmpeg("-i", camera_clip, "-t", "4", "-c", "copy", "-f", "mpegts", "-", stdout=subprocess.PIPE) as sender:
            os.write(write_end, sender.stdout.read())
        video = open_source("-")
        next(video)
        began_s = time.monotonic()
        video.close()
        assert time.monotonic() - began_s < 0.9  # the thread was joined before JOIN_TIMEOUT_S
    os.close(write_end)
    assert watching_threads() == []


def test_a_pipe_without_video_names_the_formats_to_send(monkeypatch, tmp_path):
    (tmp_path / "text").write_text("no video\n" * 100)
    with open(tmp_path / "text", "rb") as pipe:
        monkeypatch.setattr(sys, "stdin", SimpleNamespace(buffer=pipe))
        with pytest.raises(VideoError, match=r"standard input.*mpegts"):
            open_source("-")


@pytest.mark.parametrize(
    ("platform", "device", "settings", "expected"),
    [
        ("linux", "1", {}, ("/dev/video1", "v4l2", {})),
        (
            "linux",
            "/dev/video4",
            {"camera_size": "1280x720", "camera_fps": 15},
            ("/dev/video4", "v4l2", {"video_size": "1280x720", "framerate": "15"}),
        ),
        ("darwin", "0", {}, ("0:none", "avfoundation", {"framerate": "30"})),
        ("win32", "Integrated Camera", {}, ("video=Integrated Camera", "dshow", {})),
    ],
)
def test_the_camera_input_of_each_platform(platform, device, settings, expected):
    assert connection.camera_input(device, LiveConfig(**settings), platform) == expected


def test_a_platform_without_cameras_names_the_alternative():
    with pytest.raises(VideoError, match="PushedFrames"):
        connection.camera_input("0", LiveConfig(), "aix")


def test_a_missing_camera_is_one_line():
    with pytest.raises(VideoError, match=r"webcam:99 cannot be opened.*check that the camera is connected") as caught:
        open_source("webcam:99")
    assert "\n" not in str(caught.value)


def test_a_camera_in_real_time_by_ffmpegs_own_test_device(monkeypatch):
    """A real camera needs hardware. FFmpeg's test device exercises everything except the driver."""
    drawn = ("testsrc=size=160x120:rate=30,realtime", "lavfi", {})
    monkeypatch.setattr(connection, "camera_input", lambda device, config: drawn)
    with open_source("webcam", live=LiveConfig(policy="drop")) as video:
        began_s = time.monotonic()
        turns = list(islice(video, 3))
        assert 1.5 < time.monotonic() - began_s < 10
    assert turns[-1].frames.shape == (2, 3, 120, 160)
    assert [s.start_s for s in turns] == [0, 1, 2]


def test_a_file_plays_in_real_time_under_a_live_policy(camera_clip):
    with open_source(camera_clip, live=LiveConfig(policy="drop")) as video:
        assert next(video).start_s == 0
        time.sleep(2.5)
        late = next(video)
        assert late.start_s in (2, 3) and late.dropped_s == late.start_s - 1
        assert 0 <= time.monotonic() - late.captured_s < 2
    with open_source(f"file://{camera_clip}") as video:
        assert [s.start_s for s in islice(video, 3)] == [0, 1, 2]


@pytest.mark.parametrize(
    "settings",
    [
        {"policy": "hurry"},
        {"rtsp_transport": "pigeon"},
        {"max_frames": 0},
        {"max_bytes": 0},
        {"stall_timeout_s": 0},
        {"retry_max_s": 0.1},
        {"retry_for_s": -1},
        {"camera_size": "large"},
        {"camera_fps": 0},
    ],
)
def test_an_invalid_setting_is_named(settings):
    [name] = settings
    with pytest.raises(ConfigError, match=rf"live\.{name}"):
        LiveConfig(**settings)


def test_standard_input_returns_available_bytes():
    read_end, write_end = os.pipe()
    with open(read_end, "rb") as pipe:
        stop = threading.Event()
        source = connection.StandardInput(pipe, stop.is_set)
        os.write(write_end, b"abc")
        assert source.read(100) == b"abc"
        stop.set()
        assert source.read(100) == b""
    os.close(write_end)
    with pytest.raises(io.UnsupportedOperation):
        connection.StandardInput(io.BytesIO(), stop.is_set)
