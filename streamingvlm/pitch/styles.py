"""Other ways to say the same: a second style of commentary, which a model can be tuned to.

    red pass            blue tackle       red shot
    red goal! 2-1 to Rovers               red denied          red wide
    blue throw-in, 2-1                    blue kick-off, 2-1

The colour comes first and the event after it: what the model was taught to say second it must now say first, of a shot
too, which had no colour. The words are those of the first style, because adapters leave the embeddings alone: a token
that the base model never learnt to say, they can hardly teach it.
"""

import re
from collections.abc import Callable
from dataclasses import dataclass

from streamingvlm.pitch import commentator
from streamingvlm.pitch.commentator import OTHER, Call
from streamingvlm.pitch.script import EventKind
from streamingvlm.pitch.world import CLUBS, COLOURS, PitchSecond

_LINES = {
    EventKind.SILENCE: "",
    EventKind.PASS: "{colour} pass",
    EventKind.TACKLE: "{colour} tackle",
    EventKind.SHOT: "{colour} shot",
    EventKind.GOAL: "{colour} goal! {score} to {club}",
    EventKind.SAVE: "{colour} denied",
    EventKind.WIDE: "{colour} wide",
    EventKind.THROW_IN: "{colour} throw-in, {score}",
    EventKind.KICK_OFF: "{colour} kick-off, {score}",
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
