"""The endless match: seeds in, seconds out.

Each part of a stream's memory is needed to follow it. What happens now is in the pictures of this second; who took
the shot that has just gone in was seen a moment ago; the score is never shown, only spoken; the clubs' names are given
once, before the first second.
"""

from collections.abc import Iterator
from dataclasses import dataclass

from streamingvlm.pitch.dice import Dice, hashed
from streamingvlm.pitch.script import Beat, EventKind, Script
from streamingvlm.pitch.staging import Keyframe, Staging

COLOURS = ("red", "blue", "yellow", "black")
GROUNDS = ("home", "away")
CLUBS = ("Rovers", "City", "United", "Albion", "Rangers", "Athletic", "Harriers", "Wanderers")
KINDS = tuple(EventKind)


@dataclass(frozen=True)
class PitchSecond:
    """One second of a match: what is seen and what is true.

    `side` is the acting side, 0 or 1: the shooter's for a shot and for what comes of it, None for silence. `actor` is
    the acting player, 0 to 7, in a silent second the one with the ball (None: a keeper has it). `score` counts side 0
    first and holds once the second is over. `keyframes` are those of the start, the half and the end of the second.
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
        """The colour of the acting side."""
        return None if self.side is None else self.colours[self.side]

    @property
    def club(self) -> str | None:
        """The club of the acting side."""
        return None if self.side is None else self.clubs[self.side]

    @property
    def ground(self) -> str | None:
        """Whether the acting side plays at home, as the side named first does, or away."""
        return None if self.side is None else GROUNDS[self.side]


class Match:
    """An endless match, the same for the same seed on every machine.

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
        """What a commentator knows before the first second, given to a model as the text so far."""
        return introduction(self.clubs, self.colours)

    def seconds(self) -> Iterator[PitchSecond]:
        """The match from its kick-off, second by second, without end; every call starts afresh."""
        staging = Staging(hashed(self.seed, 2))
        beats = Script(hashed(self.seed, 3)).beats()
        beat, upcoming, later = next(beats), next(beats), next(beats)
        start = staging.opening(beat, upcoming)
        while True:
            stop = staging.opening(upcoming, later)
            yield self._second(beat, (start, staging.middle(beat, start, stop), stop))
            beat, upcoming, later, start = upcoming, later, next(beats), stop

    def _second(self, beat: Beat, keyframes: tuple[Keyframe, Keyframe, Keyframe]) -> PitchSecond:
        return PitchSecond(
            beat.index, beat.kind, beat.side, beat.actor, beat.score, self.colours, self.clubs, keyframes
        )


def introduction(clubs: tuple[str, str], colours: tuple[str, str]) -> str:
    """Which club plays where and in which colour; scores are given in this order."""
    sides = zip(clubs, GROUNDS, colours, strict=True)
    return ", ".join(f"{club} {ground} {colour}" for club, ground, colour in sides) + "."


def two_of(names: tuple[str, ...], dice: Dice) -> tuple[str, str]:
    """Draw two names that differ, in either order."""
    first = dice.below(len(names))
    second = (first + 1 + dice.below(len(names) - 1)) % len(names)
    return names[first], names[second]
