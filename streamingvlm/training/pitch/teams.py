"""Clubs, colours and scores drawn at random: no frame shows them, so the same footage serves with any of them.

Forty matches have forty pairs of clubs, which a model would memorize instead of reading them from the introduction.
With clubs drawn for each example there is nothing to memorize.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from streamingvlm.pitch.dice import Dice
from streamingvlm.pitch.script import LAST_SCORE, EventKind
from streamingvlm.pitch.styles import TELEGRAM, Style
from streamingvlm.pitch.world import CLUBS, COLOURS, PitchSecond, introduction, two_of

Event = tuple[EventKind, int | None]
_EVENTS_WITH_SCORE = (EventKind.GOAL, EventKind.KICK_OFF, EventKind.THROW_IN)


class Line(NamedTuple):
    """A line of commentary; ``is_slip`` if it differs from the correct line."""

    text: str
    is_slip: bool = False


@dataclass(frozen=True)
class Slips:
    """Rates of wrong lines about the score in a history, in percent.

    At inference the model reads its own errors. Trained on correct histories only, it learns to trust the last score,
    so one error carries over to every later score. Trained on histories with slips, it learns to correct them.

    goals_percent: goals given to, and counted for, the other side; the kick-off that follows shows who conceded.
    miscounted_percent: of the other goals, those counted from a misread score; the kick-off has the correct score.
    restated_percent: throw-ins whose score is off by one.
    earlier_percent: of these, throw-ins that give an earlier score instead, as a model does that misreads.
    """

    goals_percent: int = 0
    miscounted_percent: int = 0
    restated_percent: int = 0
    earlier_percent: int = 0


@dataclass(frozen=True)
class Teams:
    """The two sides, in the order in which scores are given."""

    colours: tuple[str, str]
    clubs: tuple[str, str]

    @property
    def introduction(self) -> str:
        """The text that introduces them before the first turn."""
        return introduction(self.clubs, self.colours)

    def lines(self, events: Iterable[Event], score: tuple[int, int] = (0, 0), style: Style = TELEGRAM) -> list[str]:
        """Return the line of each event (kind, acting side), counting on from ``score``."""
        lines = []
        for event in events:
            score = next_score(score, event)
            lines.append(self._line(event, score, style))
        return lines

    def lines_with_slips(
        self, events: Sequence[Event], score: tuple[int, int], slips: Slips, dice: Dice, style: Style = TELEGRAM
    ) -> list[Line]:
        """Return the result of `lines` with some of them replaced by slips; the lines after a slip are correct.

        The first score never slips, nor does a goal without a kick-off after it: nothing could correct them.
        """
        lines: list[Line] = []
        scores: list[tuple[int, int]] = []
        is_known = False
        for number, event in enumerate(events):
            before, score = score, next_score(score, event)
            can_slip = is_known and (event[0] is not EventKind.GOAL or _is_kicked_off(events[number + 1 :]))
            slip = _slip(event, before, score, scores, slips, dice) if can_slip else None
            lines.append(Line(self._line(*slip, style), True) if slip else Line(self._line(event, score, style)))
            is_known = is_known or event[0] in _EVENTS_WITH_SCORE
            scores.append(score)
        return lines

    def _line(self, event: Event, score: tuple[int, int], style: Style) -> str:
        kind, side = event
        return style.reference_line(PitchSecond(0, kind, side, None, score, self.colours, self.clubs, keyframes=()))


def _is_kicked_off(events: Sequence[Event]) -> bool:
    """Return True if the next event other than silence is a kick-off."""
    return next((kind for kind, _ in events if kind is not EventKind.SILENCE), None) is EventKind.KICK_OFF


def _slip(
    event: Event,
    before: tuple[int, int],
    after: tuple[int, int],
    earlier: Sequence[tuple[int, int]],
    slips: Slips,
    dice: Dice,
) -> tuple[Event, tuple[int, int]] | None:
    """Draw the event and the score of a wrong line, or None if the line is to be correct."""
    kind, side = event
    if kind is EventKind.GOAL and dice.chance(slips.goals_percent):
        wrong = (kind, 1 - side)
        return wrong, next_score(before, wrong)
    if kind is EventKind.GOAL and slips.miscounted_percent and dice.chance(slips.miscounted_percent):
        return event, next_score(_misread(before, earlier, dice), event)
    if kind is EventKind.THROW_IN and dice.chance(slips.restated_percent):
        others = [score for score in dict.fromkeys(earlier) if score != after]
        if slips.earlier_percent and others and dice.chance(slips.earlier_percent):
            return event, others[dice.below(len(others))]
        count = dice.below(2)
        by = -1 if after[count] else 1  # mostly the score of a goal ago
        return event, (after[0] + by * (count == 0), after[1] + by * (count == 1))
    return None


def _misread(score: tuple[int, int], earlier: Sequence[tuple[int, int]], dice: Dice) -> tuple[int, int]:
    """Replace one count of a score by the same count of an earlier score, or by one off if there is no other."""
    count = dice.below(2)
    others = [other[count] for other in dict.fromkeys(earlier) if other[count] not in (score[count], LAST_SCORE)]
    wrong = others[dice.below(len(others))] if others else score[count] + (-1 if score[count] else 1)
    return (wrong, score[1]) if count == 0 else (score[0], wrong)


def next_score(score: tuple[int, int], event: Event) -> tuple[int, int]:
    """Return the score after an event; the kick-off after a side has reached LAST_SCORE resets it to 0-0."""
    kind, side = event
    if kind is EventKind.KICK_OFF and max(score) >= LAST_SCORE:
        return 0, 0
    return (score[0] + (side == 0), score[1] + (side == 1)) if kind is EventKind.GOAL else score


def draw_teams(dice: Dice) -> Teams:
    """Draw any two clubs in any two colours."""
    return Teams(two_of(COLOURS, dice), two_of(CLUBS, dice))
