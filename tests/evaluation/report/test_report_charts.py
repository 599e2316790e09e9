"""The geometry of the charts, read back from their paths."""

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from streamingvlm.evaluation.report.charts import HEIGHT, WIDTH, cache_chart, fault_chart, latency_chart, strip
from streamingvlm.evaluation.report.stream_report import CacheFill, ReportTurn

COUNTS = st.integers(0, 5000)
FILLS = st.builds(CacheFill, COUNTS, COUNTS, COUNTS, COUNTS).filter(lambda fill: fill.num_tokens)


def _points(path):
    return [tuple(map(float, pair)) for pair in re.findall(r"([\d.]+) ([\d.]+)", path)]


def _seconds(fills):
    return [ReportTurn(float(at), "", None, 0.1, fill) for at, fill in enumerate(fills)]


@given(st.lists(FILLS, min_size=1, max_size=40))
def test_the_layers_of_the_cache_lie_on_each_other_and_are_to_scale(fills):
    chart = cache_chart(_seconds(fills), 1.0)
    top = max(fill.num_tokens for fill in fills)
    floor = [HEIGHT] * len(fills)
    for area, name in zip(chart.areas, ("sink", "window", "turn", "vision"), strict=True):
        points = _points(area.path)
        upper, lower = points[: len(fills)], points[len(fills) + 2 :][::-1]
        for (x, y), (_, base), below, fill in zip(upper, lower, floor, fills, strict=True):
            assert base == pytest.approx(below, abs=0.11) and 0 <= x <= WIDTH
            assert base - y == pytest.approx(getattr(fill, f"{name}_tokens") / top * HEIGHT, abs=0.11)
        floor = [y for _, y in upper]
    assert min(floor) == pytest.approx(0, abs=0.11)


def test_of_a_long_stream_no_peak_is_lost():
    fills = [CacheFill(10, 0, 0, 0)] * 5000
    fills[1234] = CacheFill(10, 0, 0, 90)
    vision = cache_chart(_seconds(fills), 1.0).areas[-1]
    assert min(y for _, y in _points(vision.path)) == 0
    assert len(vision.path) < 20_000


def test_the_room_of_the_cache_is_part_of_the_scale():
    chart = cache_chart(_seconds([CacheFill(50, 0, 0, 0)]), 1.0, capacity_tokens=100)
    assert chart.line.percent == 0 and min(y for _, y in _points(chart.areas[0].path)) == HEIGHT / 2


def test_the_real_time_line_has_the_slow_turns_above_it():
    seconds = [ReportTurn(float(at), "", None, latency_s) for at, latency_s in enumerate((0.1, 2.0, 0.5, 4.0))]
    chart = latency_chart(seconds, 1.0)
    line = chart.line.percent / 100 * HEIGHT
    slowest = next(area for area in chart.areas if area.kind == "slowest")
    assert [y < line for _, y in _points(slowest.path)] == [False, True, False, True]
    assert "2 of 4 took longer than the 1 s" in chart.summary
    ticks = {tick.label: tick.percent for tick in chart.y_ticks}
    assert ticks["1 s"] == pytest.approx(chart.line.percent) and ticks["100 ms"] > ticks["1 s"]


def test_there_is_no_chart_without_measurements():
    unwatched = [ReportTurn(0.0, None, "shot")]
    assert cache_chart(unwatched, 1.0) is None and latency_chart(unwatched, 1.0) is None
    assert fault_chart([(0.0, 1, 60), (60.0, 2, 60)]) is None


def test_faults_are_bars_of_their_share():
    chart = fault_chart([(0.0, 6, 60), (60.0, 0, 60), (120.0, 3, 60)])
    assert chart.areas[0].path.count("z") == 2
    assert "5.0% in all, 10% in the worst minute" in chart.summary


def test_a_strip_puts_what_was_called_below_what_happened():
    seconds = [
        ReportTurn(60.0, "shot", "shot", fault=0.0),
        ReportTurn(61.0, "", "pass", fault=1.0),
        ReportTurn(62.0, "pass", "", fault=1.0),
        ReportTurn(63.0, "", "", fault=0.0),
        ReportTurn(64.0, None, "shot", fault=1.0),
        ReportTurn(65.0, "goal for red", "goal for blue", fault=0.5),
        ReportTurn(66.0, "well", None),
    ]
    marks = strip(seconds, 60.0, 1.0)
    places = {kind: [float(x) for x in re.findall(r"M([\d.]+) ", path)] for kind, path in marks.items()}
    assert places == {
        "truth": [0, 1, 4, 5],
        "right": [0],
        "missed": [1],
        "wrong": [2],
        "unwatched": [4],
        "partly": [5],
        "said": [6],
    }
