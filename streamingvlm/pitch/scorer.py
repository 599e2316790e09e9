"""Scores a commentary against the truth, second by second."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from math import nan

from streamingvlm.pitch.commentator import Call
from streamingvlm.pitch.script import Kind
from streamingvlm.pitch.styles import TELEGRAM, Style
from streamingvlm.pitch.world import KINDS, PitchSecond


@dataclass(frozen=True)
class PitchReport:
    """How well a stretch of a match was commentated.

    `f1` has every kind (silence included) that was true or called at least once in the stretch, `macro_f1` is its
    plain mean. The other accuracies are over the seconds whose true line names a colour, a club, a score and whose kind
    was called right, `goal_score_accuracy` over the goals among them; they are nan where there was none. `confusion`
    counts (true kind, called kind).
    """

    num_seconds: int
    accuracy: float
    f1: dict[str, float]
    macro_f1: float
    side_accuracy: float
    club_accuracy: float
    score_accuracy: float
    goal_score_accuracy: float
    confusion: dict[tuple[str, str], int]

    def __str__(self) -> str:
        kinds = ", ".join(f"{kind} {value:.2f}" for kind, value in self.f1.items())
        return (
            f"{self.num_seconds} s: macro-F1 {self.macro_f1:.3f}, accuracy {self.accuracy:.3f}, "
            f"side {self.side_accuracy:.3f}, club {self.club_accuracy:.3f}, score {self.score_accuracy:.3f}, "
            f"at goals {self.goal_score_accuracy:.3f} ({kinds})"
        )


def score(truth: Sequence[PitchSecond], lines: Sequence[str], style: Style = TELEGRAM) -> PitchReport:
    """Score one line a second (`""` for silence), in a style, against the truth.

    Raises ValueError where the two differ in length.
    """
    pairs = [(style.parse(style.say(second)), style.parse(line)) for second, line in zip(truth, lines, strict=True)]
    confusion = Counter((str(true.kind), str(called.kind)) for true, called in pairs)
    f1 = _f1_by_kind(confusion)
    right = [(true, called) for true, called in pairs if true.kind == called.kind]
    return PitchReport(
        num_seconds=len(pairs),
        accuracy=_ratio(len(right), len(pairs)),
        f1=f1,
        macro_f1=_ratio(sum(f1.values()), len(f1)),
        side_accuracy=_agreement(right, "colour"),
        club_accuracy=_agreement(right, "club"),
        score_accuracy=_agreement(right, "score"),
        goal_score_accuracy=_agreement([pair for pair in right if pair[0].kind == Kind.GOAL], "score"),
        confusion=dict(confusion),
    )


def score_thirds(
    truth: Sequence[PitchSecond], lines: Sequence[str], style: Style = TELEGRAM
) -> tuple[PitchReport, PitchReport, PitchReport]:
    """Score the first, the middle and the last third of a stream apart: does it hold up?"""
    num_seconds = len(truth)
    cuts = [num_seconds * third // 3 for third in range(4)]
    first, middle, last = (score(truth[a:b], lines[a:b], style) for a, b in pairwise(cuts))
    return first, middle, last


def _f1_by_kind(confusion: Counter[tuple[str, str]]) -> dict[str, float]:
    f1 = {}
    for kind in KINDS:
        num_true = sum(count for (true, _), count in confusion.items() if true == kind)
        num_called = sum(count for (_, called), count in confusion.items() if called == kind)
        if num_true + num_called:
            f1[str(kind)] = 2 * confusion[kind, kind] / (num_true + num_called)
    return f1


def _agreement(pairs: list[tuple[Call, Call]], name: str) -> float:
    """The share of pairs that agree on a field, among those whose truth has it."""
    named = [(getattr(true, name), getattr(called, name)) for true, called in pairs if getattr(true, name) is not None]
    return _ratio(sum(true == called for true, called in named), len(named))


def _ratio(part: float, whole: int) -> float:
    return part / whole if whole else nan
