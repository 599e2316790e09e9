"""Who plays and what the score is, told anew: neither is ever seen, so the same pictures serve under other names.

Forty matches have forty pairs of clubs, which a model would rather learn by heart than look up. Under names drawn for
each example there is nothing to learn by heart: the introduction alone says who is who.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from streamingvlm.pitch.dice import Dice
from streamingvlm.pitch.script import LAST_SCORE, EventKind
from streamingvlm.pitch.styles import TELEGRAM, Style
from streamingvlm.pitch.world import CLUBS, COLOURS, PitchSecond, introduction, two_of

Event = tuple[EventKind, int | None]
_SCORED = (EventKind.GOAL, EventKind.KICK_OFF, EventKind.THROW_IN)


class Said(NamedTuple):
    """A line of a history, and whether it is a slip: not what should have been said."""

    line: str
    is_slip: bool = False


@dataclass(frozen=True)
class Slips:
    """How often a history is wrong where the score is at stake, in percent.

    A stream hears its own slips. From histories that are always true a model learns to trust the last score it reads,
    and one slip is in every score after it; from these it learns to put it right.

    goals_percent: goals given to the other side, and counted for it; the kick-off that follows shows who conceded.
    miscounted_percent: of the other goals, those counted from a score that is misread; the kick-off counts right.
    restated_percent: scores that are said again, at throw-ins, one off.
    earlier_percent: of these, scores of before instead, which is what a model says that misreads.
    """

    goals_percent: int = 0
    miscounted_percent: int = 0
    restated_percent: int = 0
    earlier_percent: int = 0


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
            lines.append(self._line(event, score, style))
        return lines

    def tell_with_slips(
        self, events: Sequence[Event], score: tuple[int, int], slips: Slips, dice: Dice, style: Style = TELEGRAM
    ) -> list[Said]:
        """The lines of ``tell``, some of them slips; what follows a slip is right again.

        The first score is true, and so is a goal that no kick-off follows: nothing could tell otherwise.
        """
        said: list[Said] = []
        scores: list[tuple[int, int]] = []
        is_known = False
        for number, event in enumerate(events):
            before, score = score, counted(score, event)
            can_slip = is_known and (event[0] is not EventKind.GOAL or _is_kicked_off(events[number + 1 :]))
            slip = _slip(event, before, score, scores, slips, dice) if can_slip else None
            said.append(Said(self._line(*slip, style), True) if slip else Said(self._line(event, score, style)))
            is_known = is_known or event[0] in _SCORED
            scores.append(score)
        return said

    def _line(self, event: Event, score: tuple[int, int], style: Style) -> str:
        kind, side = event
        return style.reference_line(PitchSecond(0, kind, side, None, score, self.colours, self.clubs, keyframes=()))


def _is_kicked_off(events: Sequence[Event]) -> bool:
    """Whether the next thing to happen is a kick-off."""
    return next((kind for kind, _ in events if kind is not EventKind.SILENCE), None) is EventKind.KICK_OFF


def _slip(
    event: Event,
    before: tuple[int, int],
    after: tuple[int, int],
    earlier: Sequence[tuple[int, int]],
    slips: Slips,
    dice: Dice,
) -> tuple[Event, tuple[int, int]] | None:
    """What is said in place of the truth, if this is the time for a slip."""
    kind, side = event
    if kind is EventKind.GOAL and dice.chance(slips.goals_percent):
        wrong = (kind, 1 - side)
        return wrong, counted(before, wrong)
    if kind is EventKind.GOAL and slips.miscounted_percent and dice.chance(slips.miscounted_percent):
        return event, counted(_misread(before, earlier, dice), event)
    if kind is EventKind.THROW_IN and dice.chance(slips.restated_percent):
        others = [score for score in dict.fromkeys(earlier) if score != after]
        if slips.earlier_percent and others and dice.chance(slips.earlier_percent):
            return event, others[dice.below(len(others))]
        count = dice.below(2)
        by = -1 if after[count] else 1  # mostly the score of a goal ago
        return event, (after[0] + by * (count == 0), after[1] + by * (count == 1))
    return None


def _misread(score: tuple[int, int], earlier: Sequence[tuple[int, int]], dice: Dice) -> tuple[int, int]:
    """The score with one of its counts that of an earlier score, or one off where there is no other."""
    count = dice.below(2)
    others = [other[count] for other in dict.fromkeys(earlier) if other[count] not in (score[count], LAST_SCORE)]
    wrong = others[dice.below(len(others))] if others else score[count] + (-1 if score[count] else 1)
    return (wrong, score[1]) if count == 0 else (score[0], wrong)


def counted(score: tuple[int, int], event: Event) -> tuple[int, int]:
    """The score once the event is over; the count starts again with the kick-off after it was full."""
    kind, side = event
    if kind is EventKind.KICK_OFF and max(score) >= LAST_SCORE:
        return 0, 0
    return (score[0] + (side == 0), score[1] + (side == 1)) if kind is EventKind.GOAL else score


def draw_cast(dice: Dice) -> Cast:
    """Any two clubs in any two colours."""
    return Cast(two_of(COLOURS, dice), two_of(CLUBS, dice))
