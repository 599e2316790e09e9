"""kill -9 at any moment: the resumed run has the losses of the undisturbed run, or is refused if it could not."""

import json
import logging
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import fields
from pathlib import Path

import pytest
import torch
from tiny_run import train

from streamingvlm.errors import ConfigError
from streamingvlm.model.loading import load_model
from streamingvlm.training.checkpoints import latest_complete_checkpoint
from streamingvlm.training.settings import MAY_CHANGE, FitSettings

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


CHANGES = {
    "num_steps": 4,
    "batch_size": 3,
    "learning_rate": 1e-3,
    "warmup_steps": 1,
    "warmup_ratio": 0.5,
    "skip_zero_step": True,
    "weight_decay": 0.3,
    "adam_beta2": 0.9,
    "max_grad_norm": 0.5,
    "silence_weight": 1.0,
    "bf16": True,
    "accumulation_steps": 2,
    "pack_tokens": 500,
    "num_workers": 1,
    "max_bad_fraction": 0.5,
    "gradient_checkpointing": True,
    "attention": "sdpa",
    "log_every_steps": 2,
    "save_every_steps": 1,
    "keep_checkpoints": 1,
    "evaluate_every_steps": 1,
}
NEED_MORE = {"num_epochs", "fsdp", "deepspeed", "liger"}  # decided by num_steps; more processes; extras
SHORT = {"num_steps": 2, "batch_size": 2, "save_every_steps": 2}


@pytest.fixture(scope="module")
def finished(tiny_checkpoint, tmp_path_factory):
    folder = tmp_path_factory.mktemp("finished")
    train(tiny_checkpoint(), folder, SHORT)
    return folder


def test_every_setting_is_tried(tiny_checkpoint):
    assert {*CHANGES, *NEED_MORE} == {field.name for field in fields(FitSettings)}


@pytest.mark.parametrize("name", CHANGES)
def test_a_changed_setting_is_refused_or_named(tiny_checkpoint, finished, tmp_path, caplog, name):
    folder = tmp_path / "run"
    shutil.copytree(finished, folder)
    settings = SHORT | {name: CHANGES[name]}
    if name in MAY_CHANGE:
        with caplog.at_level(logging.INFO):
            train(tiny_checkpoint(), folder, settings, resume=True)
        assert f"{name}={CHANGES[name]} (was " in caplog.text
    else:
        with pytest.raises(ConfigError, match=f"was written with {name}=.*; give {name}=.* to resume"):
            train(tiny_checkpoint(), folder, settings, resume=True)


def test_the_first_step_moves_the_weights(tiny_checkpoint, tmp_path):
    """One step with warm-up: without ``skip_zero_step`` its learning rate is 0."""
    start = load_model(tiny_checkpoint(), device="cpu").hf.lm_head.weight
    one = {"num_steps": 1, "warmup_steps": 1, "skip_zero_step": True}
    _, module = train(tiny_checkpoint(), tmp_path, one)
    assert (module.head.weight - start).abs().max() > 1e-4


@pytest.mark.slow
def test_killed_ten_times_at_random_steps(tiny_checkpoint, tmp_path, undisturbed):
    dice = random.Random(os.getpid())
    for attempt in range(10):
        num_awaited = num_lines(tmp_path) + dice.randrange(1, 6)
        process = start(tiny_checkpoint(), tmp_path, *(["resume"] if attempt else []))
        kill_once(process, lambda awaited=num_awaited: num_lines(tmp_path) >= awaited)
    finish(start(tiny_checkpoint(), tmp_path, "resume"))
    assert_as_undisturbed(tmp_path, undisturbed)
