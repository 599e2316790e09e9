"""The benchmark on Pitch through the script: one stream, and tables of many streams."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
TABLES = ("benchmark=pitch_tables", "duration_s=4", "tables=[positions]")


@pytest.fixture
def evaluate_here(run_command):
    """Run the script in this process; returns exit code, standard output and standard error."""
    return lambda *words: run_command("evaluate", *words, "model.device=cpu")


def test_one_stream_is_scored_recorded_and_reported(evaluate_here, tmp_path):
    paths = ("result_path=out/result.json", "record_path=out/run.jsonl", "report_path=a page, of one run.html")
    code, output, error = evaluate_here("benchmark=pitch", "seed=1007", "duration_s=30", *paths)
    assert code == 0, error
    assert "seed 1007: 30 s: macro-F1" in output and "macro-F1 by fifths" in output and "ms per token" in output
    result = json.loads((tmp_path / "out" / "result.json").read_text())
    assert result["report"]["num_seconds"] == 30 and len(result["fifths"]) == 5
    assert result["report"]["accuracy"] >= 0.8
    assert len((tmp_path / "out" / "run.jsonl").read_text().splitlines()) == 31
    assert "Second by second" in (tmp_path / "a page, of one run.html").read_text()


def test_a_table_is_written_between_marks_and_written_again_the_same(evaluate_here, tmp_path):
    (tmp_path / "docs").mkdir()
    results = tmp_path / "docs" / "results.md"
    results.write_text("# Results\n\nWords of a person.\n")
    words = (*TABLES, "seeds=[1007,31]", "folder=runs here", "results_path=docs/results.md")
    code, output, error = evaluate_here(*words)
    assert code == 0, error
    written = {path.name: path.read_bytes() for path in (tmp_path / "docs").iterdir()}
    assert set(written) == {"results.md", "pitch-positions.png", "pitch-positions.json"}
    text = written["results.md"].decode()
    assert text.startswith("# Results\n\nWords of a person.\n\n<!-- ") and "| native |" in text and "25.09" in text
    assert "Rotary positions" in output and "| contiguous |" in output
    records = sorted((tmp_path / "runs here" / "runs").iterdir())
    times = [path.stat().st_mtime_ns for path in records]
    assert len(records) == 4
    assert evaluate_here(*words)[0] == 0
    assert {path.name: path.read_bytes() for path in (tmp_path / "docs").iterdir()} == written
    assert [path.stat().st_mtime_ns for path in records] == times


def test_a_page_for_every_run(evaluate_here, tmp_path):
    code, _, error = evaluate_here(*TABLES, "seeds=[5]", "pages=true", "folder=out")
    assert code == 0, error
    pages = list((tmp_path / "out" / "pages").iterdir())
    assert len(pages) == 2 and all("the match of seed 5" in page.read_text() for page in pages)
    assert "| native |" in (tmp_path / "out" / "results.md").read_text()


@pytest.mark.parametrize(
    "words, message",
    [
        (["benchmark=pitch", "style=opera"], "style=opera is unknown; choose one of telegram, radio"),
        (["benchmark=pitch", "duration_s=0"], "duration_s=0 is below 1"),
        ([*TABLES, "tables=[poses]"], "'poses', which is unknown; choose from modes, positions"),
        ([*TABLES, "tables=[training]"], "checkpoints.apart=FOLDER"),
        ([*TABLES, "seeds=7"], "seeds=7 is no list"),
        ([*TABLES, "workers=0"], "workers=0 is below 1"),
        ([*TABLES, "cache=recompute"], "use cache.positions=contiguous"),
        ([*TABLES, "model=nowhere"], "there is no model folder nowhere"),
    ],
    ids=" ".join,
)
def test_invalid_options_are_reported_before_any_stream(evaluate_here, tmp_path, words, message):
    code, output, error = evaluate_here(*words)
    assert (code, output) == (2, "") and message in error and error.count("\n") == 1
    assert not list(tmp_path.iterdir())


@pytest.mark.slow
def test_tables_go_on_after_a_kill(tmp_path):
    words = [
        sys.executable,
        "-m",
        "streamingvlm",
        "evaluate",
        *TABLES,
        "duration_s=15",
        "seeds=[1,2,3]",
        "model.device=cpu",
    ]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    runs = tmp_path / "pitch-tables" / "runs"
    with subprocess.Popen(words, cwd=tmp_path, env=environment, stdout=subprocess.DEVNULL) as process:
        while len(list(runs.glob("*.jsonl"))) < 2 and process.poll() is None:
            time.sleep(0.05)
        process.send_signal(signal.SIGKILL)
    kept = {path: path.read_bytes() for path in runs.glob("*.jsonl")}
    assert 2 <= len(kept) < 6
    subprocess.run(words, cwd=tmp_path, env=environment, check=True, stdout=subprocess.DEVNULL)
    assert len(list(runs.glob("*.jsonl"))) == 6
    assert all(path.read_bytes() == content for path, content in kept.items())
