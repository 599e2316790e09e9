"""Sample the frames of each turn of a live stream as they arrive."""

import math
from collections import deque
from collections.abc import Iterator

from streamingvlm.video.sampling_grid import SamplingGrid, tolerance_s
from streamingvlm.video.source import DecodedFrame

LATE_SHARE = 0.25
"""The greatest delay of a frame after its sampling time, as a share of the frame interval.

Where a camera delivers exactly the requested frame rate, each frame comes just before or just after its sampling time.
A faster or slower source has no such delay: its samples are those of a file.
"""

SAME_RATE = 0.15
"""A source whose mean interval differs by less than this share from the requested one delivers the requested rate."""

NUM_INTERVALS = 16


class LiveSampler:
    """Sample the frames of each turn as they arrive; skip a turn without a new frame.

    As in a file, a sample is the newest frame at its sampling time. Unlike in a file, no frame is repeated over a gap:
    the turn after a gap begins with the first frame after it.
    """

    def __init__(self, grid: SamplingGrid, *, tick_s: float):
        """tick_s: the time unit of the source."""
        self.grid = grid
        self._late_s = LATE_SHARE / grid.fps
        self._slack_s = tolerance_s(tick_s)
        self._intervals_s: deque[float] = deque(maxlen=NUM_INTERVALS)  # between the newest frames, without gaps
        self._index = 0
        self._sampled: list[DecodedFrame] = []  # of turn `_index`
        self._newest: DecodedFrame | None = None
        self._last_sampled: DecodedFrame | None = None  # of the turn before

    def add(self, frame: DecodedFrame) -> Iterator[tuple[int, list[DecodedFrame]]]:
        """Add the next frame; yield the index and the frames of each turn that it completes.

        Of two frames with the same time the second replaces the first.
        """
        yield from self.advance(frame.time_s)
        turn = math.floor((frame.time_s - self.grid.start_s) / self.grid.turn_s)
        before = self._newest
        if turn > self._index:
            self._index, before = turn, None
        elif self._newest is not None:
            self._intervals_s.append(frame.time_s - self._newest.time_s)
        slack_s = self._late_s if self._delivers_the_rate() else self._slack_s
        yield from self._sample_until(frame.time_s - slack_s, before or frame)
        self._newest = frame

    def advance(self, time_s: float) -> Iterator[tuple[int, list[DecodedFrame]]]:
        """Yield the turn that is complete because no more frames from before `time_s` will come."""
        if self._newest is not None and (self._sampled or self._newest is not self._last_sampled):
            yield from self._sample_until(time_s - self._late_s, self._newest)

    def flush(self) -> Iterator[tuple[int, list[DecodedFrame]]]:
        """Yield the turn that has begun, padded with its newest frame, before a gap or the end."""
        if self._newest is None:
            return
        if self._sampled or self._newest.time_s >= self.grid.turn_start_s(self._index):
            yield from self._sample_until(math.inf, self._newest)

    def _delivers_the_rate(self) -> bool:
        if not self._intervals_s:
            return False
        interval_s = sum(self._intervals_s) / len(self._intervals_s)
        return abs(interval_s * self.grid.fps - 1) < SAME_RATE

    def _sample_until(self, time_s: float, frame: DecodedFrame) -> Iterator[tuple[int, list[DecodedFrame]]]:
        """Use `frame` for the samples of this turn that are due before `time_s`."""
        while len(self._sampled) < self.grid.num_frames:
            if self.grid.frame_time_s(self._index, len(self._sampled)) >= time_s:
                return
            self._sampled.append(frame)
        index, sampled, earlier = self._index, self._sampled, self._last_sampled
        self._index, self._sampled, self._last_sampled = index + 1, [], sampled[-1]
        if any(frame is not earlier for frame in sampled):
            yield index, sampled
