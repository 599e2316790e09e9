"""The frames of a live source with their stream times, across all of its connections.

A feed yields frames, and between them numbers: no more frames from before this stream time will come. Infinity is a
gap or the end.
"""

import logging
import math
import random
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import fields, replace
from typing import TYPE_CHECKING, Protocol

from streamingvlm.config import LiveConfig
from streamingvlm.errors import VideoError
from streamingvlm.video.live.live_clock import LiveClock
from streamingvlm.video.live.pushed_frames import PushedFrames, decoded_frames
from streamingvlm.video.source import BrokenStreamError, DecodedFrame, FrameSource, SkipCounts, VideoInfo

if TYPE_CHECKING:
    from streamingvlm.video.live.connection import Connection

_LOG = logging.getLogger(__name__)

GAP = math.inf
MAX_OVERLAP_S = 60.0
"""HLS may repeat at most this much of the stream after a reconnect."""

PUSHED_TICK_S = 2e-6
"""Capture times are floats of the caller: a sum of intervals differs by some nanoseconds from its true value."""

IDLE_S = 0.05
"""Stream time advances this often while no frame is pushed."""


class Feed(Protocol):
    """A source for as long as it is watched. One thread reads and closes it; `skipped` may be read from any thread."""

    info: VideoInfo
    clock: LiveClock
    tick_s: float  # the time unit of its frames

    @property
    def skipped(self) -> SkipCounts:
        """Counts of what could not be shown so far."""

    def events(self) -> Iterator[DecodedFrame | float]:
        """Yield frames with their stream times, and stream times before which no more frames will come."""

    def close(self) -> None:
        """Close the source. Safe to call twice."""


class Backoff:
    """Delays between attempts: doubled each time up to a maximum, with jitter of up to a half.

    The jitter keeps a hundred watchers of one camera from reconnecting at the same moment.
    """

    def __init__(self, min_s: float, max_s: float, random_: Callable[[], float] = random.random):
        self._min_s, self._max_s, self._random = min_s, max_s, random_
        self._num_attempts = 0

    def reset(self) -> None:
        """Start again from the shortest delay, after a success."""
        self._num_attempts = 0

    def next_s(self) -> float:
        """Return the seconds to wait before the next attempt, at most the maximum."""
        # The exponent is capped so that it does not overflow when a camera is off for a week.
        delay_s = min(self._max_s, self._min_s * 2 ** min(self._num_attempts, 30))
        self._num_attempts += 1
        return delay_s * (0.5 + 0.5 * self._random())


