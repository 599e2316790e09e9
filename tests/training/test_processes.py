"""Twenty losses in two processes over gloo, replicated and sharded by FSDP2, are those of one process."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from tiny_run import train

from streamingvlm.model.loading import load_model

PROGRAM = Path(__file__).with_name("tiny_run.py")
ROOT = Path(__file__).parents[2]
SHARDED = {"fsdp": "full_shard"}


def run_in_two_processes(checkpoint, folder, runs, *options):
    """Start the tiny run under torchrun; return the results."""
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2", str(PROGRAM)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    words = [str(checkpoint), str(folder), json.dumps(runs), *options]
    done = subprocess.run([*command, *words], env=environment, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stderr[-3000:]
    return {name: json.loads((folder / name / "result.json").read_text()) for name in runs}


@pytest.fixture(scope="module")
def plain(tiny_checkpoint, tmp_path_factory):
    folder = tmp_path_factory.mktemp("plain")
    return train(tiny_checkpoint("qwen3_vl"), folder, {}, model_folder=folder / "model")[0], folder / "model"


def assert_equal_to(plain, results):
    for name, result in results.items():
        assert len(result["losses"]) == 20
        torch.testing.assert_close(result["losses"], plain[0], atol=1e-4, rtol=0, msg=name)


def test_two_processes_of_four_examples_replicated_and_sharded(plain, tiny_checkpoint, tmp_path):
    """Padded and packed; a sharded run saves a complete Hugging Face folder."""
    runs = {
        "padded": {},
        "packed": {"pack_tokens": 400},
        "sharded": {**SHARDED, "gradient_checkpointing": True},
        "sharded and packed": {**SHARDED, "pack_tokens": 400},
    }
    results = run_in_two_processes(tiny_checkpoint("qwen3_vl"), tmp_path, runs)
    assert_equal_to(plain, results)
    assert [result["num_sharded"] > 10 for result in results.values()] == [False, False, True, True]
    one, two = (load_model(folder, device="cpu").hf for folder in (plain[1], tmp_path / "sharded" / "model"))
    for name, weights in one.named_parameters():
        torch.testing.assert_close(weights, two.get_parameter(name), atol=2e-3, rtol=0, msg=name)


@pytest.mark.slow
def test_a_sharded_run_resumes(plain, tiny_checkpoint, tmp_path):
    runs = {"run": {**SHARDED, "save_every_steps": 10}}
    run_in_two_processes(tiny_checkpoint("qwen3_vl"), tmp_path, runs)
    (tmp_path / "run" / "checkpoint-20" / "complete.json").unlink()
    assert_equal_to(plain, run_in_two_processes(tiny_checkpoint("qwen3_vl"), tmp_path, runs, "resume"))
