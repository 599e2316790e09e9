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

SOON = LiveConfig(policy="coalesce", retry_min_s=0.05, retry_max_s=0.2, stall_timeout_s=1.0)
CLIP_S = 30


@pytest.fixture
def camera(camera_clip):
    """Switch on cameras at a port; all are switched off in the end."""
    cameras = []

    def switch_on(**settings):
        cameras.append(RtspServer(camera_clip, **settings).start())
        return cameras[-1]

    yield switch_on
    for each in cameras:
        each.close()


def watching_threads():
    return [thread for thread in threading.enumerate() if thread.name.startswith("watch ")]


def wait_until(condition, patience_s=20.0):
    """Wait for another thread; a hang fails the test in place of stopping it."""
    deadline_s = time.monotonic() + patience_s
    while not condition():
        assert time.monotonic() < deadline_s, "the other thread did not get there"
        time.sleep(0.02)


def true_age_s(number, epoch_s):
    """Seconds since the picture of this number was shown last."""
    return (time.time() - epoch_s - number / FPS) % CLIP_S


def test_rtsp_gives_seconds_of_new_pictures_in_real_time(camera, numbers):
    epoch_s = time.time()
    server = camera(epoch_s=epoch_s)
    with open_source(f"rtsp://127.0.0.1:{server.port}/stream", live=SOON) as video:
        assert (video.info.width, video.info.height, video.info.codec) == (64, 48, "h264")
        assert video.policy == "coalesce"
        for second in islice(video, 4):
            [[_, newest]] = numbers([second])
            reported_s = time.monotonic() - second.captured_s
            assert reported_s == pytest.approx(true_age_s(newest, epoch_s), abs=0.1)
            shown = numbers([second])[0]
            assert len(set(shown)) == 2
    assert watching_threads() == []


def test_a_camera_that_is_switched_off_and_on_leaves_a_gap_of_that_length(camera, numbers, caplog):
    epoch_s = time.time()
    server = camera(epoch_s=epoch_s)
    seconds = []
    with open_source(f"rtsp://127.0.0.1:{server.port}/stream", live=SOON) as video:
        for second in video:
            seconds.append(second)
            if len(seconds) == 2:
                server.close()
                off_s = time.monotonic()
                time.sleep(2.5)
                server = camera(port=server.port, epoch_s=epoch_s)
                on_s = time.monotonic()
            if second.start_s > seconds[0].start_s + 6:
                break
        assert video.skipped.num_reconnects == 1
        assert on_s - off_s - 0.5 < video.skipped.lost_s < on_s - off_s + 5  # half a second is what a frame stands for
        assert "connected again 1 time; no picture for" in video.skipped.describe()
    gap_s = max(then.start_s - before.end_s for before, then in pairwise(seconds))
    assert 1 <= gap_s <= 5
    # Stream time and the numbers of the pictures tell the same, before and after: nothing was papered over.
    shown_s = [(s.captured_s, numbers([s])[0][-1] / FPS) for s in (seconds[0], seconds[-1])]
    (before_s, first), (after_s, last) = shown_s
    assert (last - first) % CLIP_S == pytest.approx(after_s - before_s, abs=0.1)
    assert "broke off" in caplog.text and "is back after" in caplog.text


def test_a_camera_that_stalls_is_broken(camera):
    server = camera(epoch_s=time.time())
    with open_source(f"rtsp://127.0.0.1:{server.port}/stream", live=SOON) as video:
        next(video)
        server.is_stalled.set()
        stalled_s = time.monotonic()
        wait_until(lambda: server.num_plays > 1)
        assert time.monotonic() - stalled_s > SOON.stall_timeout_s / 2
        server.is_stalled.clear()
        assert next(second for second in video if second.captured_s > stalled_s + 1)
        assert video.skipped.num_reconnects == 1


def test_when_a_camera_stays_away_the_stream_ends_with_an_error_if_it_is_told_to(camera):
    server = camera(epoch_s=time.time())
    live = LiveConfig(policy="wait", retry_min_s=0.05, retry_max_s=0.1, retry_for_s=0.3)
    with open_source(f"rtsp://me:secret@127.0.0.1:{server.port}/stream", live=live) as video:
        next(video)
        server.close()
        with pytest.raises(VideoError, match=r"live\.retry_for_s = 0\.3 s") as refusal:
            list(video)
    assert "secret" not in str(refusal.value) and "\n" not in str(refusal.value)


def test_user_and_password_are_used_and_never_told(camera, caplog):
    server = camera(epoch_s=time.time(), credentials="me:se/cret")
    with open_source(f"rtsp://me:se%2Fcret@127.0.0.1:{server.port}/stream?key=hidden", live=SOON) as video:
        next(video)
        server.break_off()
        next(video)
        while video.skipped.num_reconnects == 0:
            next(video)
        assert [thread.name for thread in watching_threads() if "cret" in thread.name or "hidden" in thread.name] == []
    with pytest.raises(VideoError, match=r"401.*user:password@host") as refusal:
        open_source(f"rtsp://me:wrongword@127.0.0.1:{server.port}/stream?key=hidden")
    told = caplog.text + str(refusal.value) + repr(refusal.value) + str(refusal.value.__cause__)
    assert "127.0.0.1" in told
    assert not [word for word in ("cret", "hidden", "wrongword") if word in told]


