"""The scorer, compared with cases computed by hand."""

from dataclasses import replace
from itertools import islice
from math import isnan

import pytest
from hypothesis import given
from hypothesis import strategies as st

from streamingvlm.pitch import EventKind, Match, reference_line, score, score_parts
from streamingvlm.pitch.scorer import late_delays_s

KINDS = st.sampled_from([EventKind.SILENCE, EventKind.PASS, EventKind.SHOT])
CALLS = st.lists(st.tuples(KINDS, KINDS), max_size=9)


@pytest.fixture(scope="module")
def match():
    return list(islice(Match(2).seconds(), 600))


def _second(kind, side=0, goals=(1, 0)):
    template = next(Match(0).seconds())
    side = None if kind is EventKind.SILENCE else side
    return replace(template, kind=kind, side=side, score=goals, colours=("red", "blue"), clubs=("Rovers", "City"))


def test_the_truth_scores_full_marks(match):
    report = score(match, [reference_line(second) for second in match])
    assert (report.macro_f1, report.accuracy) == (1, 1)
    assert (report.side_accuracy, report.club_accuracy, report.score_accuracy) == (1, 1, 1)
    assert set(report.f1) == set(EventKind)


def test_f1_by_kind():
    truth = [
        _second(kind)
        for kind in (
            EventKind.PASS,
            EventKind.PASS,
            EventKind.PASS,
            EventKind.SHOT,
            EventKind.SILENCE,
            EventKind.SILENCE,
        )
    ]
    report = score(truth, ["pass by red", "pass by red", "", "pass by red", "", "nonsense"])
    assert report.f1 == {"silence": 2 * 1 / (2 + 2), "pass": 2 * 2 / (3 + 3), "shot": 0}
    assert report.macro_f1 == pytest.approx((1 / 2 + 2 / 3 + 0) / 3)
    assert report.accuracy == pytest.approx(3 / 6)
    assert report.confusion["silence", "other"] == 1


def test_sides_count_where_the_kind_is_right():
    truth = [
        _second(EventKind.PASS),
        _second(EventKind.TACKLE, side=1),
        _second(EventKind.SAVE),
        _second(EventKind.SHOT),
    ]
    report = score(truth, ["pass by red", "tackle by red", "wide from blue", "shot"])
    assert report.side_accuracy == 1 / 2


SCORES = ((1, 0), (1, 1), (1, 0), (1, 0), (1, 1))


def test_clubs_count_over_reported_goals_and_scores_over_lines_with_a_score():
    kinds = (EventKind.GOAL, EventKind.GOAL, EventKind.GOAL, EventKind.THROW_IN, EventKind.KICK_OFF)
    truth = [
        _second(kind, side=side, goals=goals) for kind, side, goals in zip(kinds, (0, 1, 0, 0, 0), SCORES, strict=True)
    ]
    lines = ["goal for red! Rovers home 1-0", "goal for blue! Rovers away 2-1", "pass by red", "throw-in to red"]
    report = score(truth, [*lines, "kick-off for red, Rovers home 1-1"])
    assert report.club_accuracy == 1 / 2
    assert report.score_accuracy == 2 / 4
    assert report.goal_score_accuracy == 1 / 2


def test_a_metric_without_cases_is_nan():
    report = score([_second(EventKind.SILENCE)], [""])
    assert report.macro_f1 == 1
    assert isnan(report.side_accuracy) and isnan(report.club_accuracy) and isnan(report.score_accuracy)


def test_thirds_show_where_a_stream_fails(match):
    lines = [reference_line(second) for second in match[:400]] + ["pass by red"] * 200
    first, middle, last = score_parts(match, lines, num_parts=3)
    assert (first.num_seconds, middle.num_seconds, last.num_seconds) == (200, 200, 200)
    assert first.macro_f1 == middle.macro_f1 == 1
    assert last.macro_f1 < 0.1


def test_a_line_for_every_second_is_required(match):
    with pytest.raises(ValueError, match="shorter"):
        score(match, ["shot"])


