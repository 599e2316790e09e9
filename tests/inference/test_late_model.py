"""A model at half of real time, watched from outside: the camera and the clock are another process's."""

import json
import os
import subprocess
import sys
import time
from contextlib import contextmanager
from pathlib import Path

import pytest
from live_sources import FPS, write_camera_file
from numbered_pictures import picture
from rtsp_server import RtspServer

ROOT = Path(__file__).parents[2]
CLIP_S = 60
TURN_S = 2.0  # for each second of video
WATCHED_S = 90
MAX_LAG_S = 10  # without a policy it would be half of what was watched, and growing


@pytest.fixture(scope="module")
def clip(tmp_path_factory) -> Path:
    """A minute of pictures that carry their numbers."""
    path = tmp_path_factory.mktemp("camera") / "clip.mp4"
    return write_camera_file(path, (picture(number, 64, 48) for number in range(CLIP_S * FPS)), FPS)


@contextmanager
def slow_stream(checkpoint: Path, server: RtspServer, policy: str):
    """The lines of a process that watches the camera."""
    address = f"rtsp://127.0.0.1:{server.port}/stream"
    process = subprocess.Popen(
        [sys.executable, Path(__file__).with_name("slow_stream.py"), checkpoint, address, policy, str(TURN_S)],
        env={**os.environ, "PYTHONPATH": os.pathsep.join(map(str, (ROOT, ROOT / "tests"))), "OMP_NUM_THREADS": "1"},
        stdout=subprocess.PIPE,
        text=True,
    )
    try:
        yield process.stdout
    finally:
        process.kill()
        process.communicate()


def true_age_s(number: int, epoch_s: float) -> float:
    """Seconds since the picture of this number was shown last."""
    return (time.time() - epoch_s - number / FPS) % CLIP_S


@pytest.mark.slow
@pytest.mark.parametrize("policy", ["drop", "coalesce", "degrade"])
def test_lag_is_bounded_and_the_age_that_is_told_is_the_true_one(policy, clip, tiny_checkpoint):
    epoch_s = time.time()
    server = RtspServer(clip, epoch_s=epoch_s).start()
    lines = []
    try:
        with slow_stream(tiny_checkpoint(), server, policy) as output:
            for text in output:
                line = json.loads(text)
                lines.append({**line, "true_age_s": true_age_s(line["newest"], epoch_s)})
                if line["start_s"] - lines[0]["start_s"] > WATCHED_S:
                    break
    finally:
        server.close()
    ages_s = [line["true_age_s"] for line in lines]
    wrong_s = max(abs(line["age_s"] - line["true_age_s"]) for line in lines)
    half = len(lines) // 2
    facts = {name: sum(line[name] for line in lines) for name in ("dropped_s", "coalesced_s")}
    print(
        f"{policy}: {len(lines)} turns, oldest {max(ages_s[:half]):.2f} s, in the second half {max(ages_s[half:]):.2f} "
        f"s, wrong by {wrong_s:.3f} s, least detail {min(line['detail'] for line in lines)}, {facts}"
    )
    assert len(lines) > WATCHED_S / TURN_S / 2
    assert max(ages_s) < MAX_LAG_S
    assert wrong_s < 0.1
    assert (facts["coalesced_s"] > 0) == (policy == "coalesce")
    assert (facts["dropped_s"] > 0) == (policy != "coalesce")
