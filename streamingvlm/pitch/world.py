"""The endless match: a seed gives a sequence of seconds.

Following it needs every part of a stream's memory. The event is visible in the frames of its second. The side that
scored was visible one second earlier. The score is never shown; only the commentary has it. The clubs' names are given
once, before the first second.
"""

from collections.abc import Iterator
from dataclasses import dataclass

from streamingvlm.pitch.dice import Dice, hashed
from streamingvlm.pitch.keyframes import Keyframe, KeyframeBuilder
from streamingvlm.pitch.script import EventKind, Script, ScriptedEvent

COLOURS = ("red", "blue", "yellow", "black")
GROUNDS = ("home", "away")
CLUBS = ("Rovers", "City", "United", "Albion", "Rangers", "Athletic", "Harriers", "Wanderers")
KINDS = tuple(EventKind)


@dataclass(frozen=True)
class PitchSecond:
    """One second of a match, with its ground truth.

    `side` is the acting side, 0 or 1, or None for silence; a goal, save or wide has the side of the shooter. `actor` is
    the acting player, 0 to 7; in a silent second it is the player with the ball, or None if a keeper has it. `score`
    lists side 0 first and is the score at the end of the second. `keyframes` are those at the start, the middle and the
    end of the second.
    """

    index: int
    kind: EventKind
    side: int | None
    actor: int | None
    score: tuple[int, int]
    colours: tuple[str, str]
    clubs: tuple[str, str]
    keyframes: tuple[Keyframe, Keyframe, Keyframe]

    @property
    def colour(self) -> str | None:
        """Colour of the acting side."""
        return None if self.side is None else self.colours[self.side]

    @property
    def club(self) -> str | None:
        """Club of the acting side."""
        return None if self.side is None else self.clubs[self.side]

    @property
    def ground(self) -> str | None:
        """Ground of the acting side, "home" or "away"; side 0 plays at home."""
        return None if self.side is None else GROUNDS[self.side]


class Match:
    """An endless match; the same seed gives the same match on every machine.

    >>> match = Match(7)
    >>> first = next(match.seconds())
    """

    def __init__(self, seed: int) -> None:
        self.seed = seed
        dice = Dice(hashed(seed, 1))
        self.colours = two_of(COLOURS, dice)
        self.clubs = two_of(CLUBS, dice)

    @property
    def intro(self) -> str:
        """The introduction, given to a model as the previous text before the first second."""
        return introduction(self.clubs, self.colours)

    def seconds(self) -> Iterator[PitchSecond]:
        """Yield the seconds of the match from its kick-off, without end; every call starts from the beginning."""
        builder = KeyframeBuilder(hashed(self.seed, 2))
        events = Script(hashed(self.seed, 3)).events()
        event, upcoming, later = next(events), next(events), next(events)
        start = builder.opening(event, upcoming)
        while True:
            stop = builder.opening(upcoming, later)
            yield self._second(event, (start, builder.middle(event, start, stop), stop))
            event, upcoming, later, start = upcoming, later, next(events), stop

    def _second(self, event: ScriptedEvent, keyframes: tuple[Keyframe, Keyframe, Keyframe]) -> PitchSecond:
        return PitchSecond(
            event.index, event.kind, event.side, event.actor, event.score, self.colours, self.clubs, keyframes
        )


def introduction(clubs: tuple[str, str], colours: tuple[str, str]) -> str:
    """Return the introduction: each club, its ground and its colour, in the order of the scores."""
    sides = zip(clubs, GROUNDS, colours, strict=True)
    return ", ".join(f"{club} {ground} {colour}" for club, ground, colour in sides) + "."


def two_of(names: tuple[str, ...], dice: Dice) -> tuple[str, str]:
    """Draw two names that differ, in either order."""
    first = dice.below(len(names))
    second = (first + 1 + dice.below(len(names) - 1)) % len(names)
    return names[first], names[second]
