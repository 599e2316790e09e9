"""What a file of video holds, found by decoding its beginning and its end alone."""

import math
from collections import deque
from dataclasses import dataclass
from pathlib import Path

from streamingvlm.errors import VideoError
from streamingvlm.video.reader import open_video

TAIL_S = 3.0
"""How much of the end is decoded; the picture from which decoding can begin may lie further back."""


@dataclass(frozen=True)
class VideoProbe:
    """What a reader will give: so many chunks of so large frames, as shown.

    missing_s: what the file announces beyond its last picture.
    """

    num_chunks: int
    width: int
    height: int
    missing_s: float = 0.0


def probe_video(path: str | Path, *, fps: float = 2.0, turn_s: float = 1.0) -> VideoProbe:
    """Find out how many chunks `open_video` gives for a file.

    The beginning and the end are decoded. Where the announced end cannot be reached (a file cut off, or one that
    announces nothing), the whole file is. Raises VideoError where the file cannot be read as video.
    """
    with open_video(path, fps=fps, turn_s=turn_s, prefetch=1) as video:
        info = video.info
        next(video)
    num_chunks = None
    if info.duration_s is not None and info.duration_s > 2 * TAIL_S:
        num_chunks = _count(path, fps, turn_s, first=math.floor((info.duration_s - TAIL_S) / turn_s))
    if num_chunks is None:
        num_chunks = _count(path, fps, turn_s, first=0) or 0
    missing_s = max(0.0, (info.duration_s or 0.0) - num_chunks * turn_s)
    return VideoProbe(num_chunks, info.width, info.height, missing_s if missing_s > turn_s else 0.0)


def _count(path: str | Path, fps: float, turn_s: float, *, first: int) -> int | None:
    """The number of the last chunk, from 1, found by reading from a chunk on; None where nothing is there."""
    try:
        with open_video(path, fps=fps, turn_s=turn_s, prefetch=1, start_s=first * turn_s) as video:
            last = deque(video, maxlen=1)
    except VideoError:
        if first == 0:
            raise
        return None
    return first + last[0].index + 1 if last else None
