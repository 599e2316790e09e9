"""Scores a commentary against the truth, second by second."""

from collections import Counter, deque
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from math import nan

from streamingvlm.pitch.commentator import Call
from streamingvlm.pitch.script import EventKind
from streamingvlm.pitch.styles import TELEGRAM, Style
from streamingvlm.pitch.world import KINDS, PitchSecond

LATE_WINDOW_S = 3
"""An event that is called up to so many seconds after its own counts as late; after that, as never called."""

Truth = Sequence[PitchSecond] | Sequence[str]
"""The seconds of a match, or the true line of each."""


@dataclass(frozen=True)
class PitchReport:
    """How well a stretch of a match was commentated.

    `f1` has every kind (silence included) that was true or called at least once in the stretch, `macro_f1` is its
    plain mean. The other accuracies are over the seconds whose true line names a colour or a score and whose kind was
    called right; `club_accuracy` and `goal_score_accuracy` over the goals among them. `silence_precision` is the share
    of the silent lines that came when nothing happened (what is lacking: events passed over), `silence_recall` the
    share of the seconds without an event that stayed silent (what is lacking: talk of nothing), `silence_f1` their
    harmonic mean. `late_share` is the share of the events that were called within `LATE_WINDOW_S` seconds after their
    own instead, `mean_delay_s` how many seconds after. What there was nothing to judge of is nan. `confusion` counts
    (true kind, called kind).
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
    """Score one line a second (`""` for silence), in a style, against the truth.

    Raises ValueError where the two differ in length.
    """
    pairs = [(style.parse(_line(second, style)), style.parse(line)) for second, line in zip(truth, lines, strict=True)]
    confusion = Counter((str(true.kind), str(called.kind)) for true, called in pairs)
    f1 = _f1_by_kind(confusion)
    right = [(true, called) for true, called in pairs if true.kind == called.kind]
    goals = [(true, called) for true, called in right if true.kind == EventKind.GOAL]
    delays_s = late_calls([true.kind for true, _ in pairs], [called.kind for _, called in pairs])
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
            sum(called.kind == EventKind.SILENCE for _, called in pairs),
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
    """Score the parts of a stream apart, of equal length but for a second: does it hold up?"""
    num_seconds = len(truth)
    cuts = [num_seconds * part // num_parts for part in range(num_parts + 1)]
    return tuple(score(truth[a:b], lines[a:b], style) for a, b in pairwise(cuts))


def late_calls(true_kinds: Sequence[str], called_kinds: Sequence[str], window_s: int = LATE_WINDOW_S) -> list[int]:
    """The delays in seconds, 1 to ``window_s``, of the events that were called late, kind by kind.

    An event that was not called in its own second is matched with the first call of its kind, within the window, that
    is neither right where it stands nor matched already. Served in their order and all with the same window, as many
    events find a call as in any matching one to one.
    """
    delays_s = []
    for kind in (kind for kind in KINDS if kind is not EventKind.SILENCE):
        kinds = list(zip(true_kinds, called_kinds, strict=True))
        calls = deque(at_s for at_s, (true, called) in enumerate(kinds) if called == kind != true)
        for event_s in (at_s for at_s, (true, called) in enumerate(kinds) if true == kind != called):
            while calls and calls[0] < event_s:
                calls.popleft()
            if calls and calls[0] <= event_s + window_s:
                delays_s.append(calls.popleft() - event_s)
    return delays_s


def _line(second: PitchSecond | str, style: Style) -> str:
    return second if isinstance(second, str) else style.say(second)


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
