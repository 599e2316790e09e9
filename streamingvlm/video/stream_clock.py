"""Map the timestamps of a file to stream time."""

import math

MAX_GAP_S = 300.0
"""A longer gap is a break of the file's clock, and a longer frame duration is an error in the file."""

MAX_BACKSTEP_S = 0.5
"""A frame that steps back by more than this starts a new clock; by less, it is out of order and is skipped."""

REPORTED_GAP_S = 0.25
"""Shorter gaps are ordinary variation of the frame rate."""


def plausible_s(duration_s: float, otherwise_s: float) -> float:
    """Return a frame duration read from a file, or `otherwise_s` if damage made it absurd."""
    return duration_s if 0 < duration_s <= MAX_GAP_S else otherwise_s


class StreamClock:
    """Map the timestamps of a file to stream time, which begins at 0 and never runs backwards.

    A file may start its clock anywhere, wrap it, break it (joined recordings), or have no timestamps at all.
    """

    def __init__(self, frame_s: float, *, zero_s: float | None = None):
        """`frame_s`: the usual time between two frames, used where the file has no timestamps.

        `zero_s`: the file's own timestamp of stream time 0; by default that of the first frame.
        """
        self._frame_s = frame_s
        self._offset_s: float | None = None if zero_s is None else -zero_s
        self._expected_s: float | None = None  # stream time at which the next frame is due
        self._newest_s = -math.inf
        self.num_jumps = 0
        self.gap_s = 0.0

    @property
    def end_s(self) -> float:
        """Stream time at which the newest frame ends; 0 before the first."""
        return 0.0 if self._expected_s is None else self._expected_s

    def to_stream_time(self, stamp_s: float | None, duration_s: float) -> float | None:
        """Return the stream time of a frame with timestamp `stamp_s` and duration `duration_s`; None if it is late."""
        time_s = self._apply_offset(stamp_s)
        if self._newest_s - MAX_BACKSTEP_S <= time_s <= self._newest_s:
            return None
        time_s = self._close_jump(time_s)
        self._newest_s, self._expected_s = time_s, time_s + duration_s
        return time_s

    def to_file_time(self, stream_s: float) -> float:
        """Return the file's own timestamp of a stream time, by the frames seen so far."""
        return stream_s - (self._offset_s or 0.0)

    def seek(self) -> None:
        """Expect the next frame from elsewhere in the file, without counting a jump."""
        self._newest_s, self._expected_s = -math.inf, None

    def _apply_offset(self, stamp_s: float | None) -> float:
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
