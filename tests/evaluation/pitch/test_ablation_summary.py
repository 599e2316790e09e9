"""Means over seeds, and their tables."""

import json
from math import isnan, nan

import pytest

from streamingvlm.evaluation.pitch.ablation_figures import draw
from streamingvlm.evaluation.pitch.ablation_summary import AblationResult, mean
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


def test_seeds_that_have_nothing_to_judge_are_left_out_of_the_mean():
    assert mean([nan, 0.5, 1.0]) == 0.75
    assert isnan(mean([nan])) and isnan(mean([]))


def test_each_mean_stands_above_its_seeds_and_the_papers_figures_in_a_table_of_their_own():
    lines = _result().markdown().splitlines()
    assert lines[:8] == [
        "|  | macro-F1 | club | time per token, ms |",
        "| --- | --- | --- | --- |",
        "| streaming | 1.000 | – | 20.0 |",
        "| · seed 1 | 1.000 | – | 10.0 |",
        "| · seed 3 | 1.000 | – | 30.0 |",
        "| silent | 0.000 | – | 20.0 |",
        "| · seed 1 | 0.000 | – | 10.0 |",
        "| · seed 3 | 0.000 | – | 30.0 |",
    ]
    assert lines[9:13] == ["|  | paper: wins, % |", "| --- | --- |", "| streaming | 66.18 |", "| silent | – |"]
    assert lines[14:] == [
        "Matches of seeds 1, 3, 40 s each; a row is the mean over the seeds. A note.",
        "silent, seed 3: the work took 9 s.",
    ]


def test_one_seed_has_no_rows_of_its_own():
    result = _result()
    alone = AblationResult(result.table, {name: runs[:1] for name, runs in result.runs.items()})
    assert alone.markdown().splitlines()[2:5] == [
        "| streaming | 1.000 | – | 10.0 |",
        "| silent | 0.000 | – | 10.0 |",
        "",
    ]


def test_the_document_holds_every_value_with_seeds_settings_and_commit():
    document = json.loads(json.dumps(_result().document(), allow_nan=False))
    assert (document["seeds"], document["commits"], document["duration_s"]) == ([1, 3], ["abc"], 40)
    streaming, silent = document["rows"]
    assert streaming["paper"] == ["66.18"] and streaming["settings"] == {"model": "pitch"}
    assert streaming["figures"]["time per token, ms"]["by_seed"] == pytest.approx([10, 30])
    assert silent["figures"]["club"] == {"mean": None, "by_seed": [None, None]}
    assert silent["stopped"] == ["", "the work took 9 s"]


@pytest.mark.parametrize("by_time", [True, False])
def test_a_figure_is_the_same_picture_each_time(tmp_path, by_time):
    for name in ("a.png", "b.png"):
        draw(_result(by_time), tmp_path / name)
    content = (tmp_path / "a.png").read_bytes()
    assert content.startswith(b"\x89PNG") and content == (tmp_path / "b.png").read_bytes()