def test_the_report_reads_as_one_line(match):
    text = str(score(match, ["" for _ in match]))
    assert text.startswith("600 s: macro-F1 0.0") and "\n" not in text


def test_silence_precision_counts_missed_events_and_recall_false_reports():
    truth = [
        _second(kind)
        for kind in (EventKind.SILENCE, EventKind.SILENCE, EventKind.SILENCE, EventKind.PASS, EventKind.PASS)
    ]
    report = score(truth, ["", "", "shot", "", "pass by red"])
    assert (report.silence_precision, report.silence_recall) == (2 / 3, 2 / 3)
    report = score(truth, ["", "nonsense", "shot", "pass by red", "pass by red"])
    assert (report.silence_precision, report.silence_recall) == (1, 1 / 3)
    assert report.silence_f1 == pytest.approx(2 / (1 / 1 + 3 / 1))


def test_a_late_report_counts_with_its_delay():
    truth = [
        _second(kind)
        for kind in (
            EventKind.SHOT,
            EventKind.SILENCE,
            EventKind.SILENCE,
            EventKind.PASS,
            EventKind.SILENCE,
            EventKind.TACKLE,
        )
    ]
    report = score(truth, ["", "", "shot", "pass by red", "", ""])
    assert (report.late_share, report.mean_delay_s) == (1 / 3, 2)
    report = score(truth, [""] * 6)
    assert report.late_share == 0 and isnan(report.mean_delay_s)


def test_a_report_too_late_too_early_or_twice_is_not_a_late_one():
    silence, shot = EventKind.SILENCE, EventKind.SHOT
    assert late_delays_s([shot] + [silence] * 4, [silence] * 4 + [shot]) == []
    assert late_delays_s([silence, shot], [shot, silence]) == []
    assert late_delays_s([shot, silence], [shot, shot]) == []
    assert late_delays_s([shot, silence, silence], [silence, shot, shot]) == [1]


def _most_matches(events, calls, window_s):
    """Return the size of a maximum matching of events to later calls within the window, by brute force."""
    if not events:
        return 0
    first, *rest = events
    best = _most_matches(rest, calls, window_s)
    for call in calls:
        if first < call <= first + window_s:
            best = max(best, 1 + _most_matches(rest, [other for other in calls if other != call], window_s))
    return best


@given(CALLS, st.integers(1, 4))
def test_the_matching_is_maximum(pairs, window_s):
    delays_s = late_delays_s([true for true, _ in pairs], [called for _, called in pairs], window_s)
    most = sum(
        _most_matches(
            [at for at, (true, called) in enumerate(pairs) if true == kind != called],
            [at for at, (true, called) in enumerate(pairs) if called == kind != true],
            window_s,
        )
        for kind in (EventKind.PASS, EventKind.SHOT)
    )
    assert len(delays_s) == most
    assert all(1 <= delay_s <= window_s for delay_s in delays_s)


@given(CALLS.filter(bool), st.integers(1, 6))
def test_parts_add_up_to_the_whole(pairs, num_parts):
    truth = [_second(true) for true, _ in pairs]
    lines = [reference_line(_second(called)) for _, called in pairs]
    parts = score_parts(truth, lines, num_parts=num_parts)
    lengths = [part.num_seconds for part in parts]
    assert len(parts) == num_parts and sum(lengths) == len(pairs) and max(lengths) - min(lengths) <= 1
    right = sum(part.accuracy * part.num_seconds for part in parts if part.num_seconds)
    assert right == pytest.approx(score(truth, lines).accuracy * len(pairs))


@given(CALLS)
def test_reference_lines_can_replace_the_seconds(pairs):
    truth = [_second(true) for true, _ in pairs]
    lines = [reference_line(_second(called)) for _, called in pairs]
    # Compared as text, since nan is not equal to itself.
    assert str(score([reference_line(second) for second in truth], lines)) == str(score(truth, lines))
