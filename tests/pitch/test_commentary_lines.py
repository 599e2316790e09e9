"""The reference commentary: fixed lines, and a parser that inverts them."""

from dataclasses import replace
from itertools import islice

import pytest

from streamingvlm.pitch import EventKind, Match, ParsedLine, parse_line, reference_line

NAMES_SIDE = set(EventKind) - {EventKind.SILENCE, EventKind.SHOT}
NAMES_CLUB = {EventKind.GOAL, EventKind.KICK_OFF}
NAMES_SCORE = {EventKind.GOAL, EventKind.THROW_IN, EventKind.KICK_OFF}


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
    assert reference_line(replace(second, kind=kind)) == line


def test_parse_line_inverts_reference_line():
    for seed in range(20):
        for second in islice(Match(seed).seconds(), 100):
            assert parse_line(reference_line(second)) == ParsedLine(
                second.kind,
                colour=second.colour if second.kind in NAMES_SIDE else None,
                club=second.club if second.kind in NAMES_CLUB else None,
                score=second.score if second.kind in NAMES_SCORE else None,
            )


@pytest.mark.parametrize(
    ("text", "parsed"),
    [
        ("...", ParsedLine(EventKind.SILENCE)),
        ("  pass by red ...", ParsedLine(EventKind.PASS, colour="red")),
        ("Goal for BLUE! rovers 3 - 2", ParsedLine(EventKind.GOAL, colour="blue", club="Rovers", score=(3, 2))),
        ("tackle by", ParsedLine(EventKind.TACKLE)),
        ("shot shot red", ParsedLine(EventKind.SHOT, colour="red")),
        ("red pass", ParsedLine("other")),
        ("goalkeeper", ParsedLine("other")),
        ("2-1", ParsedLine("other")),
    ],
)
def test_parse_line_accepts_imperfect_lines(text, parsed):
    assert parse_line(text) == parsed
