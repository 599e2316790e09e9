"""The training benchmark runs on a CPU, on a tiny architecture."""

import json
from functools import partial

import bench_training
import pytest
import torch

from streamingvlm.benchmark.random_weights import random_model
from streamingvlm.benchmark.training_throughput import ChunkShape, RandomChunks, measure_training, results_table
from streamingvlm.cli.architectures import architecture_named
from streamingvlm.cli.configurations import choices
from streamingvlm.errors import ConfigError
from streamingvlm.training.settings import FitSettings
from streamingvlm.turns import TurnFormat


@pytest.fixture
def bench_here(run_command):
    """Run the command in this process; returns exit code, standard output and standard error."""
    return partial(run_command, bench_training.COMMAND)


def test_a_table_then_json_and_a_file_with_date_machine_and_commit(bench_here, tmp_path):
    small = ("shape.num_turns=3", "shape.rows=4", "shape.columns=4", "shape.previous_tokens=8", "peak_tflops=1e-3")
    code, output, error = bench_here("tiny", "device=cpu", *small)
    assert code == 0, error
    *rows, last = output.splitlines()
    assert rows[0].split()[:1] == ["tokens/s"] and rows[-1].startswith("tiny ")
    record = json.loads(last)
    figures = record["cases"]["tiny"]["figures"]
    assert figures["tokens_per_s"] > 0 and figures["mfu"] > 0 and 0 <= figures["data_wait"] <= 1
    assert figures["video_s_per_s"] / figures["tokens_per_s"] == pytest.approx(3 / figures["chunk_tokens"])
    assert 0 < figures["trained_b"] < figures["weights_b"]
    (file,) = (tmp_path / "benchmarks").iterdir()
    assert json.loads(file.read_text()) == record
    assert record["date"].startswith("20") and record["machine"]["torch"] == torch.__version__
    assert record["commit"] is None or len(record["commit"].rstrip("+")) == 40


def test_an_unknown_case_is_named(bench_here):
    code, output, error = bench_here("70B")
    assert (code, output) == (2, "") and "case=70B is unknown; choose one of 3B_full, 7B_lora, tiny" in error


def test_a_chunk_has_what_its_shape_says():
    model = random_model(architecture_named("tiny"), device=torch.device("cpu"), dtype=torch.float32)
    turns = TurnFormat(model.tokenizer, temporal_step=2.0)
    chunks = RandomChunks(turns, ChunkShape(), hidden_size=64, num_examples=2)
    example = chunks[1]
    assert (example.input_ids == turns.vision_pad_id).sum() == len(example.vision) == 24 * 720
    assert (example.labels == turns.end_of_turn_id).sum() == 24
    assert 24 * 720 + 1024 < len(example.input_ids) == chunks.length(1) < 24 * 760 + 1100


@pytest.mark.parametrize("name, billions", [("3b", 3.75), ("7b", 8.29)])
def test_an_architecture_is_as_large_as_the_released_model(name, billions):
    model = random_model(architecture_named(name), device=torch.device("meta"), dtype=torch.bfloat16).hf
    assert sum(weight.numel() for weight in model.parameters()) / 1e9 == pytest.approx(billions, abs=0.01)


def test_invalid_settings_are_refused():
    tiny = architecture_named("tiny")
    with pytest.raises(ConfigError, match="architecture=9b is unknown"):
        architecture_named("9b")
    with pytest.raises(ConfigError, match="model_type=llama, which cannot stream"):
        measure_training({**tiny, "model_type": "llama"}, FitSettings(num_steps=3, batch_size=1, learning_rate=1e-5))
    with pytest.raises(ConfigError, match="nothing to measure"):
        measure_training(tiny, FitSettings(num_steps=2, batch_size=1, learning_rate=1e-5))


def test_a_failed_case_has_its_error_in_the_row():
    rows = results_table({"large": {"error": "out of memory"}, "small": {"tokens_per_s": 1234.5}}).splitlines()
    assert rows[1] == "large  out of memory" and rows[2].split()[:3] == ["small", "1,234", "-"]


def test_the_sizes_are_those_of_the_configurations():
    assert set(choices("architecture")) == {"3b", "7b", "tiny"}
