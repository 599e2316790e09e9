"""Read a video file turn by turn, decoding ahead while the model works.

with open_video("match.mp4") as video:
    for turn in video:
        session.step(turn)
"""

import os
import threading
import weakref
from collections.abc import Callable, Iterator
from itertools import takewhile
from pathlib import Path
from typing import Self

from streamingvlm.errors import ConfigError
from streamingvlm.video.address import check_video_file
from streamingvlm.video.frame_tensors import make_turn
from streamingvlm.video.prefetch import Prefetch
from streamingvlm.video.sampling_grid import SamplingGrid, sample
from streamingvlm.video.source import EarlyEndError, FrameSource, SkipCounts, VideoInfo
from streamingvlm.video.video_turn import VideoTurn


def open_video(
    path: str | Path,
    *,
    fps: float = 2.0,
    turn_s: float = 1.0,
    decoder: str = "pyav",
    prefetch: int = 2,
    start_s: float = 0.0,
) -> "VideoReader":
    """Open a video file that is read in turns of `turn_s` seconds with `fps` frames per second.

    `decoder` is "pyav", or "decord" for ordinary mp4 files. At most `prefetch` turns are decoded ahead. Reading begins
    `start_s` seconds into the file: the turns have the file's times from there on, and indices from 0.

    Raises VideoError if the file cannot be read as video, ConfigError if a setting is out of range.
    """
    grid = SamplingGrid(fps=fps, turn_s=turn_s, start_s=start_s)
    if prefetch < 1:
        raise ConfigError(f"prefetch is {prefetch}, but at least 1 turn must be decoded ahead; the usual value is 2")
    source = open_frame_source(path, decoder, start_s=start_s)
    if start_s and source.info.duration_s is not None and source.info.duration_s <= start_s:
        source.close()
        raise _starts_too_late(path, start_s)
    return VideoReader(path, source, grid, prefetch=prefetch)


class VideoReader:
    """The turns of one video: a context manager and an iterator that is read once.

    Iteration may stop and resume. A reader that is garbage collected ends its thread and closes its file, as `close`
    does.
    """

    def __init__(self, path: str | Path, source: FrameSource, grid: SamplingGrid, *, prefetch: int):
        self.path = Path(path)
        self.info: VideoInfo = source.info
        self.skipped: SkipCounts = source.skipped  # updated while the file is read, a little ahead of the caller
        self.fps, self.turn_s = grid.fps, grid.turn_s
        stop = threading.Event()
        turns = _turns(self.path, source, grid, stop)
        self._prefetch = Prefetch(turns, depth=prefetch, name=f"decode {self.path.name}", stop=stop)
        self._shut_down = weakref.finalize(self, _shut_down, self._prefetch, source)

    def __iter__(self) -> Iterator[VideoTurn]:
        return self

    def __next__(self) -> VideoTurn:
        return next(self._prefetch)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.close()

    def close(self) -> None:
        """End the decoding thread and close the file; iteration then ends. Safe to call twice."""
        self._shut_down()


def _shut_down(prefetch: Prefetch, source: FrameSource) -> None:
    prefetch.close()
    source.close()


def open_frame_source(path: str | Path, decoder: str = "pyav", *, start_s: float = 0.0) -> FrameSource:
    """Open a file and return its decoded frames from `start_s` on. Raises the errors of `open_video`."""
    opener = _opener(decoder)
    check_video_file(path)
    return opener(Path(path), start_s=start_s)


def _opener(decoder: str) -> Callable[..., FrameSource]:
    if decoder == "pyav":
        from streamingvlm.video.pyav import open_pyav

        return open_pyav
    if decoder == "decord":
        from streamingvlm.video.decord import open_decord

        return open_decord
    raise ConfigError(f"decoder is {decoder!r}, but must be 'pyav' or 'decord'")


def _starts_too_late(path: str | Path, start_s: float) -> EarlyEndError:
    return EarlyEndError(f"{os.fspath(path)!r} ends before start_s = {start_s:g}; choose an earlier start")


def _turns(path: Path, source: FrameSource, grid: SamplingGrid, stop: threading.Event) -> Iterator[VideoTurn]:
    frames = takewhile(lambda _: not stop.is_set(), source.frames())
    newest = None
    for index, sampled in enumerate(sample(frames, grid, tick_s=source.tick_s)):
        yield make_turn(index, sampled, newest, grid)
        newest = sampled[-1]
    if newest is None and not stop.is_set():
        raise _starts_too_late(path, grid.start_s)