class ConnectionFeed:
    """A source that is reconnected whenever its connection breaks."""

    def __init__(
        self,
        connection: "Connection",
        connect: "Callable[[], Connection] | None",
        clock: LiveClock,
        config: LiveConfig,
        *,
        shown: str,
        stop: threading.Event,
    ):
        """`connection` is open. `connect` opens another one; None if there can be only one, as with a pipe."""
        self._connection, self._connect, self._config = connection, connect, config
        self._shown, self._stop = shown, stop
        self._backoff = Backoff(config.retry_min_s, config.retry_max_s)
        self._past = SkipCounts()  # of all connections before this one
        self._swap = threading.Lock()  # `_past` and `_connection` change together
        self._stamp_s = -math.inf  # the source's own timestamp of the newest frame
        self.info = connection.info
        self.tick_s = connection.tick_s
        self.clock = clock

    @property
    def skipped(self) -> SkipCounts:
        """Counts of what could not be shown so far, summed over all connections."""
        with self._swap:
            total = _sum(self._past, self._connection.skipped)
        return replace(total, lost_s=total.lost_s + total.gap_s + self.clock.lost_s, gap_s=0.0, missing_s=0.0)

    def events(self) -> Iterator[DecodedFrame | float]:
        """Yield the frames of successive connections, with a gap between them."""
        while True:
            yield from self._frames()
            self._connection.close()
            if self._stop.is_set() or self._is_over():
                return
            yield GAP
            if not self._reconnect():
                return

    def close(self) -> None:
        """Close the connection. Safe to call twice."""
        self._connection.close()

    def _frames(self) -> Iterator[DecodedFrame | float]:
        """Yield the frames of this connection, each followed by the time before which the next is not expected."""
        connected_s = time.monotonic()
        for frame, interval_s in self._timed_frames():
            if self._stop.wait(self.clock.wait_s(frame.time_s, time.monotonic())):
                return
            if time.monotonic() - connected_s > self._config.retry_max_s:
                self._backoff.reset()
            yield frame
            yield frame.time_s + interval_s / 2

    def _timed_frames(self) -> Iterator[tuple[DecodedFrame, float]]:
        """Yield frames with their stream times, and the interval since the frame before.

        A camera begins a connection with a burst of old frames, from a keyframe on. Only the newest of them is kept.
        """
        is_beginning = self.clock.early == "newest"
        newest, arrived_s, stamp_s = None, -math.inf, -math.inf
        for frame in self._new_frames():
            now_s = time.monotonic()
            interval_s = frame.time_s - stamp_s if newest else frame.duration_s
            is_burst = newest is not None and now_s - arrived_s < interval_s / 2
            # The last frame before a break was delayed for no longer than the break took.
            delay_s = interval_s if is_beginning else min(interval_s, now_s - arrived_s)
            arrived_s, stamp_s = now_s, frame.time_s
            timed = replace(frame, time_s=self._to_stream_time(frame, now_s, delay_s))
            if is_beginning and newest and not is_burst:
                is_beginning = False
                yield newest
            newest = timed, interval_s
            if not is_beginning:
                yield newest
        if is_beginning and newest:
            yield newest

    def _new_frames(self) -> Iterator[DecodedFrame]:
        """Yield the frames that were not already received before the connection broke."""
        connection = self._connection
        received_s, self._stamp_s = self._received_stamp_s(), connection.first_stamp_s
        for frame in connection.frames():
            self._stamp_s = max(self._stamp_s, connection.first_stamp_s + frame.time_s)
            if connection.first_stamp_s + frame.time_s > received_s:
                yield frame

    def _received_stamp_s(self) -> float:
        """Return the timestamp up to which this connection repeats what was received before: a recording, or HLS.

        HLS begins some seconds back. If its timestamps do not overlap with the old ones, the server has restarted.
        """
        overlap_s = self._stamp_s - self._connection.first_stamp_s
        repeats = self._connection.is_recording or (self._connection.is_paced and 0 <= overlap_s < MAX_OVERLAP_S)
        return self._stamp_s if repeats else -math.inf

    def _to_stream_time(self, frame: DecodedFrame, now_s: float, delay_s: float) -> float:
        has_clock = self._connection.has_clock or self.clock.early != "newest"
        arrived_s = now_s - delay_s if self._connection.delays_one_frame else now_s
        return self.clock.to_stream_time(frame.time_s if has_clock else None, arrived_s)

    def _is_over(self) -> bool:
        return self._connect is None or self._connection.has_ended

    def _reconnect(self) -> bool:
        """Retry until a connection is open; False if the stream has ended or the reader was closed.

        Raises VideoError after `live.retry_for_s`.
        """
        broken = self._connection
        _LOG.warning("%s disconnected (%s); reconnecting", self._shown, broken.broken_by or "it ended")
        broken_s = time.monotonic()
        while not self._stop.wait(self._backoff.next_s()):
            try:
                connection = self._connect()
            except BrokenStreamError as error:
                self._check_retry_limit(time.monotonic() - broken_s, error)
                continue
            if connection.is_recording and not broken.is_recording:
                connection.close()  # a live stream that is now offered as a recording has ended
                return False
            self._switch_to(connection)
            _LOG.warning("%s reconnected after %.1f s", self._shown, time.monotonic() - broken_s)
            return True
        return False

    def _switch_to(self, connection: "Connection") -> None:
        if connection.is_recording:  # before other threads see it, as a seek resets the counts
            connection.seek(self._stamp_s - connection.first_stamp_s)
        else:
            self.clock.reconnect()
        with self._swap:
            past = _sum(self._past, self._connection.skipped)
            self._past = replace(past, num_reconnects=past.num_reconnects + 1)
            self._connection = connection

    def _check_retry_limit(self, retried_s: float, error: BrokenStreamError) -> None:
        limit_s = self._config.retry_for_s
        if limit_s is not None and retried_s > limit_s:
            raise VideoError(f"{error}; retried for live.retry_for_s = {limit_s:g} s") from None


class PacedFeed:
    """A recording, played in real time as if it were live."""

    def __init__(self, source: FrameSource, stop: threading.Event):
        self._source, self._stop = source, stop
        self.info = source.info
        self.tick_s = source.tick_s
        self.clock = LiveClock("wait")

    @property
    def skipped(self) -> SkipCounts:
        """Counts of what could not be shown so far."""
        return self._source.skipped

    def events(self) -> Iterator[DecodedFrame | float]:
        """Yield each frame at its time."""
        for frame in self._source.frames():
            now_s = time.monotonic()
            time_s = self.clock.to_stream_time(frame.time_s, now_s)
            if self._stop.wait(self.clock.wait_s(time_s, now_s)):
                return
            yield replace(frame, time_s=time_s)

    def close(self) -> None:
        """Close the file. Safe to call twice."""
        self._source.close()


class PushedFeed:
    """Pushed frames, at the capture times given to `PushedFrames.push`."""

    def __init__(self, frames: PushedFrames, stop: threading.Event):
        self._frames, self._stop = frames, stop
        self.info = VideoInfo(None, 0, 0, None, "pushed frames", 0)
        self.tick_s = PUSHED_TICK_S
        self.clock = LiveClock()

    @property
    def skipped(self) -> SkipCounts:
        """The frames that were dropped because there was no room for them."""
        return SkipCounts(num_frames=self._frames.num_dropped)

    def events(self) -> Iterator[DecodedFrame | float]:
        """Yield the frames, and stream time while none comes. A frame that is out of order is skipped."""
        newest_s = -math.inf
        for pushed in decoded_frames(self._frames, IDLE_S):
            if self._stop.is_set():
                return
            if pushed is None:
                yield self.clock.now_to_stream_time(time.monotonic() - IDLE_S)
                continue
            frame, captured_s = pushed
            if captured_s > newest_s:
                newest_s = captured_s
                yield replace(frame, time_s=self.clock.to_stream_time(frame.time_s, captured_s))

    def close(self) -> None:
        """Do nothing: the caller owns the PushedFrames."""


def _sum(first: SkipCounts, second: SkipCounts) -> SkipCounts:
    return SkipCounts(*(getattr(first, field.name) + getattr(second, field.name) for field in fields(SkipCounts)))
