"""Decode ordinary mp4 files with decord, frame by frame.

decord hangs on MPEG-TS, stops at damage and reports little metadata. So only mp4 files are accepted, PyAV reads their
metadata and detects damage, and decord's own errors name PyAV as the remedy. Neither random access nor `skip_frames` is
used: where a keyframe is not a clean entry point (open GOPs, common with HEVC encoders; intra refresh; B-frames of
MPEG-4) they return the wrong frames.
"""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path

import numpy as np
import torch

from streamingvlm.errors import VideoError
from streamingvlm.video.frame_tensors import channels_first, fit
from streamingvlm.video.mp4 import is_mp4
from streamingvlm.video.pyav import MAX_THREADS, open_pyav
from streamingvlm.video.source import DecodedFrame, SkipCounts, VideoInfo
from streamingvlm.video.stream_clock import StreamClock

try:
    import decord
except ImportError as error:
    raise VideoError(
        "decord is not installed (it supports Linux on x86-64 only); run: pip install decord, or use decoder 'pyav'"
    ) from error

REMEDY = "use decoder 'pyav', which reads whatever is readable"


def open_decord(path: Path, *, start_s: float = 0.0) -> "DecordSource":
    """Open an mp4 file; VideoError if it is not one or is damaged. Frames before `start_s` are decoded as well."""
    probe = open_pyav(path)
    probe.close()
    if not is_mp4(path):
        raise VideoError(f"{str(path)!r} is not an mp4 file, the only kind that decord reads reliably; {REMEDY}")
    return DecordSource(path, probe.info)


class DecordSource:
    """The frames of an mp4 file (a `FrameSource`). decord converts every frame to RGB, sampled or not."""

    def __init__(self, path: Path, info: VideoInfo):
        self._path = path
        self.info = info
        self.skipped = SkipCounts()
        decord.logging.set_level(decord.logging.QUIET)  # errors are raised; FFmpeg need not log them as well
        with self._one_line_errors():
            self._video = decord.VideoReader(str(path), num_threads=min(MAX_THREADS, os.cpu_count() or 1))
            self._spans_s = self._video.get_frame_timestamp(np.arange(len(self._video)))  # [N, 2] start, end
        self.tick_s = 2 * float(np.spacing(self._spans_s[-1, 1]))  # decord rounds times to single precision

    def frames(self) -> Iterator[DecodedFrame]:
        """Yield the frames in display order."""
        clock = StreamClock(float(self._spans_s[0, 1] - self._spans_s[0, 0]))
        for start_s, end_s in self._spans_s.tolist():
            rgb = partial(_displayed, self._next(), self.info)
            time_s = clock.to_stream_time(start_s, end_s - start_s)
            self.skipped.num_clock_jumps, self.skipped.gap_s = clock.num_jumps, clock.gap_s
            if time_s is None:
                self.skipped.num_frames += 1
            else:
                yield DecodedFrame(time_s, end_s - start_s, rgb)

    def close(self) -> None:
        """Close the file. Safe to call twice."""
        self._video = None

    def _next(self) -> np.ndarray:
        with self._one_line_errors():
            image = self._video.next().asnumpy()
        height, width, _ = image.shape  # decord reports rows that are padded to 4 bytes a pixel as 4 channels
        return image.reshape(height, -1)[:, : 3 * width].reshape(height, width, 3)

    @contextmanager
    def _one_line_errors(self) -> Iterator[None]:
        try:
            yield
        except (decord.DECORDError, RuntimeError) as error:
            raise VideoError(f"{str(self._path)!r} is damaged or cut off, and decord stops there; {REMEDY}") from error


def _displayed(image: np.ndarray, info: VideoInfo) -> torch.Tensor:
    """Return a rotated frame [H, W, 3] as RGB, uint8 [3, H, W], with square pixels."""
    return fit(channels_first(image)[None], info.height, info.width)[0]
