"""The streaming benchmark runs on a CPU, on the embedded model."""

import json

import pytest
import torch
import write_performance

from streamingvlm.cli.configurations import compose_config
from streamingvlm.cli.verbs import VERBS

TINY = ("architecture=tiny", "model.device=cpu", "sampling.max_new_tokens=3", "cache.vision_window_s=2")


def test_tables_then_json_and_a_file_with_its_figure(run_command, folder):
    words = (
        "duration_s=3",
        "parts=[modes,frames_per_s,streams]",
        "frames_per_s.search_limit=2",
        "frames_per_s.trial_s=1",
    )
    code, output, error = run_command(
        "bench", "model=pitch", "model.device=cpu", *words, "streams.search_limit=1", "streams.trial_s=1"
    )
    assert code == 0, error
    record = json.loads(output.splitlines()[-1])
    assert list(record["modes"]) == ["full", "window", "recompute", "streaming"]
    for summary in record["modes"].values():
        assert summary["stop_reason"] == "" and summary["num_turns"] == 3
        assert {"video", "vision", "evict", "prefill", "decode", "turn", "token", "inter_token"} <= set(
            summary["whole"]
        )
        assert summary["roofline"]["turn_share"] > 0
    assert record["frames_per_s"]["trials"] and record["streams"]["trials"]
    assert record["settings"]["model"] == {"name": "pitch", "dtype": "float32", "quantization": None}
    assert record["machine"]["torch"] == torch.__version__
    assert record["commit"] is None or len(record["commit"].rstrip("+")) == 40
    for title in ("Modes", "Stages of a turn", "Roofline of a turn", "Highest load:"):
        assert title in output
    files = {path.suffix: path for path in (folder / "benchmarks").iterdir()}
    assert json.loads(files[".json"].read_text()) == record
    assert files[".png"].read_bytes().startswith(b"\x89PNG") and files[".png"].stem == files[".json"].stem


def test_random_weights_by_the_name_of_their_architecture(run_command):
    words = ("parts=[modes,batching]", "duration_s=2", "batching.num_streams=[2]", "batching.num_threads=[1]")
    code, output, error = run_command(
        "bench", *TINY, *words, "batching.num_turns=1", "batching.num_repeats=2", "result_folder=null"
    )
    assert code == 0, error
    record = json.loads(output.splitlines()[-1])
    assert record["settings"]["model"]["name"] == "tiny"
    (case,) = record["batching"]
    assert (case["num_streams"], case["num_threads"], len(case["ratios"])) == (2, 1, 2)


@pytest.mark.parametrize(
    "words, architecture, height", [(["model=7b"], "7b", 720), (["model=3b", "workload=72_tokens"], "3b", 224)]
)
def test_a_size_brings_its_footage_unless_another_is_chosen(words, architecture, height):
    options = compose_config("bench", VERBS["bench"].overrides(words))
    assert options.architecture.name == architecture and options.footage.height == height
    assert options.sampling.max_new_tokens == 8


@pytest.mark.parametrize(
    "words, message",
    [
        (("parts=[speed]",), "parts=speed is unknown; give a list of modes, frames_per_s"),
        (("parts=modes",), "parts=modes is unknown"),
        (("architecture=tiny", "parts=[low_precision]"), "trained weights; choose model=pitch"),
        (("architecture=9b",), "architecture=9b is unknown; choose one of 3b, 7b, tiny"),
    ],
)
def test_invalid_options_are_refused_before_a_model_is_loaded(run_command, words, message):
    code, output, error = run_command("bench", *words)
    assert (code, output) == (2, "") and message in error


def test_the_page_is_written_from_the_records(run_command, folder):
    words = (*TINY, "parts=[modes]", "duration_s=2")
    assert run_command("bench", *words)[0] == 0
    (folder / "page.md").write_text("# Performance\n\nBefore.\n")
    code, output, error = run_command(write_performance.COMMAND, "path=page.md")
    assert (code, output) == (0, "page.md: 1 records from benchmarks\n"), error
    page = (folder / "page.md").read_text()
    assert page.startswith("# Performance\n\nBefore.\n")
    assert page.count("not measured") == 9 and "`streamingvlm bench model=7b parts=[modes]`" in page
    assert "### tiny, float32, on " in page and "| streaming |" in page and "](benchmarks/streaming-tiny-" in page
