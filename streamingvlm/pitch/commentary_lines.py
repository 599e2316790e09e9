"""The reference commentary of a match, one line per second, and the parser of such lines.

A line starts with the event, which is visible. The colour, the club and the score follow; these need memory:

    pass by red                      tackle by blue       shot
    goal for red! Rovers home 2-1    saved! red denied    wide from red
    throw-in to blue, still 2-1      kick-off for blue, City away 2-1

A score lists first the club that the introduction names first. The line of a silent second is empty.
"""

import re
from dataclasses import dataclass

from streamingvlm.pitch.script import EventKind
from streamingvlm.pitch.world import CLUBS, COLOURS, PitchSecond

OTHER = "other"

_LINES = {
    EventKind.SILENCE: "",
    EventKind.PASS: "pass by {colour}",
    EventKind.TACKLE: "tackle by {colour}",
    EventKind.SHOT: "shot",
    EventKind.GOAL: "goal for {colour}! {club} {ground} {score}",
    EventKind.SAVE: "saved! {colour} denied",
    EventKind.WIDE: "wide from {colour}",
    EventKind.THROW_IN: "throw-in to {colour}, still {score}",
    EventKind.KICK_OFF: "kick-off for {colour}, {club} {ground} {score}",
}
_FIRST_WORDS = {line.split()[0].strip("!"): kind for kind, line in _LINES.items() if line}
_SCORE = re.compile(r"\b(\d+)\s*-\s*(\d+)\b")
_WORD = re.compile(r"[\w-]+")


@dataclass(frozen=True)
class ParsedLine:
    """The content of a line: the kind of event (or "other"), and the colour, club and score where it has them."""

    kind: str
    colour: str | None = None
    club: str | None = None
    score: tuple[int, int] | None = None


def reference_line(second: PitchSecond) -> str:
    """Return the line of a second without the turn format's trailing ellipsis; "" for a silent second."""
    score = "{}-{}".format(*second.score)
    return _LINES[second.kind].format(colour=second.colour, club=second.club, ground=second.ground, score=score)


def parse_line(text: str) -> ParsedLine:
    """Parse a line; the inverse of `reference_line`.

    The parser is tolerant: the first word decides the kind, the first colour, club and score anywhere in the line
    count, and case and punctuation are ignored. A line whose first word names no event is "other". An empty line, or
    one of dots alone, is silence.
    """
    words = _WORD.findall(text.lower())
    if not words:
        return ParsedLine(EventKind.SILENCE)
    kind = _FIRST_WORDS.get(words[0])
    if kind is None:
        return ParsedLine(OTHER)
    score = _SCORE.search(text)
    return ParsedLine(
        kind,
        colour=next((word for word in words if word in COLOURS), None),
        club=next((club for word in words for club in CLUBS if word == club.lower()), None),
        score=(int(score[1]), int(score[2])) if score else None,
    )
