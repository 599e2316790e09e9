"""Pitch: a match of any length, commentated free-running through the session and scored exactly.

What is judged is the commentary that a user would have read, never the likelihood of the true one: a model that looks
well under teacher forcing can fail completely when it hears itself.
"""

import itertools
from collections.abc import Callable
from dataclasses import dataclass, replace

import psutil

from streamingvlm.inference.session import Commentary, StreamingSession
from streamingvlm.inference.stats import percentile
from streamingvlm.pitch import Match, PitchReport, render, score, score_thirds
from streamingvlm.pitch.styles import TELEGRAM, Style

_SETTLED_S = 300
_MINUTES_COMPARED = 10
_BYTES_PER_MB = 1024 * 1024


@dataclass(frozen=True)
class PitchResult:
    """One match, watched and scored.

    report, thirds: scores of the whole and of its first, middle and last third.
    settled_mb, final_mb: resident memory of the process after five minutes of stream, and at its end.
    first_p95_s, last_p95_s: 95th percentile of a second's latency in the first and last ten minutes.
    """

    seed: int
    report: PitchReport
    thirds: tuple[PitchReport, PitchReport, PitchReport]
    realtime_factor: float
    settled_mb: float
    final_mb: float
    first_p95_s: float
    last_p95_s: float

    def __str__(self) -> str:
        by_third = ", ".join(f"{third.macro_f1:.3f}" for third in self.thirds)
        held_up = self.thirds[2].macro_f1 / self.thirds[0].macro_f1
        return "\n".join(
            (
                f"seed {self.seed}: {self.report}",
                f"macro-F1 by thirds: {by_third}; last over first {held_up:.3f}",
                f"{self.realtime_factor:.1f}x real time; p95 of a second {self.first_p95_s * 1e3:.0f} ms in the first "
                f"{_MINUTES_COMPARED} minutes, {self.last_p95_s * 1e3:.0f} ms in the last",
                f"resident memory {self.settled_mb:.1f} MB after 5 minutes, {self.final_mb:.1f} MB at the end",
            )
        )


def evaluate_pitch(
    session: StreamingSession,
    *,
    seed: int,
    duration_s: int,
    style: Style = TELEGRAM,
    on_line: Callable[[Commentary, str], None] | None = None,
) -> PitchResult:
    """Stream a match that no training saw through ``session``, from its beginning, and score what was said.

    seed: of the match; duration_s: seconds of stream; style: in which the model comments; on_line: called with each
    second's commentary and its true line.
    The session is reset and given the match's introduction.
    """
    match = Match(seed)
    session.previous_text = match.intro
    session.reset()
    truth, lines, latencies_s, settled_mb = [], [], [], 0.0
    for second in itertools.islice(match.seconds(), duration_s):
        line = session.step(render(second, fps=session.video_config.fps))
        # The pictures' geometry is not scored; kept for hours it would drown the memory that is measured.
        truth.append(replace(second, keyframes=()))
        lines.append(line.text)
        latencies_s.append(line.latency_s)
        if on_line:
            on_line(line, style.say(second))
        if len(lines) == min(_SETTLED_S, duration_s):
            settled_mb = _resident_mb()
    compared = _MINUTES_COMPARED * 60
    return PitchResult(
        seed=seed,
        report=score(truth, lines, style),
        thirds=score_thirds(truth, lines, style),
        realtime_factor=session.stats.realtime_factor,
        settled_mb=settled_mb,
        final_mb=_resident_mb(),
        first_p95_s=percentile(latencies_s[:compared], 0.95),
        last_p95_s=percentile(latencies_s[-compared:], 0.95),
    )


def _resident_mb() -> float:
    return psutil.Process().memory_info().rss / _BYTES_PER_MB
