"""The clock of a stream: which pictures make up a second, as pure functions of their times.

Frame k of chunk i is the newest picture whose time is at or before `start_s + i * turn_s + k / fps`. Unlike a time
range, of which the last few pictures are taken, this gives distinct frames at every frame rate of the file that is at
least the sampling rate, and it needs no knowledge of the file's frame rate.
"""

import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Protocol, TypeVar

import torch

from streamingvlm.errors import ConfigError

MAX_TOLERANCE_S = 0.0005
"""Half a tick forgives the rounding of timestamps, but some files (AVI) tick once a frame and round nothing."""

MAX_GAP_S = 300.0
"""A longer silence than this is a break of the file's clock, and a longer picture an error in it."""

MAX_BACKSTEP_S = 0.5
"""A picture that is late by more than this starts a new clock; by less, it is out of order and too late to be shown."""

REPORTED_GAP_S = 0.25
"""Gaps shorter than this are ordinary variation of the frame rate."""


@dataclass(frozen=True, eq=False)
class VideoTurn:
    """One chunk of video: what the model sees before it speaks."""

    index: int  # 0-based number of the chunk
    start_s: float  # stream time: 0 at the first picture of the file, whatever its own clock says
    end_s: float
    frames: torch.Tensor  # uint8 [F, 3, H, W], RGB, F = round(fps * turn_s)
    num_repeated: int = 0  # frames that show the same picture as the frame before: a gap, a slow file, or its end
    captured_s: float | None = None  # when its newest frame was captured, by time.monotonic(); None where nobody knows
    dropped_s: float = 0.0  # seconds of a live stream that went by unseen before it, as the model was late
    coalesced_s: float = 0.0  # seconds beyond its own that it stands for, as the model was late
    detail: float = 1.0  # share of the pixels and tokens to spend on it; below 1 while the model is late


class Timed(Protocol):
    """Anything that appears at a time and stays for a while."""

    @property
    def time_s(self) -> float: ...

    @property
    def duration_s(self) -> float: ...


TimedT = TypeVar("TimedT", bound=Timed)


@dataclass(frozen=True)
class SamplingGrid:
    """The moments at which frames are taken.

    Raises ConfigError where a rate or a length is not positive, or a chunk is too short to hold a frame.
    """

    fps: float = 2.0
    turn_s: float = 1.0
    start_s: float = 0.0

    def __post_init__(self) -> None:
        for name, value in (("fps", self.fps), ("turn_s", self.turn_s)):
            if not (math.isfinite(value) and value > 0):
                raise ConfigError(
                    f"{name} is {value}, but must be a positive number; the usual {name} is {_USUAL[name]}"
                )
        if not (math.isfinite(self.start_s) and self.start_s >= 0):
            raise ConfigError(f"start_s is {self.start_s}, but must be 0 or a positive number of seconds")
        if self.num_frames < 1:
            raise ConfigError(
                f"fps {self.fps:g} with turn_s {self.turn_s:g} leaves no frame in a chunk; "
                f"raise fps to at least {1 / self.turn_s:g} or turn_s to at least {1 / self.fps:g}"
            )

    @property
    def num_frames(self) -> int:
        """Frames in a chunk."""
        return round(self.fps * self.turn_s)

    def turn_start_s(self, index: int) -> float:
        """Stream time at which chunk `index` begins."""
        return self.start_s + index * self.turn_s

    def frame_time_s(self, index: int, k: int) -> float:
        """Stream time at which frame `k` of chunk `index` is taken."""
        return self.turn_start_s(index) + k / self.fps

    def last_turn(self, last: Timed, tolerance_s: float) -> int:
        """The last chunk that the last picture gives reason for: it begins there, or stays a whole frame interval."""
        reaches_s = max(last.time_s, last.time_s + last.duration_s - 1 / self.fps) + tolerance_s
        return math.floor((reaches_s - self.start_s) / self.turn_s)


_USUAL = {"fps": 2, "turn_s": 1}


def tolerance_s(tick_s: float) -> float:
    """How much later than the moment asked for a picture may be stamped and still count as there."""
    return min(tick_s / 2, MAX_TOLERANCE_S)


def plausible_s(duration_s: float, otherwise_s: float) -> float:
    """The length of a picture as the file says it, unless damage has made it absurd: else `otherwise_s`."""
    return duration_s if 0 < duration_s <= MAX_GAP_S else otherwise_s


def sample(pictures: Iterable[TimedT], grid: SamplingGrid, *, tick_s: float) -> Iterator[list[TimedT]]:
    """Yield, chunk by chunk, the `grid.num_frames` pictures to show.

    `pictures` come in order of time. What lies before the first one shows the first one. The last chunk is filled up
    with the last picture. A picture stands more than once in a list where no newer one has come.
    """
    slack_s = tolerance_s(tick_s)
    index, shown, newest = 0, [], None
    for picture in pictures:
        while newest is not None and grid.frame_time_s(index, len(shown)) + slack_s < picture.time_s:
            shown.append(newest)
            if len(shown) == grid.num_frames:
                yield shown
                index, shown = index + 1, []
        newest = picture
    if newest is None:
        return
    for _ in range(index, grid.last_turn(newest, slack_s) + 1):
        yield shown + [newest] * (grid.num_frames - len(shown))
        shown = []


class StreamClock:
    """Turns the timestamps of a file into stream time, which begins at 0 and never runs backwards.

    A file may start its clock anywhere, wrap it, break it (joined recordings), or give no times at all.
    """

    def __init__(self, frame_s: float):
        """`frame_s`: the ordinary time between two pictures, used where the file does not say."""
        self._frame_s = frame_s
        self._offset_s: float | None = None
        self._expected_s: float | None = None  # stream time at which the next picture is due
        self._newest_s = -math.inf
        self.num_jumps = 0
        self.gap_s = 0.0

    @property
    def end_s(self) -> float:
        """Stream time at which the newest picture has had its time; 0 before the first."""
        return 0.0 if self._expected_s is None else self._expected_s

    def tell(self, stamp_s: float | None, duration_s: float) -> float | None:
        """Stream time of the picture stamped `stamp_s`, which stays `duration_s`; None where it comes too late."""
        time_s = self._stream_time_s(stamp_s)
        if self._newest_s - MAX_BACKSTEP_S <= time_s <= self._newest_s:
            return None
        time_s = self._close_jump(time_s)
        self._newest_s, self._expected_s = time_s, time_s + duration_s
        return time_s

    def file_time_s(self, stream_s: float) -> float:
        """The file's own time for a stream time, by the pictures told so far."""
        return stream_s - (self._offset_s or 0.0)

    def seek(self) -> None:
        """The next picture comes from elsewhere in the file: no jump."""
        self._newest_s, self._expected_s = -math.inf, None

    def _stream_time_s(self, stamp_s: float | None) -> float:
        if stamp_s is None:
            return self.end_s
        if self._offset_s is None:
            self._offset_s = self.end_s - stamp_s
        return stamp_s + self._offset_s

    def _close_jump(self, time_s: float) -> float:
        if self._expected_s is None:
            return time_s
        gap_s = time_s - self._expected_s
        if time_s < self._newest_s or gap_s > MAX_GAP_S:
            self.num_jumps += 1
            self._offset_s -= gap_s
            return self._expected_s
        if gap_s > REPORTED_GAP_S:
            self.gap_s += gap_s
        return time_s
