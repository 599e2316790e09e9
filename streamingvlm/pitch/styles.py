"""Other ways to say the same: a second style of commentary, which a model can be tuned to.

    red plays on        blue wins it      red shoots
    red scores! 2-1 Rovers                red denied          red misses
    blue to throw, 2-1                    blue to kick off, 2-1

The colour comes first and the event after it: what the model was taught to see last it must now say first. Most words
are other words, which the small tokenizer spells in pieces.
"""

import re
from collections.abc import Callable
from dataclasses import dataclass

from streamingvlm.pitch import commentator
from streamingvlm.pitch.commentator import OTHER, Call
from streamingvlm.pitch.script import Kind
from streamingvlm.pitch.world import CLUBS, COLOURS, PitchSecond

_LINES = {
    Kind.SILENCE: "",
    Kind.PASS: "{colour} plays on",
    Kind.TACKLE: "{colour} wins it",
    Kind.SHOT: "{colour} shoots",
    Kind.GOAL: "{colour} scores! {score} {club}",
    Kind.SAVE: "{colour} denied",
    Kind.WIDE: "{colour} misses",
    Kind.THROW_IN: "{colour} to throw, {score}",
    Kind.KICK_OFF: "{colour} to kick off, {score}",
}
_PARTS = {
    "{colour}": rf"(?P<colour>{'|'.join(COLOURS)})",
    "{club}": rf"(?P<club>{'|'.join(CLUBS)})",
    "{score}": r"(?P<score>\d+-\d+)",
}


@dataclass(frozen=True)
class Style:
    """A way to comment on a match: what is said of a second, and what a line means."""

    name: str
    say: Callable[[PitchSecond], str]
    parse: Callable[[str], Call]


def say_on_radio(second: PitchSecond) -> str:
    """The line of the second style for a second; "" for a silent one."""
    score = "{}-{}".format(*second.score)
    return _LINES[second.kind].format(colour=second.colour, club=second.club, score=score)


def parse_radio(text: str) -> Call:
    """What a line of the second style says. Not tolerant: a line that is not wholly of this style is "other"."""
    for kind, pattern in _PATTERNS.items():
        if match := pattern.fullmatch(text.strip()):
            said = match.groupdict()
            score = said.get("score")
            goals = tuple(map(int, score.split("-"))) if score else None
            return Call(kind, colour=said.get("colour"), club=said.get("club"), score=goals)
    return Call(OTHER)


def _pattern(line: str) -> re.Pattern[str]:
    for name, part in _PARTS.items():
        line = line.replace(name, part)
    return re.compile(line)


_PATTERNS = {kind: _pattern(line) for kind, line in _LINES.items()}

TELEGRAM = Style("telegram", commentator.say, commentator.parse)
RADIO = Style("radio", say_on_radio, parse_radio)
STYLES = {style.name: style for style in (TELEGRAM, RADIO)}
