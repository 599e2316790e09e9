"""The command as a process: its address, its errors, its shutdown."""

import contextlib
import json
import os
import re
import signal
import socket
import struct
import subprocess
import sys
import threading
from pathlib import Path

import httpx
import pytest
from websockets.sync.client import connect

ROOT = Path(__file__).parents[2]

pytestmark = pytest.mark.usefixtures("folder")


@contextlib.contextmanager
def started(*words, **environment):
    """Start the server as a process; give it with its URL."""
    process = subprocess.Popen(
        [sys.executable, "-m", "streamingvlm", "serve", "port=0", *words],
        env={**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", **environment},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        # Children of a background shell ignore SIGINT unless it is reset.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )
    logs = []
    reading = threading.Thread(target=lambda: logs.extend(process.stderr))
    reading.start()
    try:
        announced = process.stdout.readline()
        assert " is ready; " in announced, "".join(logs)
        process.logs = logs
        yield process, announced.split()[0]
    finally:
        process.kill()
        process.wait()
        reading.join()


@pytest.mark.parametrize(
    "words, message",
    [
        (["host=0.0.0.0"], "open to the network, but there is no key"),
        (["host=::"], "open to the network"),
        (["host=192.168.1.1"], "open to the network"),
        (["host=0.0.0.0", "api_key=short"], "shorter than 16 characters"),
        (["api_key_file=none.txt"], "cannot be read"),
        (["port=70000"], "port=70000 is no port"),
        (["nowhere"], "is no folder"),
        (["hosts=[http://camera.example]"], "give a host's name alone"),
        (["limits.max_sessions=0"], "limits.max_sessions=0 is below 1"),
        (["limits.idle_s=-1"], "limits.idle_s=-1 is not above 0"),
        (["limits.max_session=3"], "limits.max_session is unknown"),
        (["live.policy=hurry"], "live.policy"),
    ],
)
def test_invalid_options_are_reported_in_one_line(run_command, words, message):
    code, out, err = run_command("serve", *words)
    assert (code, out) == (2, "")
    assert message in err
    assert err.count("\n") == 1


def test_a_port_in_use_is_reported_in_one_line(run_command):
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        code, _, err = run_command("serve", f"port={taken.getsockname()[1]}")
    assert code == 2
    assert "cannot be listened on" in err


def test_sigterm_drains_and_every_line_is_delivered(match_frames):
    with started(STREAMINGVLM_API_KEY="k" * 20) as (process, url):
        assert re.fullmatch(r"http://127\.0\.0\.1:\d+", url)
        headers = {"Authorization": "Bearer " + "k" * 20}
        session = httpx.post(f"{url}/v1/sessions", json={"lag": "wait"}, headers=headers).json()["id"]
        path = f"{url.replace('http', 'ws')}/v1/sessions/{session}"
        with (
            connect(f"{path}/commentary", additional_headers=headers) as listener,
            connect(f"{path}/frames", additional_headers=headers) as pusher,
        ):
            for index, jpeg in enumerate(match_frames):
                pusher.send(struct.pack(">d", index / 2) + jpeg)
            messages = [json.loads(listener.recv(timeout=60))]
            process.send_signal(signal.SIGTERM)
            messages += map(json.loads, listener)
        lines = [message for message in messages if message["type"] == "line"]
        assert [line["id"] for line in lines] == list(range(1, len(lines) + 1))
        assert len(lines) >= 2
        assert messages[-1] == {"type": "end", "reason": "the server is shutting down", "last_id": len(lines)}
        assert process.wait(30) == 0
    entries = [json.loads(row) for row in process.logs]
    assert {"signal", "draining", "session opened", "session ended"} <= {entry["message"] for entry in entries}
    assert not [entry for entry in entries if entry["level"] in ("error", "critical")]


def test_a_second_signal_does_not_wait(match_frames):
    with started("limits.drain_s=600") as (process, url):
        session = httpx.post(f"{url}/v1/sessions", json={}).json()["id"]
        with connect(f"{url.replace('http', 'ws')}/v1/sessions/{session}/commentary"):
            process.send_signal(signal.SIGINT)
            process.send_signal(signal.SIGINT)
            assert process.wait(30) in (0, -signal.SIGINT, 130)


@pytest.fixture
def match_frames():
    import io

    from PIL import Image

    from streamingvlm.video.reader import open_video

    def jpeg(frame):
        buffer = io.BytesIO()
        Image.fromarray(frame.permute(1, 2, 0).contiguous().numpy()).save(buffer, "JPEG")
        return buffer.getvalue()

    with open_video(ROOT / "streamingvlm" / "assets" / "pitch" / "match.mp4") as video:
        return [jpeg(frame) for _, second in zip(range(4), video, strict=False) for frame in second.frames]
