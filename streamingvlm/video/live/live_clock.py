"""Map the timestamps of a live stream to stream time, corrected by the arrival times.

Stream time is 0 when the first frame arrives and advances in real time, whatever happens to the connection. A stream
that was away for 7 seconds resumes 7 seconds later. Between two frames of one connection the stream's own timestamps
count, because they have no network jitter.
"""

import math
from typing import Literal

DRIFT_WINDOW_S = 10.0
"""The smallest delay within this window is taken as the drift between the two clocks."""

MAX_DRIFT = 1e-3
"""The largest drift of a camera's clock, in seconds per second. A delay that grows faster is a real delay."""

MAX_AHEAD_S = 60.0
"""A frame that would have to wait longer than this is a break of the stream's clock."""

EarlyPolicy = Literal["newest", "wait", "keep"]


class LiveClock:
    """Map timestamps to stream time; one clock serves a source through all its connections.

    early: the treatment of a frame whose timestamp is ahead of real time.
        "newest": the frames before it were late, so the clock moves to this frame (cameras, which begin with a burst).
        "wait": the frame is held until its time (HLS, which delivers several seconds at once).
        "keep": the timestamp is used as it is (a source that is not live or that is held back).
    """

    def __init__(self, early: EarlyPolicy = "newest"):
        self.early = early
        self._started_s: float | None = None  # real time at stream time 0
        self._offset_s: float | None = None  # timestamp to stream time; None before the first frame of a connection
        self._newest_s = -math.inf
        self._min_late_s = math.inf
        self._window_ends_s = math.inf
        self.lost_s = 0.0

    def reconnect(self) -> None:
        """Expect the next frame from another connection, whose timestamps may begin anywhere."""
        self._offset_s = None

    def now_to_stream_time(self, now_s: float) -> float:
        """Return the stream time at a real time."""
        return 0.0 if self._started_s is None else now_s - self._started_s

    def to_stream_time(self, stamp_s: float | None, now_s: float) -> float:
        """Return the stream time of a frame that arrived at `now_s`; `stamp_s` is None if the source has no clock."""
        if self._started_s is None:
            self._started_s = now_s
        real_s = self.now_to_stream_time(now_s)
        if stamp_s is None:
            stamp_s, self._offset_s = real_s, 0.0
        if self._offset_s is None:
            self._begin_connection(stamp_s, real_s)
            self._window_ends_s = now_s + DRIFT_WINDOW_S
        late_s = real_s - (stamp_s + self._offset_s)
        self._correct(late_s, now_s)
        self._newest_s = max(self._newest_s, stamp_s + self._offset_s)
        return self._newest_s

    def captured_s(self, stream_s: float, now_s: float) -> float:
        """Return the capture time, in real time, of the frame at a stream time; it arrived at `now_s` or before."""
        return min(now_s, self._started_s + stream_s)

    def wait_s(self, stream_s: float, now_s: float) -> float:
        """Return how long to hold a frame so that it is shown at its time; 0 except with `early="wait"`."""
        return max(0.0, stream_s - self.now_to_stream_time(now_s)) if self.early == "wait" else 0.0

    def _begin_connection(self, stamp_s: float, real_s: float) -> None:
        """Continue stream time at real time, and never before the newest frame."""
        first_s = max(real_s, self._newest_s)
        if math.isfinite(self._newest_s):
            self.lost_s += first_s - self._newest_s
        self._offset_s = first_s - stamp_s

    def _correct(self, late_s: float, now_s: float) -> None:
        """Move the offset, or the start with `early="wait"`, so that stream time stays with real time."""
        if self.early == "keep":
            return
        if self.early == "wait" and late_s >= -MAX_AHEAD_S:
            self._started_s += max(0.0, late_s)  # a pause to refill the buffer: later frames are shown later
            return
        if late_s < 0:
            self._offset_s += late_s
        self._min_late_s = min(self._min_late_s, max(0.0, late_s))
        if now_s >= self._window_ends_s:
            self._offset_s += min(self._min_late_s, MAX_DRIFT * DRIFT_WINDOW_S)
            self._min_late_s, self._window_ends_s = math.inf, now_s + DRIFT_WINDOW_S
