"""kill -9 at random moments, of real processes: the stream that is taken up is the one that was never stopped."""

import json
import os
import random
import subprocess
import sys
import time
from pathlib import Path

import pytest
from killed_stream import SETTINGS, second, told
from tiny_streams import SMALL

from streamingvlm.inference.session import StreamingSession
from streamingvlm.model.loading import load_model

ROOT = Path(__file__).parents[2]
CACHES = {
    "reread": {**SMALL, "recompute_text": True},
    "native": {**SMALL, "positions": "native"},
    "recompute": {**SMALL, "recompute": True},
    "window": {"policy": "window", "vision_window_s": 3.0},
}


def stream_until_killed(words: list[str], log: Path, delay_s: float):
    """Start the stream; kill it so many seconds after its first new line."""
    size = log.stat().st_size if log.exists() else 0
    process = subprocess.Popen(
        [sys.executable, Path(__file__).with_name("killed_stream.py"), *words],
        env={**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"},
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        deadline = time.monotonic() + 180
        while (
            process.poll() is None and time.monotonic() < deadline and not (log.exists() and log.stat().st_size > size)
        ):
            time.sleep(0.01)
        time.sleep(delay_s)
    finally:
        process.kill()
        _, errors = process.communicate()
    assert process.returncode == -9, errors[-2000:]


def check_kills(checkpoint: Path, cache: dict, folder: Path, num_kills: int):
    dice, log = random.Random(num_kills), folder / "log"
    for _ in range(num_kills):
        stream_until_killed([str(checkpoint), json.dumps(cache), str(folder / "kept"), str(log)], log, dice.random())
    model = load_model(checkpoint, device="cpu")
    taken_up = StreamingSession.load(folder / "kept", model=model)
    lines = {int(line.split(maxsplit=1)[0]): f"{line}\n" for line in log.read_text().splitlines()}
    assert list(lines) == sorted(lines), "no turn is taken twice"
    # A turn may be on disk and not yet in the log.
    assert max(lines) + 1 <= taken_up.num_turns <= max(lines) + 2
    assert len(lines) >= taken_up.num_turns - num_kills
    whole = StreamingSession(model, cache=cache, **SETTINGS)
    for turn in range(taken_up.num_turns):
        whole.step(second(turn))
        assert lines.get(turn, told(whole)) == told(whole)
    for turn in range(taken_up.num_turns, taken_up.num_turns + 5):
        assert taken_up.step(second(turn)).text == whole.step(second(turn)).text
        assert told(taken_up) == told(whole)


def test_after_a_kill_the_tokens_are_those_of_a_stream_that_was_never_stopped(tiny_checkpoint, tmp_path):
    check_kills(tiny_checkpoint(), CACHES["reread"], tmp_path, num_kills=2)


@pytest.mark.slow
@pytest.mark.timeout(3600)  # each start of a process loads torch and the model
@pytest.mark.parametrize(("name", "num_kills"), [("reread", 20), ("native", 5), ("recompute", 5), ("window", 5)])
def test_after_many_kills_they_still_are(tiny_checkpoint, tmp_path, name, num_kills):
    check_kills(tiny_checkpoint(), CACHES[name], tmp_path, num_kills)
