"""A match of ten minutes from a camera that is killed three times: minutes of real time, so run by hand or by night."""

import subprocess
import sys
import threading
import time
from itertools import islice
from pathlib import Path

import psutil
import pytest
from live_sources import write_camera_file

from streamingvlm import StreamingSession
from streamingvlm.pitch import Match, render

SERVER = Path(__file__).parents[1] / "rtsp_server.py"
DURATION_S, FPS = 600, 2
KILLED_AT_S, AWAY_S = (120, 280, 440), (3, 20, 8)
SETTLED_S = 90
MAX_GROWTH = 1.05


class Camera:
    """The server in a process of its own: killed, and started again with the picture that is due then."""

    def __init__(self, clip):
        self.clip, self.port, self.epoch_s = clip, 0, time.time()
        self.start()

    def start(self):
        command = [sys.executable, SERVER, self.clip, str(self.port), repr(self.epoch_s)]
        self.process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
        self.port = int(self.process.stdout.readline())

    def kill(self):
        self.process.kill()
        self.process.communicate()


@pytest.fixture
def camera(tmp_path):
    seconds = islice(Match(seed=31).seconds(), DURATION_S)
    images = (frame.permute(1, 2, 0).numpy() for second in seconds for frame in render(second, size=112, fps=FPS))
    camera = Camera(write_camera_file(tmp_path / "match.mp4", images, FPS))
    yield camera
    camera.kill()


def kill_and_start(camera, session, reconnected_s):
    """Kill the camera at its times; tell how long after it was back the session had a picture again."""
    began_s = time.monotonic()
    for number, (at_s, away_s) in enumerate(zip(KILLED_AT_S, AWAY_S, strict=True), start=1):
        time.sleep(began_s + at_s - time.monotonic())
        camera.kill()
        time.sleep(away_s)
        camera.start()
        back_s = time.monotonic()
        while session.reader.skipped.num_reconnects < number:
            time.sleep(0.02)
        reconnected_s.append(time.monotonic() - back_s)


def mean_between(memory, start_s, end_s):
    held = [num_bytes for at_s, num_bytes in memory if start_s <= at_s < end_s]
    return sum(held) / len(held)


@pytest.mark.slow
def test_a_match_from_a_camera_that_is_killed_three_times(camera):
    process, began_s = psutil.Process(), time.monotonic()
    reconnected_s, memory, lines = [], [], []
    session = StreamingSession.from_pretrained("pitch", sampling={"temperature": 0.0})
    saboteur = threading.Thread(target=kill_and_start, args=(camera, session, reconnected_s), daemon=True)
    saboteur.start()
    for line in session.stream(f"rtsp://127.0.0.1:{camera.port}/match", live={"policy": "coalesce"}):
        lines.append(line)
        memory.append((time.monotonic() - began_s, process.memory_info().rss))
        if memory[-1][0] >= DURATION_S:
            break
    spoken = [line for line in lines if line.text]
    settled = mean_between(memory, SETTLED_S, SETTLED_S + 30)
    growth = mean_between(memory, DURATION_S - 30, DURATION_S) / settled
    print(f"seen again after {[round(s, 2) for s in reconnected_s]} s; {len(lines)} turns, {len(spoken)} spoken")
    print(f"memory {settled / 1e6:.0f} MB after {SETTLED_S} s, at the end x{growth:.3f}")
    print(session.stats)
    assert len(reconnected_s) == len(KILLED_AT_S) and max(reconnected_s) < 5
    assert growth < MAX_GROWTH
    for after_s in (0, *KILLED_AT_S):  # the commentary goes on
        assert [line for line in spoken if after_s + 40 <= line.start_s < after_s + 140]
