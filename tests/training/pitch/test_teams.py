"""Commentary with other clubs counts like a match, and is correct by the rules of the evaluation."""

from itertools import islice

import pytest

from streamingvlm.pitch import EventKind, Match, parse_line, reference_line
from streamingvlm.pitch.dice import Dice
from streamingvlm.training.pitch.teams import Line, Slips, Teams, draw_teams


@pytest.mark.parametrize("seed", [1, 7, 42])
def test_with_its_own_teams_a_match_has_its_own_commentary(seed):
    match = Match(seed)
    seconds = list(islice(match.seconds(), 2000))
    teams = Teams(match.colours, match.clubs)
    assert teams.lines((second.kind, second.side) for second in seconds) == [
        reference_line(second) for second in seconds
    ]
    assert teams.introduction == match.intro


def test_the_score_counts_on_from_any_score_and_is_reset_when_full():
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
        goal = parse_line(teams.lines([(EventKind.GOAL, 1)])[0])
        assert (goal.colour, goal.club, goal.score) == (teams.colours[1], teams.clubs[1], (0, 1))


def test_the_kick_off_corrects_a_goal_given_to_the_other_side():
    teams = Teams(("red", "blue"), ("Rovers", "City"))
    events = [(EventKind.THROW_IN, 0), (EventKind.GOAL, 1), (EventKind.SILENCE, None), (EventKind.KICK_OFF, 0)]
    assert teams.lines_with_slips(events, (2, 2), Slips(goals_percent=100), Dice(0)) == [
        Line("throw-in to red, still 2-2"),
        Line("goal for red! Rovers home 3-2", is_slip=True),
        Line(""),
        Line("kick-off for red, Rovers home 2-3"),
    ]


def test_slips_have_their_rates_and_all_other_lines_are_correct():
    seconds = list(islice(Match(5).seconds(), 4000))
    events = [(second.kind, second.side) for second in seconds]
    teams = Teams(("red", "blue"), ("Rovers", "City"))
    correct = teams.lines(events)
    lines = teams.lines_with_slips(events, (0, 0), Slips(goals_percent=20, restated_percent=40), Dice(1))
    for kind, percent in ((EventKind.GOAL, 20), (EventKind.THROW_IN, 40)):
        slips = [line.is_slip for line, event in zip(lines, events, strict=True) if event[0] is kind]
        assert abs(sum(slips) / len(slips) - percent / 100) < 0.12
    for line, truth, event in zip(lines, correct, events, strict=True):
        assert (line.text != truth) == line.is_slip
        assert parse_line(line.text).kind == event[0]
        assert not line.is_slip or event[0] in (EventKind.GOAL, EventKind.THROW_IN)
        assert all(0 <= count <= 9 for count in parse_line(line.text).score or ())


def test_earlier_scores_are_restated_at_their_rate():
    events = [(second.kind, second.side) for second in islice(Match(5).seconds(), 4000)]
    teams = Teams(("red", "blue"), ("Rovers", "City"))
    scores = [parse_line(line).score for line in teams.lines(events)]
    lines = teams.lines_with_slips(events, (0, 0), Slips(restated_percent=50, earlier_percent=100), Dice(1))
    slips = [(place, parse_line(line).score) for place, (line, is_slip) in enumerate(lines) if is_slip]
    assert len(slips) > 50
    for place, score in slips:
        before = {other for other in scores[:place] if other} - {scores[place]}
        assert score in before or not before


def test_a_miscounted_goal_has_the_right_side_and_the_kick_off_is_correct():
    seconds = [(second.kind, second.side) for second in islice(Match(5).seconds(), 4000)]
    teams = Teams(("red", "blue"), ("Rovers", "City"))
    correct = [parse_line(line) for line in teams.lines(seconds)]
    lines = teams.lines_with_slips(seconds, (0, 0), Slips(miscounted_percent=50), Dice(1))
    parsed = [parse_line(line) for line, _ in lines]
    slips = [place for place, (_, is_slip) in enumerate(lines) if is_slip]
    num_goals = sum(call.kind is EventKind.GOAL for call in correct)
    assert 0.35 < len(slips) / num_goals < 0.65
    for place in slips:
        assert correct[place].kind is parsed[place].kind is EventKind.GOAL
        assert (correct[place].colour, correct[place].club) == (parsed[place].colour, parsed[place].club)
        assert sum(a != b for a, b in zip(correct[place].score, parsed[place].score, strict=True)) == 1
        assert all(0 <= count <= 9 for count in parsed[place].score)
        kick_off = next(n for n in range(place, len(correct)) if correct[n].kind is EventKind.KICK_OFF)
        assert parsed[kick_off] == correct[kick_off]


@pytest.mark.parametrize("after", [[], [(EventKind.THROW_IN, 0)], [(EventKind.SILENCE, None)]])
def test_only_correctable_lines_slip(after):
    teams = Teams(("red", "blue"), ("Rovers", "City"))
    always = Slips(goals_percent=100, restated_percent=100)
    first_score, goal, *_ = teams.lines_with_slips(
        [(EventKind.THROW_IN, 1), (EventKind.GOAL, 0), *after], (0, 0), always, Dice(3)
    )
    assert (first_score.is_slip, goal.is_slip) == (False, False)
