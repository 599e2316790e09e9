"""kill -9 at any moment: the resumed run has the losses of the undisturbed run."""

import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from tiny_run import train

from streamingvlm.training.checkpoints import latest_complete_checkpoint

PROGRAM = Path(__file__).with_name("tiny_run.py")
ROOT = Path(__file__).parents[2]
# With dropout, so that the random states matter.
SETTINGS = {"num_steps": 24, "batch_size": 4, "save_every_steps": 3, "keep_checkpoints": 2, "dropout": 0.2}
PATIENCE_S = 300


@pytest.fixture(scope="module")
def undisturbed(tiny_checkpoint, tmp_path_factory):
    """The losses, step by step, of a run that is not killed; one thread, like the killed runs."""
    num_threads = torch.get_num_threads()
    torch.set_num_threads(1)
    folder = tmp_path_factory.mktemp("undisturbed")
    train(tiny_checkpoint(), folder, SETTINGS)
    torch.set_num_threads(num_threads)
    return read_losses(folder)[0]


def read_losses(folder):
    """The losses by step of each attempt at a run."""
    attempts = [{}]
    for line in (folder / "losses.jsonl").read_text().splitlines():
        entry = json.loads(line)
        if attempts[-1] and entry["step"] <= max(attempts[-1]):
            attempts.append({})
        attempts[-1][entry["step"]] = entry["loss"]
    return attempts


def start(checkpoint, folder, *options):
    words = [sys.executable, str(PROGRAM), str(checkpoint), str(folder), json.dumps({"run": SETTINGS}), *options]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    return subprocess.Popen(words, env=environment, stderr=subprocess.PIPE, text=True)


def kill_once(process, is_time):
    """Kill -9 when it is time; fail if the process ends before."""
    deadline = time.monotonic() + PATIENCE_S
    while not is_time():
        assert process.poll() is None, process.stderr.read()[-3000:]
        assert time.monotonic() < deadline, "the run takes too long"
        time.sleep(0.005)
    process.send_signal(signal.SIGKILL)
    process.communicate()


def finish(process):
    _, errors = process.communicate(timeout=PATIENCE_S)
    assert process.returncode == 0, errors[-3000:]


def num_lines(folder):
    path = folder / "run" / "losses.jsonl"
    return len(path.read_text().splitlines()) if path.is_file() else 0


def assert_as_undisturbed(folder, undisturbed):
    attempts = read_losses(folder / "run")
    assert len(attempts) > 1
    for attempt in attempts:
        assert attempt == pytest.approx({step: undisturbed[step] for step in attempt}, abs=1e-6)
    assert {step for attempt in attempts for step in attempt} == set(undisturbed)
    assert json.loads((folder / "run" / "result.json").read_text())["losses"] == pytest.approx(
        list(undisturbed.values()), abs=1e-6
    )


def test_killed_while_saving(tiny_checkpoint, tmp_path, undisturbed):
    half = tmp_path / "run" / "checkpoint-15"
    kill_once(start(tiny_checkpoint(), tmp_path, "stall=15"), (half / "stalled").exists)
    assert (half / "model.safetensors").is_file()
    assert latest_complete_checkpoint(tmp_path / "run").name == "checkpoint-12"
    finish(start(tiny_checkpoint(), tmp_path, "resume"))
    assert_as_undisturbed(tmp_path, undisturbed)


@pytest.mark.slow
def test_killed_ten_times_at_random_steps(tiny_checkpoint, tmp_path, undisturbed):
    dice = random.Random(os.getpid())
    for attempt in range(10):
        num_awaited = num_lines(tmp_path) + dice.randrange(1, 6)
        process = start(tiny_checkpoint(), tmp_path, *(["resume"] if attempt else []))
        kill_once(process, lambda awaited=num_awaited: num_lines(tmp_path) >= awaited)
    finish(start(tiny_checkpoint(), tmp_path, "resume"))
    assert_as_undisturbed(tmp_path, undisturbed)
