"""Pitch: a match of any length, commented free-running through the session and scored exactly.

The score is of the commentary that a user would have read, not of the likelihood of the true one: a model with a good
teacher-forced loss can fail completely when it conditions on its own replies.
"""

import itertools
from collections.abc import Callable, Iterable, Iterator
from dataclasses import asdict
from typing import Any

import psutil
import torch

from streamingvlm.evaluation.pitch.run import PitchRun, RunSecond, fault_of
from streamingvlm.evaluation.report.stream_report import CacheFill
from streamingvlm.inference.commentary import Commentary
from streamingvlm.inference.limits import StreamLimits
from streamingvlm.inference.session import StreamingSession
from streamingvlm.pitch import Match, PitchSecond
from streamingvlm.pitch.camera import Camera
from streamingvlm.pitch.styles import TELEGRAM, Style

_BYTES_PER_MB = 1024 * 1024


def evaluate_pitch(
    session: StreamingSession,
    *,
    seed: int,
    duration_s: int,
    style: Style = TELEGRAM,
    limits: StreamLimits = StreamLimits(),
    black_frames: bool = False,
    camera: Camera = Camera(),
    on_line: Callable[[Commentary, str], None] | None = None,
) -> PitchRun:
    """Stream a match through ``session`` from its beginning and score the commentary.

    seed: of the match, one that training did not use; duration_s: seconds of stream; style: of the true lines; limits:
    the stream ends where one is exceeded, and the rest counts as silent; black_frames: replace all frames by black
    ones, which leaves only the text; camera: takes the frames; on_line: called with each second's commentary and its
    true line.

    The session is reset and starts from the match's introduction.
    """
    match = Match(seed)
    session.previous_text = match.intro
    session.reset()
    seconds = itertools.islice(match.seconds(), duration_s)
    rows, stopped = [], ""
    for second, line in _commentary(session, seconds, black_frames, camera):
        # Only the line of a second is kept; the geometry of its frames would distort the memory that is measured.
        rows.append(_row(session, line, style.reference_line(second), style))
        if on_line:
            on_line(line, rows[-1].truth)
        if stopped := limits.exceeded(session.stats, session.cache_bytes):
            break
    unreached = itertools.islice(match.seconds(), len(rows), duration_s)
    rows.extend(_unreached(second, style) for second in unreached)
    settings = settings_of(session, black_frames) | {"camera": asdict(camera)}
    return PitchRun(
        seed=seed,
        style=style.name,
        seconds=tuple(rows),
        settings=settings,
        stopped=stopped,
    )


def settings_of(session: StreamingSession, black_frames: bool = False) -> dict[str, Any]:
    """Return the settings of a session as plain values."""
    configs = {"cache": session.cache_config, "video": session.video_config, "sampling": session.sampling_config}
    frames = {"black_frames": True} if black_frames else {}
    return {"model": session.model.name, **{name: asdict(config) for name, config in configs.items()}, **frames}


def _commentary(
    session: StreamingSession, seconds: Iterable[PitchSecond], black_frames: bool, camera: Camera
) -> Iterator[tuple[PitchSecond, Commentary]]:
    for second, frames in camera.turns(seconds, fps=session.video_config.fps):
        yield second, session.step(torch.zeros_like(frames) if black_frames else frames)


def _unreached(second: PitchSecond, style: Style) -> RunSecond:
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
