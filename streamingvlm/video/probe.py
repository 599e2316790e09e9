"""Find out what a video file holds by decoding its beginning and its end only."""

import math
from collections import deque
from dataclasses import dataclass
from pathlib import Path

from streamingvlm.errors import VideoError
from streamingvlm.video.reader import open_video

TAIL_S = 3.0
"""Length of the end that is decoded. The keyframe from which decoding starts may lie further back."""


@dataclass(frozen=True)
class VideoProbe:
    """The number and size of the turns that a reader will yield.

    width, height: as displayed. missing_s: announced by the file beyond its last frame.
    """

    num_turns: int
    width: int
    height: int
    missing_s: float = 0.0


def probe_video(path: str | Path, *, fps: float = 2.0, turn_s: float = 1.0) -> VideoProbe:
    """Count the turns that `open_video` yields for a file.

    Only the beginning and the end are decoded. If the announced end cannot be reached (a truncated file, or one that
    announces no duration), the whole file is decoded. Raises VideoError if the file cannot be read as video.
    """
    with open_video(path, fps=fps, turn_s=turn_s, prefetch=1) as video:
        info = video.info
        next(video)
    num_turns = None
    if info.duration_s is not None and info.duration_s > 2 * TAIL_S:
        num_turns = _count(path, fps, turn_s, first=math.floor((info.duration_s - TAIL_S) / turn_s))
    if num_turns is None:
        num_turns = _count(path, fps, turn_s, first=0) or 0
    missing_s = max(0.0, (info.duration_s or 0.0) - num_turns * turn_s)
    return VideoProbe(num_turns, info.width, info.height, missing_s if missing_s > turn_s else 0.0)


def _count(path: str | Path, fps: float, turn_s: float, *, first: int) -> int | None:
    """Count the turns of a file by reading from turn `first` on; None if there is nothing from there on."""
    try:
        with open_video(path, fps=fps, turn_s=turn_s, prefetch=1, start_s=first * turn_s) as video:
            last = deque(video, maxlen=1)
    except VideoError:
        if first == 0:
            raise
        return None
    return first + last[0].index + 1 if last else None
