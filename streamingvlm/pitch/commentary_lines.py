"""The words of a match: what a perfect commentator says in a second, and what a line means.

A line begins with the event, which is seen, then names the colour, then the club and the score, which are remembered:

    pass by red                      tackle by blue       shot
    goal for red! Rovers home 2-1    saved! red denied    wide from red
    throw-in to blue, still 2-1      kick-off for blue, City away 2-1

Scores give the introduction's first club first. A silent second has no line at all.
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
class Call:
    """What a line says: the kind of event (or "other") and whatever else it names."""

    kind: str
    colour: str | None = None
    club: str | None = None
    score: tuple[int, int] | None = None


def say(second: PitchSecond) -> str:
    """The line for a second, without the trailing ellipsis of the turn format; "" for a silent one."""
    score = "{}-{}".format(*second.score)
    return _LINES[second.kind].format(colour=second.colour, club=second.club, ground=second.ground, score=score)


def parse(text: str) -> Call:
    """What a line says; the inverse of `say`.

    Tolerant: the first word decides the kind, the first colour, club and score found anywhere are taken, case and
    punctuation are no matter. A line whose first word names no event is "other"; an empty one or bare dots are silence.
    """
    words = _WORD.findall(text.lower())
    if not words:
        return Call(EventKind.SILENCE)
    kind = _FIRST_WORDS.get(words[0])
    if kind is None:
        return Call(OTHER)
    score = _SCORE.search(text)
    return Call(
        kind,
        colour=next((word for word in words if word in COLOURS), None),
        club=next((club for word in words for club in CLUBS if word == club.lower()), None),
        score=(int(score[1]), int(score[2])) if score else None,
    )
