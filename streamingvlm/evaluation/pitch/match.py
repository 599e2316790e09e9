"""Pitch: a match of any length, commentated free-running through the session and scored exactly.

What is judged is the commentary that a user would have read, never the likelihood of the true one: a model that looks
well under teacher forcing can fail completely when it hears itself.
"""

import itertools
from collections.abc import Callable, Iterable, Iterator
from dataclasses import asdict
from typing import Any

import psutil
import torch

from streamingvlm.evaluation.pitch.run import PitchRun, RunSecond, fault_of
from streamingvlm.evaluation.report.watched import CacheFill
from streamingvlm.inference.commentary import Commentary
from streamingvlm.inference.limits import StreamLimits
from streamingvlm.inference.session import StreamingSession
from streamingvlm.pitch import Match, PitchSecond, render
from streamingvlm.pitch.styles import TELEGRAM, Style

_BYTES_PER_MB = 1024 * 1024


def evaluate_pitch(
    session: StreamingSession,
    *,
    seed: int,
    duration_s: int,
    style: Style = TELEGRAM,
    limits: StreamLimits = StreamLimits(),
    blindfold: bool = False,
    on_line: Callable[[Commentary, str], None] | None = None,
) -> PitchRun:
    """Stream a match that no training saw through ``session``, from its beginning, and score what was said.

    seed: of the match; duration_s: seconds of stream; style: in which the model comments; limits: past which the
    stream ends, the rest of it unsaid; blindfold: show black pictures, so that text alone is left; on_line: called with
    each second's commentary and its true line.
    The session is reset and given the match's introduction.
    """
    match = Match(seed)
    session.previous_text = match.intro
    session.reset()
    seconds = itertools.islice(match.seconds(), duration_s)
    rows, stopped = [], ""
    for second, line in _watch(session, seconds, blindfold):
        # Of a second no more than its line is kept: the pictures' geometry would drown the memory that is measured.
        rows.append(_row(session, line, style.reference_line(second), style))
        if on_line:
            on_line(line, rows[-1].truth)
        if stopped := limits.passed_by(session):
            break
    rows.extend(_unwatched(second, style) for second in seconds)
    return PitchRun(
        seed=seed, style=style.name, seconds=tuple(rows), settings=settings_of(session, blindfold), stopped=stopped
    )


def settings_of(session: StreamingSession, blindfold: bool = False) -> dict[str, Any]:
    """What a session runs with, as plain values."""
    configs = {"cache": session.cache_config, "video": session.video_config, "sampling": session.sampling_config}
    shown = {"blindfold": True} if blindfold else {}
    return {"model": session.model.name, **{name: asdict(config) for name, config in configs.items()}, **shown}


def _watch(
    session: StreamingSession, seconds: Iterable[PitchSecond], blindfold: bool
) -> Iterator[tuple[PitchSecond, Commentary]]:
    for second in seconds:
        frames = render(second, fps=session.video_config.fps)
        yield second, session.step(torch.zeros_like(frames) if blindfold else frames)


def _unwatched(second: PitchSecond, style: Style) -> RunSecond:
    truth = style.reference_line(second)
    return RunSecond(float(second.index), truth, None, fault=fault_of(truth, "", style))


def _row(session: StreamingSession, line: Commentary, truth: str, style: Style) -> RunSecond:
    return RunSecond(
        start_s=line.start_s,
        truth=truth,
        said=line.text,
        fault=fault_of(truth, line.text, style),
        num_tokens=line.num_tokens,
        latency_s=line.latency_s,
        resident_mb=psutil.Process().memory_info().rss / _BYTES_PER_MB,
        fill=CacheFill.of(session.layout, session.cache_config),
    )
