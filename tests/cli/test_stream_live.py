"""The command on live sources, a camera and a pipe; passwords are never shown."""

import json
import os
import signal
import socket
import subprocess
import sys
import time
from functools import partial
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from live_sources import ffmpeg, write_camera_file
from rtsp_server import RtspServer

import streamingvlm.cli.stream as stream_module

ROOT = Path(__file__).parents[2]
MATCH = ROOT / "streamingvlm" / "assets" / "pitch" / "match.mp4"

pytestmark = pytest.mark.usefixtures("folder")


@pytest.fixture
def stream_here(run_command):
    return partial(run_command, "stream")


@pytest.fixture(scope="module")
def camera(tmp_path_factory):
    """A camera with a password that shows a blinking light."""
    images = (np.full((112, 112, 3), 255 * (number // 10 % 2), np.uint8) for number in range(100))
    path = write_camera_file(tmp_path_factory.mktemp("camera") / "light.mp4", images, 10)
    server = RtspServer(path, epoch_s=time.time(), credentials="me:secret").start()
    yield server
    server.close()


def test_a_camera_streams_and_its_password_is_not_shown(camera, stream_here, folder):
    address = f"rtsp://me:secret@127.0.0.1:{camera.port}/garden?key=hidden"
    code, out, err = stream_here(address, "duration_s=3", "sampling=greedy", "live.policy=coalesce")
    assert code == 0, err
    names = {path.name for path in folder.iterdir()}
    assert names == {f"rtsp-127.0.0.1-{camera.port}-garden{suffix}" for suffix in (".vtt", ".srt", ".jsonl")}
    written = "".join(path.read_text() for path in folder.iterdir())
    assert not [word for word in ("secret", "hidden") for text in (out, err, written, *names) if word in text]
    [jsonl] = folder.glob("*.jsonl")
    _, *rows = [json.loads(row) for row in jsonl.read_text().splitlines()]
    assert all(0 < row["age_s"] < 60 for row in rows)
    assert "live: 0 s dropped" in err


@pytest.mark.parametrize(
    "words",
    [
        ["rtsp://me:secret@127.0.0.1:1/x=1"],
        ["rtsp://me:secret@127.0.0.1:1/x", "webcam"],
        ["gopher://me:secret@127.0.0.1/x"],
        ["https://me:secret@127.0.0.1:1/live.m3u8?a=1&b=${HOME}"],
        ["source=rtsp://me:secret@127.0.0.1:1/a,b"],
    ],
)
def test_a_failed_source_is_reported_in_one_line_without_the_password(words, stream_here):
    code, out, err = stream_here(*words, "output=none")
    assert (code, out) == (2, ""), err
    assert "secret" not in err
    *notes, error = err.splitlines()
    assert error.startswith("streamingvlm stream: ") and "://***@127.0.0.1" in error
    assert not any("stream.py" in note for note in notes), "one line of error"


def test_an_unknown_policy_is_named_before_the_model_loads(stream_here, monkeypatch):
    monkeypatch.setattr(stream_module, "load_model", lambda *_, **__: pytest.fail("the model was loaded"))
    code, _, err = stream_here("webcam", "live.policy=hurry")
    assert code == 2 and "live.policy=hurry" in err


def piped_clip():
    """Four seconds of the match as an MPEG transport stream."""
    with ffmpeg("-i", MATCH, "-t", "4", "-c", "copy", "-f", "mpegts", "-", stdout=subprocess.PIPE) as sender:
        return sender.stdout.read()


def test_a_pipe_streams_to_its_end_and_files_are_written(folder, stream_here, monkeypatch):
    (folder / "clip").write_bytes(piped_clip())
    with open(folder / "clip", "rb") as pipe:
        monkeypatch.setattr(sys, "stdin", SimpleNamespace(buffer=pipe))
        code, out, err = stream_here("-", "sampling=greedy")
    assert code == 0, err
    assert out.startswith("[00:00] kick-off")
    assert len((folder / "pipe.jsonl").read_text().splitlines()) - 1 in (4, 5)


def test_ctrl_c_ends_a_pipe_without_data():
    process = subprocess.Popen(
        [sys.executable, "-m", "streamingvlm", "stream", "-", "sampling=greedy"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        env={**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"},
        # Children of a background shell ignore SIGINT unless it is reset.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )
    with process:
        process.stdin.write(piped_clip())
        process.stdin.flush()
        assert process.stdout.readline().startswith(b"[00:00]")
        process.send_signal(signal.SIGINT)
        err = process.stderr.read()
    assert process.returncode == 130
    assert b"Traceback" not in err and b"real time" in err


@pytest.mark.parametrize("address", ["rtsp://127.0.0.1:{}/x", "http://127.0.0.1:{}/x.m3u8", "rtmp://127.0.0.1:{}/a/x"])
def test_an_interrupt_ends_a_connection_that_gets_no_answer(address, folder):
    with socket.create_server(("127.0.0.1", 0)) as silent:
        words = [address.format(silent.getsockname()[1]), "live.open_timeout_s=120", "output=none"]
        with subprocess.Popen(
            [sys.executable, ROOT / "scripts" / "stream.py", *words],
            stderr=subprocess.PIPE,
            text=True,
            # Children of a background shell ignore SIGINT unless it is reset.
            preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
        ) as process:
            silent.settimeout(60)
            connection, _ = silent.accept()
            with connection:
                process.send_signal(signal.SIGINT)
                _, error = process.communicate(timeout=30)
    assert (process.returncode, error.splitlines()[-1]) == (130, "streamingvlm stream: stopped")