@pytest.mark.parametrize("scheme", ["rtsp", "rtmp", "http"])
def test_where_nobody_answers_there_is_one_line_at_once(scheme):
    with pytest.raises(VideoError, match=r"connection refused.*check the address") as refusal:
        open_source(f"{scheme}://me:secret@127.0.0.1:1/stream")
    assert "secret" not in str(refusal.value) and "\n" not in str(refusal.value)


def test_memory_in_front_of_a_model_that_never_comes_stays_bounded(camera):
    server = camera(epoch_s=time.time())
    live = LiveConfig(policy="coalesce", max_frames=4)
    with open_source(f"rtsp://127.0.0.1:{server.port}/stream", fps=8, turn_s=0.25, live=live) as video:
        time.sleep(3)
        assert video._backlog.num_frames <= 4
        turn = next(video)
        assert turn.end_s - turn.start_s > 2


def test_a_reader_that_is_dropped_ends_its_thread_and_connection(camera):
    server = camera(epoch_s=time.time())
    video = open_source(f"rtsp://127.0.0.1:{server.port}/stream", live=SOON)
    next(video)
    before = len(psutil.Process().net_connections())
    del video
    gc.collect()
    wait_until(lambda: not watching_threads())
    assert len(psutil.Process().net_connections()) < before


def test_rtmp_from_ffmpegs_server(camera_clip, numbers):
    with WebServer() as free:  # a port that nobody has
        port = free.server_address[1]
    address = f"rtmp://127.0.0.1:{port}/live/match"
    sender = ["-re", "-i", camera_clip, "-c", "copy", "-f", "flv", "-listen", "1", address]
    with ffmpeg(*sender), open_when_there(address) as video:
        seconds = list(islice(video, 2))
        assert watched_in_order(numbers(seconds))
        assert video.policy == "drop"


def open_when_there(address, **settings):
    deadline_s = time.monotonic() + 30
    while True:
        try:
            return open_source(address, **settings)
        except VideoError:
            assert time.monotonic() < deadline_s, f"nobody answers at {address}"
            time.sleep(0.1)


def watched_in_order(seconds_of_numbers):
    shown = [number for second in seconds_of_numbers for number in second]
    return len(shown) == len(set(shown)) and shown == sorted(shown)


def test_hls_is_shown_second_by_second_though_it_comes_in_segments(camera_clip, tmp_path, numbers):
    playlist = LivePlaylist(camera_clip, tmp_path, segment_s=2)
    with WebServer(tmp_path) as server:
        server.pages["/live.m3u8"] = playlist
        with open_source(f"{server.address}/live.m3u8", live=LiveConfig(policy="drop", retry_max_s=0.5)) as video:
            seconds = list(islice(video, 4))
            assert [s.start_s for s in seconds] == [0, 1, 2, 3]
            assert sum(s.dropped_s for s in seconds) == 0
            # From one second to the next 25 pictures, at no frame more than one away.
            newest = [shown[-1] for shown in numbers(seconds)]
            assert {abs(then - before - FPS) <= 1 for before, then in pairwise(newest)} == {True}


def test_hls_that_breaks_off_shows_nothing_twice_and_ends_when_it_says_so(camera_clip, tmp_path, numbers, caplog):
    playlist = LivePlaylist(camera_clip, tmp_path, segment_s=1)
    with WebServer(tmp_path) as server:
        server.pages["/live.m3u8"] = playlist
        port = server.server_address[1]
        video = open_source(f"{server.address}/live.m3u8", live=SOON)
        seconds = list(islice(video, 2))
    wait_until(lambda: "broke off" in caplog.text)
    with WebServer(tmp_path, port) as server, video:
        server.pages["/live.m3u8"] = playlist
        while video.skipped.num_reconnects == 0:
            seconds.append(next(video))
        seconds += islice(video, 2)
        playlist.ends_s = time.monotonic() + 1
        seconds += list(video)
    shown = [number for second in numbers(seconds) for number in second]
    assert shown == sorted(shown)
    assert len(set(shown)) > len(shown) / 2
    assert playlist.num_segments * FPS > shown[-1]


def test_a_recording_behind_an_address_is_read_as_a_file_is(camera_clip, numbers):
    with (
        WebServer(camera_clip.parent) as server,
        open_source(f"{server.address}/{camera_clip.name}", fps=1, turn_s=2) as video,
    ):
        assert (video.policy, video.info.duration_s) == ("wait", CLIP_S)
        seconds = list(video)
    assert [s.start_s for s in seconds] == list(range(0, CLIP_S, 2))
    assert all(s.frames.shape == (2, 3, 48, 64) for s in seconds)
    assert watched_in_order(numbers(seconds))


