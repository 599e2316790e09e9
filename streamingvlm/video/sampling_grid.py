"""Sample the frames of a turn, as pure functions of the times of the decoded frames.

Frame k of turn i is the newest decoded frame at or before `start_s + i * turn_s + k / fps`. Taking the last few frames
of a time range instead would repeat frames. This rule gives distinct frames whenever the frame rate of the file is at
least the sampling rate, and it does not need to know that frame rate.
"""

import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Protocol, TypeVar

from streamingvlm.errors import ConfigError

MAX_TOLERANCE_S = 0.0005
"""Half a tick covers the rounding of timestamps. Some files (AVI) have one tick per frame and round nothing."""


class Timed(Protocol):
    """Anything with a start time and a duration."""

    @property
    def time_s(self) -> float: ...

    @property
    def duration_s(self) -> float: ...


TimedT = TypeVar("TimedT", bound=Timed)


@dataclass(frozen=True)
class SamplingGrid:
    """The times at which frames are sampled.

    Raises ConfigError if a rate or a length is not positive, or if a turn is too short to hold a frame.
    """

    fps: float = 2.0
    turn_s: float = 1.0
    start_s: float = 0.0

    def __post_init__(self) -> None:
        for name, value in (("fps", self.fps), ("turn_s", self.turn_s)):
            if not (math.isfinite(value) and value > 0):
                raise ConfigError(f"{name} is {value}, but must be positive; the usual {name} is {_USUAL[name]}")
        if not (math.isfinite(self.start_s) and self.start_s >= 0):
            raise ConfigError(f"start_s is {self.start_s}, but must be 0 or a positive number of seconds")
        if self.num_frames < 1:
            raise ConfigError(
                f"fps {self.fps:g} with turn_s {self.turn_s:g} leaves no frame in a turn; "
                f"raise fps to at least {1 / self.turn_s:g} or turn_s to at least {1 / self.fps:g}"
            )

    @property
    def num_frames(self) -> int:
        """Frames in a turn."""
        return round(self.fps * self.turn_s)

    def turn_start_s(self, index: int) -> float:
        """Stream time at which turn `index` begins."""
        return self.start_s + index * self.turn_s

    def frame_time_s(self, index: int, k: int) -> float:
        """Stream time at which frame `k` of turn `index` is sampled."""
        return self.turn_start_s(index) + k / self.fps

    def is_past(self, index: int, k: int, time_s: float, tolerance_s: float) -> bool:
        """Return True if a frame of `time_s` comes after the moment of frame `k` of turn `index`.

        This is the rule of every source: the frame before it, the newest at or before the moment, is the one sampled.
        """
        return self.frame_time_s(index, k) + tolerance_s < time_s

    def last_turn(self, last: Timed, tolerance_s: float) -> int:
        """Return the last turn in which the last frame begins, or which it covers for a whole frame interval."""
        reaches_s = max(last.time_s, last.time_s + last.duration_s - 1 / self.fps) + tolerance_s
        return math.floor((reaches_s - self.start_s) / self.turn_s)


_USUAL = {"fps": 2, "turn_s": 1}


def tolerance_s(tick_s: float) -> float:
    """Return how much later than its sampling time a frame may be stamped and still be sampled."""
    return min(tick_s / 2, MAX_TOLERANCE_S)


def sample(frames: Iterable[TimedT], grid: SamplingGrid, *, tick_s: float) -> Iterator[list[TimedT]]:
    """Yield the `grid.num_frames` frames of each turn.

    `frames` come in order of time. A sampling time before the first frame gets the first frame. The last turn is padded
    with the last frame. A frame repeats in a list until a newer one has come.
    """
    slack_s = tolerance_s(tick_s)
    index, sampled, newest = 0, [], None
    for frame in frames:
        while newest is not None and grid.is_past(index, len(sampled), frame.time_s, slack_s):
            sampled.append(newest)
            if len(sampled) == grid.num_frames:
                yield sampled
                index, sampled = index + 1, []
        newest = frame
    if newest is None:
        return
    for _ in range(index, grid.last_turn(newest, slack_s) + 1):
        yield sampled + [newest] * (grid.num_frames - len(sampled))
        sampled = []
