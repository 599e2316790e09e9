"""Commentary styles: the default one, and a second one for fine-tuning.

    red pass            blue tackle       red shot
    red goal! 2-1 to Rovers               red denied          red wide
    blue throw-in, 2-1                    blue kick-off, 2-1

The second style puts the colour before the event, also for a shot, which has no colour in the default style. It uses
only words of the default style: LoRA adapters do not train the embeddings, so they could hardly teach the model to
generate a token that it has never generated.
"""

import re
from collections.abc import Callable
from dataclasses import dataclass

from streamingvlm.pitch.commentary_lines import OTHER, ParsedLine, parse_line, reference_line
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
    """A style of commentary: the reference line of a second, and the parser of such lines."""

    name: str
    reference_line: Callable[[PitchSecond], str]
    parse_line: Callable[[str], ParsedLine]


def radio_line(second: PitchSecond) -> str:
    """Return the line of a second in the radio style; "" for a silent second."""
    score = "{}-{}".format(*second.score)
    return _LINES[second.kind].format(colour=second.colour, club=second.club, score=score)


def parse_radio_line(text: str) -> ParsedLine:
    """Parse a line of the radio style. The parser is strict: a line that does not match in full is "other"."""
    for kind, pattern in _PATTERNS.items():
        if match := pattern.fullmatch(text.strip()):
            groups = match.groupdict()
            score = groups.get("score")
            goals = tuple(map(int, score.split("-"))) if score else None
            return ParsedLine(kind, colour=groups.get("colour"), club=groups.get("club"), score=goals)
    return ParsedLine(OTHER)


def _pattern(line: str) -> re.Pattern[str]:
    for name, part in _PARTS.items():
        line = line.replace(name, part)
    return re.compile(line)


_PATTERNS = {kind: _pattern(line) for kind, line in _LINES.items()}

TELEGRAM = Style("telegram", reference_line, parse_line)
RADIO = Style("radio", radio_line, parse_radio_line)
STYLES = {style.name: style for style in (TELEGRAM, RADIO)}
