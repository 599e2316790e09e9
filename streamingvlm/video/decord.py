"""Decode ordinary mp4 files with decord, frame after frame.

decord hangs on MPEG-TS, gives up on a damaged file and tells little of what it opened. So only mp4 files are taken,
PyAV says what they are (and what is wrong with them), and damage ends the reading with a line that names PyAV.
Neither its access by number nor `skip_frames` is used: where a key frame is not a clean start (open groups of
pictures, the habit of HEVC encoders; intra refresh; B-frames of MPEG-4) they give other frames than those asked for.
"""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path

import numpy as np

from streamingvlm.errors import VideoError
from streamingvlm.video.clock import StreamClock
from streamingvlm.video.frames import channels_first
from streamingvlm.video.mp4 import is_mp4
from streamingvlm.video.pyav import MAX_THREADS, open_pyav
from streamingvlm.video.source import DecodedFrame, SkipCounts, VideoInfo

try:
    import decord
except ImportError as error:
    raise VideoError(
        "decord is not installed (it exists for Linux on x86-64 alone); run: pip install decord, or use decoder 'pyav'"
    ) from error

REMEDY = "use decoder 'pyav', which reads what can be read"


def open_decord(path: Path, *, start_s: float = 0.0) -> "DecordSource":
    """Open an mp4 file; VideoError where it is none or damaged. What lies before `start_s` is decoded too."""
    probe = open_pyav(path)
    probe.close()
    if not is_mp4(path):
        raise VideoError(f"{str(path)!r} is not an mp4 file, and decord can be trusted with no other; {REMEDY}")
    return DecordSource(path, probe.info)


class DecordSource:
    """The pictures of an mp4 file (a `PictureSource`); decord converts each to RGB, shown or not."""

    def __init__(self, path: Path, info: VideoInfo):
        self._path = path
        self.info = info
        self.skipped = SkipCounts()
        decord.logging.set_level(decord.logging.QUIET)  # what goes wrong is raised; FFmpeg need not write it as well
        with self._one_line_errors():
            self._video = decord.VideoReader(str(path), num_threads=min(MAX_THREADS, os.cpu_count() or 1))
            self._spans_s = self._video.get_frame_timestamp(np.arange(len(self._video)))  # [N, 2] start, end
        self.tick_s = 2 * float(np.spacing(self._spans_s[-1, 1]))  # decord rounds times to single precision

    def pictures(self) -> Iterator[DecodedFrame]:
        """Yield the pictures in the order in which they are shown."""
        clock = StreamClock(float(self._spans_s[0, 1] - self._spans_s[0, 0]))
        for start_s, end_s in self._spans_s.tolist():
            rgb = partial(channels_first, self._next())
            time_s = clock.tell(start_s, end_s - start_s)
            self.skipped.num_clock_jumps, self.skipped.gap_s = clock.num_jumps, clock.gap_s
            if time_s is None:
                self.skipped.num_frames += 1
            else:
                yield DecodedFrame(time_s, end_s - start_s, rgb)

    def close(self) -> None:
        """Let the file go; safe to call twice."""
        self._video = None

    def _next(self) -> np.ndarray:
        with self._one_line_errors():
            image = self._video.next().asnumpy()
        height, width, _ = image.shape  # where padding makes a row 4 bytes a pixel long, it passes for a 4th channel
        return image.reshape(height, -1)[:, : 3 * width].reshape(height, width, 3)

    @contextmanager
    def _one_line_errors(self) -> Iterator[None]:
        try:
            yield
        except (decord.DECORDError, RuntimeError) as error:
            raise VideoError(f"{str(self._path)!r} is damaged or cut off, and decord stops there; {REMEDY}") from error
