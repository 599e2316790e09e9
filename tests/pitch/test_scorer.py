"""The scorer, against cases worked by hand."""

from dataclasses import replace
from itertools import islice
from math import isnan

import pytest

from streamingvlm.pitch import Kind, Match, say, score, score_parts


@pytest.fixture(scope="module")
def match():
    return list(islice(Match(2).seconds(), 600))


def _second(kind, side=0, goals=(1, 0)):
    template = next(Match(0).seconds())
    side = None if kind is Kind.SILENCE else side
    return replace(template, kind=kind, side=side, score=goals, colours=("red", "blue"), clubs=("Rovers", "City"))


def test_the_truth_scores_full_marks(match):
    report = score(match, [say(second) for second in match])
    assert (report.macro_f1, report.accuracy) == (1, 1)
    assert (report.side_accuracy, report.club_accuracy, report.score_accuracy) == (1, 1, 1)
    assert set(report.f1) == set(Kind)


def test_f1_by_kind():
    truth = [_second(kind) for kind in (Kind.PASS, Kind.PASS, Kind.PASS, Kind.SHOT, Kind.SILENCE, Kind.SILENCE)]
    report = score(truth, ["pass by red", "pass by red", "", "pass by red", "", "nonsense"])
    assert report.f1 == {"silence": 2 * 1 / (2 + 2), "pass": 2 * 2 / (3 + 3), "shot": 0}
    assert report.macro_f1 == pytest.approx((1 / 2 + 2 / 3 + 0) / 3)
    assert report.accuracy == pytest.approx(3 / 6)
    assert report.confusion["silence", "other"] == 1


def test_sides_are_judged_where_the_kind_was_called_right():
    truth = [_second(Kind.PASS), _second(Kind.TACKLE, side=1), _second(Kind.SAVE), _second(Kind.SHOT)]
    report = score(truth, ["pass by red", "tackle by red", "wide from blue", "shot"])
    assert report.side_accuracy == 1 / 2


def test_clubs_are_judged_over_the_goals_called_and_scores_over_the_lines_that_state_one():
    truth = [_second(Kind.GOAL), _second(Kind.GOAL, side=1, goals=(1, 1)), _second(Kind.GOAL), _second(Kind.THROW_IN)]
    lines = ["goal for red! Rovers home 1-0", "goal for blue! Rovers away 2-1", "pass by red", "throw-in to red"]
    report = score(truth, lines)
    assert report.club_accuracy == 1 / 2
    assert report.score_accuracy == 1 / 3
    assert report.goal_score_accuracy == 1 / 2


def test_what_never_came_up_is_not_a_number():
    report = score([_second(Kind.SILENCE)], [""])
    assert report.macro_f1 == 1
    assert isnan(report.side_accuracy) and isnan(report.club_accuracy) and isnan(report.score_accuracy)


def test_thirds_show_where_a_stream_goes_wrong(match):
    lines = [say(second) for second in match[:400]] + ["pass by red"] * 200
    first, middle, last = score_parts(match, lines, num_parts=3)
    assert (first.num_seconds, middle.num_seconds, last.num_seconds) == (200, 200, 200)
    assert first.macro_f1 == middle.macro_f1 == 1
    assert last.macro_f1 < 0.1


def test_a_line_for_every_second_is_asked_for(match):
    with pytest.raises(ValueError, match="shorter"):
        score(match, ["shot"])


def test_the_report_reads_as_one_line(match):
    text = str(score(match, ["" for _ in match]))
    assert text.startswith("600 s: macro-F1 0.0") and "\n" not in text
