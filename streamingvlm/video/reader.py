"""Read a file of video second by second, decoding ahead while the model works.

with open_video("match.mp4") as video:
    for second in video:
        session.step(second)
"""

import os
import threading
import weakref
from collections.abc import Callable, Iterator
from itertools import takewhile
from pathlib import Path
from typing import Self

from streamingvlm.errors import ConfigError, VideoError
from streamingvlm.video.address import redacted
from streamingvlm.video.clock import SamplingGrid, VideoTurn, sample
from streamingvlm.video.frames import make_second
from streamingvlm.video.prefetch import Prefetch
from streamingvlm.video.source import PictureSource, SkipCounts, VideoInfo


def open_video(
    path: str | Path,
    *,
    fps: float = 2.0,
    turn_s: float = 1.0,
    decoder: str = "pyav",
    prefetch: int = 2,
    start_s: float = 0.0,
) -> "VideoReader":
    """Open a file of video to be read in chunks of `turn_s` seconds with `fps` frames per second of video.

    `decoder` is "pyav", or "decord" for ordinary mp4 files. At most `prefetch` chunks are decoded ahead. Reading
    begins `start_s` seconds into the file: the chunks carry the file's times from there on, and numbers from 0.

    Raises VideoError where the file cannot be read as video, ConfigError where a setting is out of range.
    """
    grid = SamplingGrid(fps=fps, turn_s=turn_s, start_s=start_s)
    if prefetch < 1:
        raise ConfigError(f"prefetch is {prefetch}, but at least 1 chunk must be decoded ahead; the usual number is 2")
    source = open_pictures(path, decoder, start_s=start_s)
    if start_s and source.info.duration_s is not None and source.info.duration_s <= start_s:
        source.close()
        raise _starts_too_late(path, start_s)
    return VideoReader(path, source, grid, prefetch=prefetch)


class VideoReader:
    """The seconds of one video: an iterator, read once, and a context manager.

    Leaving off and going on is fine. A reader that is dropped ends its thread and lets its file go, as `close` does.
    """

    def __init__(self, path: str | Path, source: PictureSource, grid: SamplingGrid, *, prefetch: int):
        self.path = Path(path)
        self.info: VideoInfo = source.info
        self.skipped: SkipCounts = source.skipped  # grows as the file is read, a little ahead of the caller
        self.fps, self.turn_s = grid.fps, grid.turn_s
        stop = threading.Event()
        seconds = _seconds(self.path, source, grid, stop)
        self._prefetch = Prefetch(seconds, depth=prefetch, name=f"decode {self.path.name}", stop=stop)
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
        """End the decoding thread and let the file go; safe to call twice. Iteration then ends."""
        self._shut_down()


def _shut_down(prefetch: Prefetch, source: PictureSource) -> None:
    prefetch.close()
    source.close()


def open_pictures(path: str | Path, decoder: str = "pyav", *, start_s: float = 0.0) -> PictureSource:
    """Open a file for its pictures, from `start_s` on. Raises VideoError and ConfigError as `open_video` does."""
    opener = _source_opener(decoder)
    _check_file(path)
    return opener(Path(path), start_s=start_s)


def _source_opener(decoder: str) -> Callable[..., PictureSource]:
    if decoder == "pyav":
        from streamingvlm.video.pyav import open_pyav

        return open_pyav
    if decoder == "decord":
        from streamingvlm.video.decord import open_decord

        return open_decord
    raise ConfigError(f"decoder is {decoder!r}, but must be 'pyav' or 'decord'")


def _check_file(path: str | Path) -> None:
    """Say in plain words what a decoder would say in codes."""
    name = repr(os.fspath(path))
    if "://" in name:
        raise VideoError(
            f"{redacted(os.fspath(path))!r} is an address, but only files can be read here; use open_source"
        )
    path = Path(path)
    if not path.exists():
        raise VideoError(f"{name} does not exist; check the path to the video")
    if path.is_dir():
        raise VideoError(f"{name} is a folder; name one video file in it")
    if not os.access(path, os.R_OK):
        raise VideoError(f"{name} may not be read by this user; change its permissions")
    if path.is_file() and path.stat().st_size == 0:
        raise VideoError(f"{name} is empty (0 bytes); copy or download it again")


def _starts_too_late(path: str | Path, start_s: float) -> VideoError:
    return VideoError(f"{os.fspath(path)!r} ends before start_s = {start_s:g}; choose an earlier start")


def _seconds(path: Path, source: PictureSource, grid: SamplingGrid, stop: threading.Event) -> Iterator[VideoTurn]:
    pictures = takewhile(lambda _: not stop.is_set(), source.pictures())
    newest = None
    for index, shown in enumerate(sample(pictures, grid, tick_s=source.tick_s)):
        yield make_second(index, shown, newest, grid)
        newest = shown[-1]
    if newest is None and not stop.is_set():
        raise _starts_too_late(path, grid.start_s)
