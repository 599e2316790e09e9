"""The commentator: fixed lines, and a parser that takes them apart again."""

from dataclasses import replace
from itertools import islice

import pytest

from streamingvlm.pitch import Call, EventKind, Match, parse, say

SPEAKS_OF_SIDE = set(EventKind) - {EventKind.SILENCE, EventKind.SHOT}
SPEAKS_OF_CLUB = {EventKind.GOAL, EventKind.KICK_OFF}
SPEAKS_OF_SCORE = {EventKind.GOAL, EventKind.THROW_IN, EventKind.KICK_OFF}


@pytest.fixture(scope="module")
def second():
    return replace(next(Match(0).seconds()), side=1, colours=("red", "blue"), clubs=("Rovers", "City"), score=(2, 1))


@pytest.mark.parametrize(
    ("kind", "line"),
    [
        (EventKind.SILENCE, ""),
        (EventKind.PASS, "pass by blue"),
        (EventKind.TACKLE, "tackle by blue"),
        (EventKind.SHOT, "shot"),
        (EventKind.GOAL, "goal for blue! City away 2-1"),
        (EventKind.SAVE, "saved! blue denied"),
        (EventKind.WIDE, "wide from blue"),
        (EventKind.THROW_IN, "throw-in to blue, still 2-1"),
        (EventKind.KICK_OFF, "kick-off for blue, City away 2-1"),
    ],
)
def test_lines(second, kind, line):
    assert say(replace(second, kind=kind)) == line


def test_parse_undoes_say():
    for seed in range(20):
        for second in islice(Match(seed).seconds(), 100):
            assert parse(say(second)) == Call(
                second.kind,
                colour=second.colour if second.kind in SPEAKS_OF_SIDE else None,
                club=second.club if second.kind in SPEAKS_OF_CLUB else None,
                score=second.score if second.kind in SPEAKS_OF_SCORE else None,
            )


@pytest.mark.parametrize(
    ("text", "call"),
    [
        ("...", Call(EventKind.SILENCE)),
        ("  pass by red ...", Call(EventKind.PASS, colour="red")),
        ("Goal for BLUE! rovers 3 - 2", Call(EventKind.GOAL, colour="blue", club="Rovers", score=(3, 2))),
        ("tackle by", Call(EventKind.TACKLE)),
        ("shot shot red", Call(EventKind.SHOT, colour="red")),
        ("red pass", Call("other")),
        ("goalkeeper", Call("other")),
        ("2-1", Call("other")),
    ],
)
def test_parse_takes_what_a_model_may_say(text, call):
    assert parse(text) == call
