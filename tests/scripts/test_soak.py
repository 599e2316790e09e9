"""A soak of seconds in place of hours: what it counts, what it tells, and that growth is no success."""

import json

import numpy as np
import pytest
import soak
from soaking import Gauge, growth, turns_of

from streamingvlm.errors import ConfigError

SHORT = ("0.004", "row_s=5", "warm_up_s=2", "ask_every_s=4", "report_every_s=6", "sampling.max_new_tokens=4")


def test_a_row_a_while_then_json(run_script, folder):
    code, output, error = run_script(soak, *SHORT, "max_memory_growth=9", "max_p99_growth=99", "autosave=kept")
    assert code == 0, error
    title, *rows, last = output.splitlines()
    assert "p99 ms" in title and [row.split()[0] for row in rows] == ["2", "7", "12"]
    record = json.loads(last)
    assert (record["num_turns"], record["num_questions"], record["is_flat"]) == (17, 4, True)
    assert 0 < record["num_tokens"] <= 17 * 4
    assert all(row["resident_most_mb"] >= row["resident_mb"] > 50 for row in record["rows"])
    assert all(row["turn_p99_ms"] >= row["turn_p50_ms"] > 0 for row in record["rows"])
    assert (folder / "kept" / "snapshot.json").is_file()


def test_growth_ends_with_one(run_script):
    code, output, _ = run_script(soak, *SHORT, "max_memory_growth=-1")
    assert code == 1
    assert json.loads(output.splitlines()[-1])["is_flat"] is False


@pytest.mark.parametrize("grown, is_flat", [({}, True), ({"resident_mb": 1.02}, False), ({"cpu_p99_ms": 1.2}, False)])
def test_the_last_row_is_held_against_the_first(grown, is_flat):
    first = {"resident_mb": 500.0, "turn_p99_ms": 80.0, "cpu_p99_ms": 70.0}
    last = {name: value * grown.get(name, 1.0) for name, value in first.items()}
    told = growth([first, dict.fromkeys(first, 9000000000.0), last], {"max_memory_growth": 0.01, "max_p99_growth": 0.1})
    assert told["is_flat"] is is_flat
    assert told["memory_growth"] == pytest.approx(grown.get("resident_mb", 1.0) - 1)


def test_a_gauge_tells_of_the_turns_that_it_is_asked_for():
    gauge = Gauge(num_turns=101)
    for turn in range(101):
        gauge.note(turn / 1000, turn / 2000)
    assert gauge.figures(0, 101)["turn_p99_ms"] == pytest.approx(99)
    assert gauge.figures(0, 11)["cpu_p50_ms"] == pytest.approx(2.5)
    assert np.isfinite(gauge.resident_bytes).all()


def test_memory_that_never_moves_has_its_mean_for_its_most():
    gauge = Gauge(num_turns=5)
    gauge.turn_s[:] = gauge.cpu_s[:] = 0.1
    for resident_bytes in range(948_000_000, 949_000_000, 4096):
        gauge.resident_bytes[:] = resident_bytes
        figures = gauge.figures(0, 5)
        assert figures["resident_mb"] == figures["resident_most_mb"] == resident_bytes / 1e6


@pytest.mark.parametrize(
    "hours, row_s, words", [("soon", 60, "hours is soon"), (1, -1, "row_s is -1"), (1, 3600, "two rows")]
)
def test_what_cannot_be_measured_is_refused(hours, row_s, words):
    with pytest.raises(ConfigError, match=words):
        turns_of({"hours": hours, "row_s": row_s, "warm_up_s": 0}, turn_s=1.0)
