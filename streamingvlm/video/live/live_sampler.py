"""Sample the frames of live turns as they arrive, by the rule of files: the newest frame at or before each moment."""

import math
from collections import deque
from collections.abc import Iterator

from streamingvlm.video.sampling_grid import SamplingGrid, tolerance_s
from streamingvlm.video.source import DecodedFrame

PACED_TOLERANCE = 0.25
"""The greatest delay of a frame after its moment, as a share of the sampling interval, if the source is paced."""

PACED_SHARE = 0.15
JITTER_SHARE = 0.095
"""A source is paced if its mean frame interval is the sampling interval within PACED_SHARE.

JITTER_SHARE, divided by the number of intervals, is added: of the first ones, the mean still shows the jitter.

Each of its frames comes just before or just after its moment. Without a tolerance its jitter would repeat some frames
and drop others. A faster or slower source has no such delay: its samples are those of a file.
"""

MAX_INTERVALS = 16
"""The mean interval is taken over at most this many intervals."""

UNKNOWN_TICK_S = 2e-5
"""For frames whose time unit is unknown: about two ticks of RTP and MPEG-TS (1/90000 s)."""


class LiveSampler:
    """Sample the frames of each turn as they arrive; skip a turn without a new frame.

    As in a file, a sample is the newest frame at or before its moment. Unlike in a file, no frame is repeated over a
    gap: the turn after a gap begins with the first frame after it.
    start_s: stream time of the first turn; of the frames before it, the newest may be sampled.
    tick_s: the time unit of the source.
    """

    def __init__(self, grid: SamplingGrid, start_s: float = 0.0, *, tick_s: float = UNKNOWN_TICK_S):
        self.grid = grid
        self._slack_s = tolerance_s(tick_s)
        self._paced_slack_s = PACED_TOLERANCE / grid.fps
        self._times_s: deque[float] = deque(maxlen=MAX_INTERVALS + 1)  # of the newest frames, without gaps
        self._index = round((start_s - grid.start_s) / grid.turn_s)
        self._sampled: list[DecodedFrame] = []  # of turn `_index`
        self._newest: DecodedFrame | None = None
        self._last_sampled: DecodedFrame | None = None  # of the turn before

    def add(self, frame: DecodedFrame) -> Iterator[tuple[int, list[DecodedFrame]]]:
        """Add the next frame; yield the index and the frames of each turn that it completes.

        Of two frames with the same time the second replaces the first.
        """
        self._times_s.append(frame.time_s)
        yield from self._complete_until(frame.time_s, self._slack())
        turn = math.floor((frame.time_s - self.grid.start_s) / self.grid.turn_s)
        before = self._newest
        if turn > self._index:
            self._index, before = turn, None
            self._times_s.clear()
            self._times_s.append(frame.time_s)
        yield from self._sample_until(frame.time_s, before or frame, self._slack())
        self._newest = frame

    def advance(self, time_s: float) -> Iterator[tuple[int, list[DecodedFrame]]]:
        """Yield the turn that is complete because no more frames from before `time_s` will come."""
        yield from self._complete_until(time_s, self._paced_slack_s)  # a frame of a paced source may be late

    def complete(self) -> Iterator[tuple[int, list[DecodedFrame]]]:
        """Yield the turn that the newest frame completes, if it comes at the last moment of the turn."""
        yield from self._complete_until(self._newest.time_s + 2 * self._slack(), self._slack())

    def flush(self) -> Iterator[tuple[int, list[DecodedFrame]]]:
        """Yield the turn that has begun, padded with its newest frame, before a gap or the end."""
        newest = self._newest
        if newest and (self._sampled or newest.time_s >= self.grid.turn_start_s(self._index)):
            yield from self._sample_until(math.inf, newest, 0.0)

    def _complete_until(self, time_s: float, slack_s: float) -> Iterator[tuple[int, list[DecodedFrame]]]:
        if self._newest is not None and (self._sampled or self._newest is not self._last_sampled):
            yield from self._sample_until(time_s, self._newest, slack_s)

    def _sample_until(
        self, time_s: float, frame: DecodedFrame, slack_s: float
    ) -> Iterator[tuple[int, list[DecodedFrame]]]:
        """Use `frame` for the samples of this turn whose moments are past at `time_s`."""
        while len(self._sampled) < self.grid.num_frames:
            if not self.grid.is_past(self._index, len(self._sampled), time_s, slack_s):
                return
            self._sampled.append(frame)
        index, sampled, earlier = self._index, self._sampled, self._last_sampled
        self._index, self._sampled, self._last_sampled = index + 1, [], sampled[-1]
        if any(frame is not earlier for frame in sampled):
            yield index, sampled

    def _slack(self) -> float:
        """Return how much later than its moment a frame may be, in seconds."""
        num_intervals = len(self._times_s) - 1
        if num_intervals < 1:
            return self._slack_s
        mean = (self._times_s[-1] - self._times_s[0]) * self.grid.fps / num_intervals
        is_paced = abs(mean - 1) < PACED_SHARE + JITTER_SHARE / num_intervals
        return self._paced_slack_s if is_paced else self._slack_s
