"""A soak test of seconds instead of hours: its counts, its output, and its exit code after growth."""

import json

import numpy as np
import pytest
import soak
from soak_runner import TurnLog, count_turns, growth

from streamingvlm.errors import ConfigError

SHORT = ("0.004", "row_s=5", "warm_up_s=2", "ask_every_s=4", "report_every_s=6", "sampling.max_new_tokens=4")


def test_a_table_of_rows_then_json(run_command, folder):
    code, output, error = run_command(soak.COMMAND, *SHORT, "max_memory_growth=9", "max_p99_growth=99", "autosave=kept")
    assert code == 0, error
    title, *rows, last = output.splitlines()
    assert "p99 ms" in title and [row.split()[0] for row in rows] == ["2", "7", "12"]
    record = json.loads(last)
    assert (record["num_turns"], record["num_questions"], record["is_flat"]) == (17, 4, True)
    assert 0 < record["num_tokens"] <= 17 * 4
    assert all(row["resident_max_mb"] >= row["resident_mb"] > 50 for row in record["rows"])
    assert all(row["turn_p99_ms"] >= row["turn_p50_ms"] > 0 for row in record["rows"])
    assert (folder / "kept" / "snapshot.json").is_file()


def test_growth_exits_with_one(run_command):
    code, output, _ = run_command(soak.COMMAND, *SHORT, "max_memory_growth=-1")
    assert code == 1
    assert json.loads(output.splitlines()[-1])["is_flat"] is False


@pytest.mark.parametrize("grown, is_flat", [({}, True), ({"resident_mb": 1.02}, False), ({"cpu_p99_ms": 1.2}, False)])
def test_the_last_row_is_compared_with_the_first(grown, is_flat):
    first = {"resident_mb": 500.0, "turn_p99_ms": 80.0, "cpu_p99_ms": 70.0}
    last = {name: value * grown.get(name, 1.0) for name, value in first.items()}
    result = growth(
        [first, dict.fromkeys(first, 9000000000.0), last], {"max_memory_growth": 0.01, "max_p99_growth": 0.1}
    )
    assert result["is_flat"] is is_flat
    assert result["memory_growth"] == pytest.approx(grown.get("resident_mb", 1.0) - 1)


def test_the_log_summarizes_the_requested_turns():
    turns = TurnLog(num_turns=101)
    for turn in range(101):
        turns.add(turn / 1000, turn / 2000)
    assert turns.summarize(0, 101)["turn_p99_ms"] == pytest.approx(99)
    assert turns.summarize(0, 11)["cpu_p50_ms"] == pytest.approx(2.5)
    assert np.isfinite(turns.resident_bytes).all()


def test_the_mean_of_constant_memory_equals_its_maximum():
    turns = TurnLog(num_turns=5)
    turns.turn_s[:] = turns.cpu_s[:] = 0.1
    for resident_bytes in range(948_000_000, 949_000_000, 4096):
        turns.resident_bytes[:] = resident_bytes
        summary = turns.summarize(0, 5)
        assert summary["resident_mb"] == summary["resident_max_mb"] == resident_bytes / 1e6


@pytest.mark.parametrize(
    "hours, row_s, words", [("soon", 60, "hours=soon is not"), (1, -1, "row_s=-1 is not"), (1, 3600, "two rows")]
)
def test_invalid_durations_are_refused(hours, row_s, words):
    with pytest.raises(ConfigError, match=words):
        count_turns({"hours": hours, "row_s": row_s, "warm_up_s": 0}, turn_s=1.0)