PLAYLIST = "#EXTM3U\n#EXT-X-VERSION:3\n#EXT-X-TARGETDURATION:60\n#EXTINF:60,\n{}\n#EXT-X-ENDLIST\n"


@pytest.mark.parametrize(
    "page",
    [
        lambda clip: PLAYLIST.format(f"file://{clip}").encode(),
        lambda clip: PLAYLIST.format(f"concat:{clip}|{clip}").encode(),
        lambda clip: PLAYLIST.format(f"subfile,,start,0,end,100000,,:{clip}").encode(),
        lambda clip: f"ffconcat version 1.0\nfile {clip}\n".encode(),
        lambda clip: f"ffconcat version 1.0\nfile file:{clip}\n".encode(),
        lambda clip: f"file://{clip}",  # an address to go to instead
        lambda clip: b"v=0\no=- 0 0 IN IP4 127.0.0.1\ns=x\nc=IN IP4 127.0.0.1\nt=0 0\nm=video 5004 RTP/AVP 33\n",
    ],
    ids=["file", "concat", "subfile", "ffconcat", "ffconcat-file", "redirection", "sdp"],
)
def test_from_the_network_no_file_and_no_other_protocol_is_reached(page, camera_clip, tmp_path, monkeypatch):
    clip = camera_clip
    with WebServer(tmp_path) as server:
        server.pages["/trap"] = lambda: page(clip)
        with pytest.raises(VideoError, match="/trap") as refusal:
            open_source(f"{server.address}/trap")
        assert "\n" not in str(refusal.value)
        # The trap works: without the limits FFmpeg follows it, or at least tries to.
        assert server.asked_for == ["/trap"]


def test_the_traps_are_traps(camera_clip, tmp_path):
    """Where FFmpeg is not limited, the same pages lead it to the file."""
    import av

    for name, text in (
        ("list.m3u8", PLAYLIST.format(f"file://{camera_clip}")),
        ("list.txt", f"ffconcat version 1.0\nfile {camera_clip}\n"),
    ):
        (tmp_path / name).write_text(text)
        options = {"protocol_whitelist": "file,http,tcp", "safe": "0", "allowed_extensions": "ALL"}
        with av.open(str(tmp_path / name), options=options | {"extension_picky": "0"}) as container:
            assert container.streams.video[0].width == 64


def test_a_server_whose_certificate_nobody_vouches_for_is_refused(camera_clip, tmp_path):
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
        with pytest.raises(VideoError, match="cannot be watched"):
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
            seconds = list(video)
    assert [s.start_s for s in seconds] == list(range(0, CLIP_S, 2))
    assert watched_in_order(numbers(seconds))


def test_a_pipe_that_says_nothing_can_be_left(monkeypatch, camera_clip):
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
        assert time.monotonic() - began_s < 0.9  # no thread had to be left behind
    os.close(write_end)
    assert watching_threads() == []


def test_what_is_piped_and_no_video_is_told_what_to_send(monkeypatch, tmp_path):
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
def test_a_camera_is_opened_as_its_system_wants_it(platform, device, settings, expected):
    assert connection.camera_input(device, LiveConfig(**settings), platform) == expected


def test_a_system_without_cameras_names_another_way():
    with pytest.raises(VideoError, match="PushedFrames"):
        connection.camera_input("0", LiveConfig(), "aix")


def test_a_camera_that_is_not_there_is_told_in_one_line():
    with pytest.raises(VideoError, match=r"webcam:99 cannot be watched.*check that the camera is there") as refusal:
        open_source("webcam:99")
    assert "\n" not in str(refusal.value)


def test_a_camera_in_real_time_by_ffmpegs_own_test_device(monkeypatch):
    """The true camera needs hardware; all but its driver is exercised by the device that FFmpeg has for tests."""
    drawn = ("testsrc=size=160x120:rate=30,realtime", "lavfi", {})
    monkeypatch.setattr(connection, "camera_input", lambda device, config: drawn)
    with open_source("webcam", live=LiveConfig(policy="drop")) as video:
        began_s = time.monotonic()
        seconds = list(islice(video, 3))
        assert 1.5 < time.monotonic() - began_s < 10
    assert seconds[-1].frames.shape == (2, 3, 120, 160)
    assert [s.start_s for s in seconds] == [0, 1, 2]


def test_a_file_is_shown_as_if_it_were_live_where_a_policy_is_asked_for(camera_clip):
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
def test_a_setting_that_makes_no_sense_is_named(settings):
    [name] = settings
    with pytest.raises(ConfigError, match=rf"live\.{name}"):
        LiveConfig(**settings)


def test_standard_input_is_read_as_it_comes():
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
