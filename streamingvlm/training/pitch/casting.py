"""Who plays and what the score is, told anew: neither is ever seen, so the same pictures serve under other names.

Forty matches have forty pairs of clubs, which a model would rather learn by heart than look up. Under names drawn for
each example there is nothing to learn by heart: the introduction alone says who is who.
"""

from collections.abc import Iterable
from dataclasses import dataclass

from streamingvlm.pitch.dice import Dice
from streamingvlm.pitch.script import LAST_SCORE, Kind
from streamingvlm.pitch.styles import TELEGRAM, Style
from streamingvlm.pitch.world import CLUBS, COLOURS, PitchSecond, introduction, two_of

Event = tuple[Kind, int | None]


@dataclass(frozen=True)
class Cast:
    """The two sides, in the order in which scores are given."""

    colours: tuple[str, str]
    clubs: tuple[str, str]

    @property
    def introduction(self) -> str:
        """What is said of them before the first second."""
        return introduction(self.clubs, self.colours)

    def tell(self, events: Iterable[Event], score: tuple[int, int] = (0, 0), style: Style = TELEGRAM) -> list[str]:
        """The line of each event (kind, acting side), with the score counted on from ``score`` as a match counts."""
        lines = []
        for event in events:
            score = counted(score, event)
            kind, side = event
            second = PitchSecond(0, kind, side, None, score, self.colours, self.clubs, keyframes=())
            lines.append(style.say(second))
        return lines


def counted(score: tuple[int, int], event: Event) -> tuple[int, int]:
    """The score once the event is over; the count starts again with the kick-off after it was full."""
    kind, side = event
    if kind is Kind.KICK_OFF and max(score) >= LAST_SCORE:
        return 0, 0
    return (score[0] + (side == 0), score[1] + (side == 1)) if kind is Kind.GOAL else score


def draw_cast(dice: Dice) -> Cast:
    """Any two clubs in any two colours."""
    return Cast(two_of(COLOURS, dice), two_of(CLUBS, dice))
