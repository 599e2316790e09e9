"""Scoring of a commentary against the ground truth, second by second."""

from collections import Counter, deque
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from math import nan

from streamingvlm.pitch.commentary_lines import ParsedLine
from streamingvlm.pitch.script import EventKind
from streamingvlm.pitch.styles import TELEGRAM, Style
from streamingvlm.pitch.world import KINDS, PitchSecond

LATE_WINDOW_S = 3
"""An event reported up to this many seconds after its own second counts as late; after that, as missed."""

Truth = Sequence[PitchSecond] | Sequence[str]
"""The seconds of a match, or the reference line of each."""


@dataclass(frozen=True)
class PitchReport:
    """Metrics of a commentary over a span of a match; a metric without any case is nan.

    accuracy: share of the seconds with the right kind of event.
    f1, macro_f1: F1 of every kind (silence included) that was true or predicted at least once, and their plain mean.
    side_accuracy, score_accuracy: over the seconds with the right kind whose reference line has a colour or a score.
    club_accuracy, goal_score_accuracy: the same over goals alone.
    silence_precision: share of the silent lines without an event; the rest are missed events.
    silence_recall: share of the seconds without an event whose line is silent; the rest are false reports.
    silence_f1: harmonic mean of the two.
    late_share: share of the events that were reported 1 to `LATE_WINDOW_S` seconds late. mean_delay_s: of those.
    confusion: counts of (true kind, predicted kind).
    """

    num_seconds: int
    accuracy: float
    f1: dict[str, float]
    macro_f1: float
    side_accuracy: float
    club_accuracy: float
    score_accuracy: float
    goal_score_accuracy: float
    silence_precision: float
    silence_recall: float
    silence_f1: float
    late_share: float
    mean_delay_s: float
    confusion: dict[tuple[str, str], int]

    def __str__(self) -> str:
        kinds = ", ".join(f"{kind} {value:.2f}" for kind, value in self.f1.items())
        return (
            f"{self.num_seconds} s: macro-F1 {self.macro_f1:.3f}, accuracy {self.accuracy:.3f}, "
            f"side {self.side_accuracy:.3f}, club {self.club_accuracy:.3f}, score {self.score_accuracy:.3f}, "
            f"at goals {self.goal_score_accuracy:.3f}, silence {self.silence_f1:.3f}, late {self.late_share:.3f} "
            f"({kinds})"
        )


def score(truth: Truth, lines: Sequence[str], style: Style = TELEGRAM) -> PitchReport:
    """Score one line per second (`""` for silence), in a style, against the ground truth.

    Raises ValueError if the two differ in length.
    """
    pairs = [
        (style.parse_line(_line(second, style)), style.parse_line(line))
        for second, line in zip(truth, lines, strict=True)
    ]
    confusion = Counter((str(true.kind), str(predicted.kind)) for true, predicted in pairs)
    f1 = _f1_by_kind(confusion)
    right = [(true, predicted) for true, predicted in pairs if true.kind == predicted.kind]
    goals = [(true, predicted) for true, predicted in right if true.kind == EventKind.GOAL]
    delays_s = late_delays_s([true.kind for true, _ in pairs], [predicted.kind for _, predicted in pairs])
    num_silent = sum(true.kind == EventKind.SILENCE for true, _ in pairs)
    return PitchReport(
        num_seconds=len(pairs),
        accuracy=_ratio(len(right), len(pairs)),
        f1=f1,
        macro_f1=_ratio(sum(f1.values()), len(f1)),
        side_accuracy=_agreement(right, "colour"),
        club_accuracy=_agreement(goals, "club"),
        score_accuracy=_agreement(right, "score"),
        goal_score_accuracy=_agreement(goals, "score"),
        silence_precision=_ratio(
            confusion[EventKind.SILENCE, EventKind.SILENCE],
            sum(predicted.kind == EventKind.SILENCE for _, predicted in pairs),
        ),
        silence_recall=_ratio(confusion[EventKind.SILENCE, EventKind.SILENCE], num_silent),
        silence_f1=f1.get(EventKind.SILENCE, nan),
        late_share=_ratio(len(delays_s), len(pairs) - num_silent),
        mean_delay_s=_ratio(sum(delays_s), len(delays_s)),
        confusion=dict(confusion),
    )


def score_parts(
    truth: Truth, lines: Sequence[str], style: Style = TELEGRAM, num_parts: int = 5
) -> tuple[PitchReport, ...]:
    """Score equal parts of a stream separately, which shows if quality declines over time."""
    num_seconds = len(truth)
    cuts = [num_seconds * part // num_parts for part in range(num_parts + 1)]
    return tuple(score(truth[a:b], lines[a:b], style) for a, b in pairwise(cuts))


def late_delays_s(
    true_kinds: Sequence[str], predicted_kinds: Sequence[str], window_s: int = LATE_WINDOW_S
) -> list[int]:
    """Return the delays in seconds, 1 to ``window_s``, of the events that were reported late, kind by kind.

    An event missed in its own second is matched to the first prediction of its kind within the window that is neither
    correct in its own second nor matched already. Events are processed in order and share one window length, so this
    greedy matching is a maximum one.
    """
    delays_s = []
    for kind in (kind for kind in KINDS if kind is not EventKind.SILENCE):
        kinds = list(zip(true_kinds, predicted_kinds, strict=True))
        reports_s = deque(at_s for at_s, (true, predicted) in enumerate(kinds) if predicted == kind != true)
        for event_s in (at_s for at_s, (true, predicted) in enumerate(kinds) if true == kind != predicted):
            while reports_s and reports_s[0] < event_s:
                reports_s.popleft()
            if reports_s and reports_s[0] <= event_s + window_s:
                delays_s.append(reports_s.popleft() - event_s)
    return delays_s


def _line(second: PitchSecond | str, style: Style) -> str:
    return second if isinstance(second, str) else style.reference_line(second)


def _f1_by_kind(confusion: Counter[tuple[str, str]]) -> dict[str, float]:
    f1 = {}
    for kind in KINDS:
        num_true = sum(count for (true, _), count in confusion.items() if true == kind)
        num_predicted = sum(count for (_, predicted), count in confusion.items() if predicted == kind)
        if num_true + num_predicted:
            f1[str(kind)] = 2 * confusion[kind, kind] / (num_true + num_predicted)
    return f1


def _agreement(pairs: list[tuple[ParsedLine, ParsedLine]], name: str) -> float:
    """Return the share of pairs that agree on a field, among those whose reference line has it."""
    values = [(getattr(true, name), getattr(predicted, name)) for true, predicted in pairs]
    known = [(true, predicted) for true, predicted in values if true is not None]
    return _ratio(sum(true == predicted for true, predicted in known), len(known))


def _ratio(part: float, whole: int) -> float:
    return part / whole if whole else nan
