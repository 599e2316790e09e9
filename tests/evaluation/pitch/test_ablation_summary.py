"""Means and intervals over seeds, and their tables."""

import json
from math import isnan, nan

import pytest
from scipy import stats

from streamingvlm.evaluation.pitch.ablation_figures import draw
from streamingvlm.evaluation.pitch.ablation_summary import AblationResult, estimate
from streamingvlm.evaluation.pitch.ablation_tables import AblationRow, AblationTable
from streamingvlm.evaluation.pitch.run import PitchRun, RunSecond
from streamingvlm.evaluation.report.stream_report import CacheFill

ROWS = (AblationRow("streaming", paper=("66.18",)), AblationRow("silent"))


def _run(name, seed, said, stopped=""):
    seconds = [
        RunSecond(float(at), "shot", said, float(said != "shot"), 2, 0.02 * seed, 500.0, CacheFill(10, 0, 5, seed))
        for at in range(40)
    ]
    return PitchRun(seed, "telegram", tuple(seconds), name, {"model": "pitch"}, stopped, "abc")


def _result(by_time=False):
    table = AblationTable(
        "modes", "Ways", ROWS, (("macro-F1", "club", "time per token, ms"),), ("paper: wins, %",), by_time, "A note."
    )
    runs = {
        "streaming": [_run("streaming", 1, "shot"), _run("streaming", 3, "shot")],
        "silent": [_run("silent", 1, ""), _run("silent", 3, "", "the work took 9 s")],
    }
    return AblationResult(table, runs)


def test_the_interval_is_students():
    values = [0.91, 0.97, 0.92]
    figure = estimate(values)
    low, high = stats.ttest_1samp(values, 0).confidence_interval(0.95)
    assert (figure.mean - figure.half_width, figure.mean + figure.half_width) == pytest.approx((low, high))


def test_seeds_that_have_nothing_to_judge_are_left_out():
    assert estimate([nan, 0.5, nan]).text(2) == "0.50" and isnan(estimate([0.5]).half_width)
    assert estimate([nan]).text(2) == "–" and estimate([]).text(2) == "–"
    assert estimate([1000, 1002]).text(0) == "1,001 ± 13"


def test_the_table_has_the_papers_figures_in_a_column_of_their_own():
    lines = _result().markdown().splitlines()
    assert lines[:4] == [
        "|  | macro-F1 | club | time per token, ms | paper: wins, % |",
        "| --- | --- | --- | --- | --- |",
        "| streaming | 1.000 ± 0.000 | – | 20.0 ± 127.1 | 66.18 |",
        "| silent | 0.000 ± 0.000 | – | 20.0 ± 127.1 | – |",
    ]
    assert lines[5:] == [
        "Matches of seeds 1, 3, 40 s each; mean ± half the 95% interval of Student's t over the seeds. A note.",
        "silent, seed 3: the work took 9 s.",
    ]


def test_the_document_holds_every_value_with_seeds_settings_and_commit():
    document = json.loads(json.dumps(_result().document(), allow_nan=False))
    assert (document["seeds"], document["commits"], document["duration_s"]) == ([1, 3], ["abc"], 40)
    streaming, silent = document["rows"]
    assert streaming["paper"] == ["66.18"] and streaming["settings"] == {"model": "pitch"}
    assert streaming["figures"]["time per token, ms"]["by_seed"] == pytest.approx([10, 30])
    assert silent["figures"]["club"] == {"mean": None, "half_width": None, "by_seed": [None, None]}
    assert silent["stopped"] == ["", "the work took 9 s"]


@pytest.mark.parametrize("by_time", [True, False])
def test_a_figure_is_the_same_picture_each_time(tmp_path, by_time):
    for name in ("a.png", "b.png"):
        draw(_result(by_time), tmp_path / name)
    content = (tmp_path / "a.png").read_bytes()
    assert content.startswith(b"\x89PNG") and content == (tmp_path / "b.png").read_bytes()
