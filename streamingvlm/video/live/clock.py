"""The clock of a live stream: what the stream says of its time, held against the time at which it comes.

Stream time is 0 when the first picture comes and goes on as real time does, whatever happens to the connection. A
stream that was away for 7 seconds comes back 7 seconds later. Between two pictures of one connection the stream's own
stamps count: they do not shake as the network does.
"""

import math
from collections.abc import Iterator
from typing import Literal

from streamingvlm.video.clock import SamplingGrid
from streamingvlm.video.source import DecodedFrame

DRIFT_WINDOW_S = 10.0
"""The least delay within so many seconds is taken for the drift between the two clocks."""

MAX_DRIFT = 1e-3
"""Seconds a second by which the clock of a camera may be slow. A delay that grows faster is a real one."""

MAX_AHEAD_S = 60.0
"""A stream that is to be waited for longer has broken its own clock."""

LATE_SHARE = 0.25
"""How much later than its moment a picture may come and still be shown, as a share of the time between two frames.

Where a camera gives just the pictures that are asked for, each would come just before or just after its moment.
"""

Early = Literal["newest", "wait", "keep"]


class LiveClock:
    """Gives pictures their stream time; one clock serves a source through all its connections.

    early: what to do with a picture whose stamp says that it belongs to the future, since many came at once.
        "newest": those before it were late, and it takes the place of the newest (cameras: a burst at the beginning);
        "wait": it is to be shown at its time (HLS, which gives several seconds at once); "keep": nothing, the source
        is no live one, or is held back.
    """

    def __init__(self, early: Early = "newest"):
        self.early = early
        self._started_s: float | None = None  # real time at stream time 0
        self._shift_s: float | None = None  # from the stamps of this connection to stream time; None before its first
        self._newest_s = -math.inf
        self._least_late_s = math.inf
        self._window_ends_s = math.inf
        self.lost_s = 0.0

    @property
    def newest_s(self) -> float:
        """Stream time of the newest picture."""
        return self._newest_s

    def reconnected(self) -> None:
        """The next picture is the first of another connection, whose stamps begin anywhere."""
        self._shift_s = None

    def stream_s(self, now_s: float) -> float:
        """Stream time at a moment of real time."""
        return 0.0 if self._started_s is None else now_s - self._started_s

    def tell(self, stamp_s: float | None, now_s: float) -> float:
        """Stream time of a picture that came at `now_s` with this stamp; None where the source does not know time."""
        if self._started_s is None:
            self._started_s = now_s
        real_s = self.stream_s(now_s)
        if stamp_s is None:
            stamp_s, self._shift_s = real_s, 0.0
        if self._shift_s is None:
            self._begin_connection(stamp_s, real_s)
            self._window_ends_s = now_s + DRIFT_WINDOW_S
        late_s = real_s - (stamp_s + self._shift_s)
        self._hold_to_real_time(late_s, now_s)
        self._newest_s = max(self._newest_s, stamp_s + self._shift_s)
        return self._newest_s

    def captured_s(self, stream_s: float, now_s: float) -> float:
        """Real time at which the picture of this stream time was captured, which came at `now_s` or before."""
        return min(now_s, self._started_s + stream_s)

    def wait_s(self, stream_s: float, now_s: float) -> float:
        """How long to hold a picture back so that it is shown at its time; 0 but for `early="wait"`."""
        return max(0.0, stream_s - self.stream_s(now_s)) if self.early == "wait" else 0.0

    def _begin_connection(self, stamp_s: float, real_s: float) -> None:
        """Stream time goes on where real time is, and never before the newest picture."""
        first_s = max(real_s, self._newest_s)
        if math.isfinite(self._newest_s):
            self.lost_s += first_s - self._newest_s
        self._shift_s = first_s - stamp_s

    def _hold_to_real_time(self, late_s: float, now_s: float) -> None:
        if self.early == "keep":
            return
        if self.early == "wait" and late_s >= -MAX_AHEAD_S:
            self._started_s += max(0.0, late_s)  # a pause to fill the buffer again: what follows is shown later
            return
        if late_s < 0:
            self._shift_s += late_s
        self._least_late_s = min(self._least_late_s, max(0.0, late_s))
        if now_s >= self._window_ends_s:
            self._shift_s += min(self._least_late_s, MAX_DRIFT * DRIFT_WINDOW_S)
            self._least_late_s, self._window_ends_s = math.inf, now_s + DRIFT_WINDOW_S


class LiveSampler:
    """Chooses the pictures of each second as they come; a second that brings no new picture is left out.

    As in a file, a frame shows the newest picture at its moment (here with some delay allowed). Unlike in a file,
    nothing is repeated over a gap: the second after it begins with the first picture that came after it.
    """

    def __init__(self, grid: SamplingGrid):
        self.grid = grid
        self._late_s = LATE_SHARE / grid.fps
        self._index = 0
        self._shown: list[DecodedFrame] = []
        self._newest: DecodedFrame | None = None
        self._last_shown: DecodedFrame | None = None

    def add(self, picture: DecodedFrame) -> Iterator[tuple[int, list[DecodedFrame]]]:
        """Take the next picture; yield number and pictures of each second that is complete with it.

        Of two pictures of one time the second takes the place of the first.
        """
        yield from self.advance(picture.time_s)
        chunk = math.floor((picture.time_s - self.grid.start_s) / self.grid.turn_s)
        before = self._newest
        if chunk > self._index:
            self._index, before = chunk, None
        yield from self._show_until(picture.time_s, before or picture)
        self._newest = picture

    def advance(self, time_s: float) -> Iterator[tuple[int, list[DecodedFrame]]]:
        """No picture from before `time_s` is to come any more: yield the second that is complete by that."""
        if self._newest is not None and (self._shown or self._newest is not self._last_shown):
            yield from self._show_until(time_s, self._newest)

    def flush(self) -> Iterator[tuple[int, list[DecodedFrame]]]:
        """Yield the second that has begun, filled up with its newest picture; a gap or the end follows."""
        if self._newest is None:
            return
        if self._shown or self._newest.time_s >= self.grid.turn_start_s(self._index):
            yield from self._show_until(math.inf, self._newest)

    def _show_until(self, time_s: float, picture: DecodedFrame) -> Iterator[tuple[int, list[DecodedFrame]]]:
        """Let `picture` stand in the frames of this second whose moment lies before `time_s`."""
        while len(self._shown) < self.grid.num_frames:
            if self.grid.frame_time_s(self._index, len(self._shown)) + self._late_s >= time_s:
                return
            self._shown.append(picture)
        index, shown, earlier = self._index, self._shown, self._last_shown
        self._index, self._shown, self._last_shown = index + 1, [], shown[-1]
        if any(picture is not earlier for picture in shown):
            yield index, shown
