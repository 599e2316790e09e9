"""A match told under other names counts as a match counts, and is scored as right by the scorer's own rules."""

from itertools import islice

import pytest

from streamingvlm.pitch import EventKind, Match, parse, say
from streamingvlm.pitch.dice import Dice
from streamingvlm.training.pitch.teams import Line, Slips, Teams, draw_teams


@pytest.mark.parametrize("seed", [1, 7, 42])
def test_under_its_own_names_a_match_is_told_as_it_is(seed):
    match = Match(seed)
    seconds = list(islice(match.seconds(), 2000))
    teams = Teams(match.colours, match.clubs)
    assert teams.lines((second.kind, second.side) for second in seconds) == [say(second) for second in seconds]
    assert teams.introduction == match.intro


def test_the_count_goes_on_from_any_score_and_starts_again_when_full():
    teams = Teams(("red", "blue"), ("Rovers", "City"))
    lines = teams.lines([(EventKind.GOAL, 1), (EventKind.KICK_OFF, 0), (EventKind.GOAL, 0)], (3, 8))
    assert lines == [
        "goal for blue! City away 3-9",
        "kick-off for red, Rovers home 0-0",
        "goal for red! Rovers home 1-0",
    ]


def test_sides_differ_in_club_and_colour():
    for seed in range(200):
        teams = draw_teams(Dice(seed))
        assert teams.clubs[0] != teams.clubs[1]
        assert teams.colours[0] != teams.colours[1]
        goal = parse(teams.lines([(EventKind.GOAL, 1)])[0])
        assert (goal.colour, goal.club, goal.score) == (teams.colours[1], teams.clubs[1], (0, 1))


def test_a_goal_that_slipped_to_the_other_side_is_put_right_by_the_kick_off():
    teams = Teams(("red", "blue"), ("Rovers", "City"))
    events = [(EventKind.THROW_IN, 0), (EventKind.GOAL, 1), (EventKind.SILENCE, None), (EventKind.KICK_OFF, 0)]
    assert teams.lines_with_slips(events, (2, 2), Slips(goals_percent=100), Dice(0)) == [
        Line("throw-in to red, still 2-2"),
        Line("goal for red! Rovers home 3-2", is_slip=True),
        Line(""),
        Line("kick-off for red, Rovers home 2-3"),
    ]


def test_slips_come_as_often_as_asked_and_all_else_is_what_is_told_without_them():
    seconds = list(islice(Match(5).seconds(), 4000))
    events = [(second.kind, second.side) for second in seconds]
    teams = Teams(("red", "blue"), ("Rovers", "City"))
    told = teams.lines(events)
    said = teams.lines_with_slips(events, (0, 0), Slips(goals_percent=20, restated_percent=40), Dice(1))
    for kind, percent in ((EventKind.GOAL, 20), (EventKind.THROW_IN, 40)):
        slips = [line.is_slip for line, event in zip(said, events, strict=True) if event[0] is kind]
        assert abs(sum(slips) / len(slips) - percent / 100) < 0.12
    for line, truth, event in zip(said, told, events, strict=True):
        assert (line.line != truth) == line.is_slip
        assert parse(line.line).kind == event[0]
        assert not line.is_slip or event[0] in (EventKind.GOAL, EventKind.THROW_IN)
        assert all(0 <= count <= 9 for count in parse(line.line).score or ())


def test_a_score_of_before_is_restated_as_often_as_asked():
    events = [(second.kind, second.side) for second in islice(Match(5).seconds(), 4000)]
    teams = Teams(("red", "blue"), ("Rovers", "City"))
    scores = [parse(line).score for line in teams.lines(events)]
    said = teams.lines_with_slips(events, (0, 0), Slips(restated_percent=50, earlier_percent=100), Dice(1))
    slips = [(place, parse(line).score) for place, (line, is_slip) in enumerate(said) if is_slip]
    assert len(slips) > 50
    for place, score in slips:
        before = {other for other in scores[:place] if other} - {scores[place]}
        assert score in before or not before


def test_a_goal_that_was_miscounted_is_of_the_right_side_and_the_kick_off_counts_right():
    seconds = [(second.kind, second.side) for second in islice(Match(5).seconds(), 4000)]
    teams = Teams(("red", "blue"), ("Rovers", "City"))
    told = [parse(line) for line in teams.lines(seconds)]
    said = teams.lines_with_slips(seconds, (0, 0), Slips(miscounted_percent=50), Dice(1))
    heard = [parse(line) for line, _ in said]
    slips = [place for place, (_, is_slip) in enumerate(said) if is_slip]
    num_goals = sum(call.kind is EventKind.GOAL for call in told)
    assert 0.35 < len(slips) / num_goals < 0.65
    for place in slips:
        assert told[place].kind is heard[place].kind is EventKind.GOAL
        assert (told[place].colour, told[place].club) == (heard[place].colour, heard[place].club)
        assert sum(a != b for a, b in zip(told[place].score, heard[place].score, strict=True)) == 1
        assert all(0 <= count <= 9 for count in heard[place].score)
        kick_off = next(n for n in range(place, len(told)) if told[n].kind is EventKind.KICK_OFF)
        assert heard[kick_off] == told[kick_off]


@pytest.mark.parametrize("after", [[], [(EventKind.THROW_IN, 0)], [(EventKind.SILENCE, None)]])
def test_nothing_slips_that_could_not_be_put_right(after):
    teams = Teams(("red", "blue"), ("Rovers", "City"))
    always = Slips(goals_percent=100, restated_percent=100)
    first_score, goal, *_ = teams.lines_with_slips(
        [(EventKind.THROW_IN, 1), (EventKind.GOAL, 0), *after], (0, 0), always, Dice(3)
    )
    assert (first_score.is_slip, goal.is_slip) == (False, False)
