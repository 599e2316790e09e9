"""A match told under other names counts as a match counts, and is scored as right by the scorer's own rules."""

from itertools import islice

import pytest

from streamingvlm.pitch import Kind, Match, parse, say
from streamingvlm.pitch.dice import Dice
from streamingvlm.training.pitch.casting import Cast, draw_cast


@pytest.mark.parametrize("seed", [1, 7, 42])
def test_under_its_own_names_a_match_is_told_as_it_is(seed):
    match = Match(seed)
    seconds = list(islice(match.seconds(), 2000))
    cast = Cast(match.colours, match.clubs)
    assert cast.tell((second.kind, second.side) for second in seconds) == [say(second) for second in seconds]
    assert cast.introduction == match.intro


def test_the_count_goes_on_from_any_score_and_starts_again_when_full():
    cast = Cast(("red", "blue"), ("Rovers", "City"))
    lines = cast.tell([(Kind.GOAL, 1), (Kind.KICK_OFF, 0), (Kind.GOAL, 0)], (3, 8))
    assert lines == ["goal for blue! City away 3-9", "kick-off for red, 0-0", "goal for red! Rovers home 1-0"]


def test_sides_differ_in_club_and_colour():
    for seed in range(200):
        cast = draw_cast(Dice(seed))
        assert cast.clubs[0] != cast.clubs[1]
        assert cast.colours[0] != cast.colours[1]
        goal = parse(cast.tell([(Kind.GOAL, 1)])[0])
        assert (goal.colour, goal.club, goal.score) == (cast.colours[1], cast.clubs[1], (0, 1))
