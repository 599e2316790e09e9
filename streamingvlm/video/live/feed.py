"""Where the pictures of a live source come from, whatever happens to its connection, each with its stream time.

A feed yields pictures in stream time, and between them numbers: no picture from before this stream time is to come any
more. Infinity is a gap, or the end.
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
from streamingvlm.video.live.clock import LiveClock
from streamingvlm.video.live.pushed import PushedFrames, pictures_of
from streamingvlm.video.source import BrokenStreamError, DecodedFrame, PictureSource, SkipCounts, VideoInfo

if TYPE_CHECKING:
    from streamingvlm.video.live.connection import Connection

_LOG = logging.getLogger(__name__)

GAP = math.inf
MAX_OVERLAP_S = 60.0
"""So much of what was there before HLS may give again after a break."""

IDLE_S = 0.05
"""How often a source without pictures is asked whether the second is over."""


class Feed(Protocol):
    """A source for as long as it is watched; read from one thread, and closed by it."""

    info: VideoInfo
    clock: LiveClock

    @property
    def skipped(self) -> SkipCounts:
        """What could not be shown so far."""

    def events(self) -> Iterator[DecodedFrame | float]:
        """Yield pictures with their stream time, and stream times before which nothing is to come."""

    def close(self) -> None:
        """Let the source go; safe to call twice."""


class Backoff:
    """How long to wait before the next attempt: doubled each time up to a largest, and shaken by up to a half.

    Shaken, so that a hundred watchers of one camera do not all come back at the same moment.
    """

    def __init__(self, least_s: float, most_s: float, random_: Callable[[], float] = random.random):
        self._least_s, self._most_s, self._random = least_s, most_s, random_
        self._num_attempts = 0

    def reset(self) -> None:
        """The last attempt was a success."""
        self._num_attempts = 0

    def next_s(self) -> float:
        """Seconds to wait now; never more than the largest."""
        # The exponent is cut so that a camera that is off for a week does not overflow it.
        wait_s = min(self._most_s, self._least_s * 2 ** min(self._num_attempts, 30))
        self._num_attempts += 1
        return wait_s * (0.5 + 0.5 * self._random())


class ConnectionFeed:
    """A source that is connected to, and connected to again whenever it breaks off."""

    def __init__(
        self,
        connection: "Connection",
        reconnect: "Callable[[], Connection] | None",
        clock: LiveClock,
        config: LiveConfig,
        *,
        shown: str,
        stop: threading.Event,
    ):
        """`connection` stands; `reconnect` makes another one, None where there is but one, as of a pipe."""
        self._connection, self._connect, self._config = connection, reconnect, config
        self._shown, self._stop = shown, stop
        self._backoff = Backoff(config.retry_min_s, config.retry_max_s)
        self._past = SkipCounts()
        self._stamp_s = -math.inf  # the source's own stamp of the newest picture
        self.info = connection.info
        self.clock = clock

    @property
    def skipped(self) -> SkipCounts:
        """What could not be shown so far, over all connections."""
        total = _sum(self._past, self._connection.skipped)
        return replace(total, lost_s=total.lost_s + total.gap_s + self.clock.lost_s, gap_s=0.0, missing_s=0.0)

    def events(self) -> Iterator[DecodedFrame | float]:
        """Yield the pictures of one connection after the other, a gap between them."""
        while True:
            yield from self._pictures()
            self._connection.close()
            if self._stop.is_set() or self._is_over():
                return
            yield GAP
            if not self._reconnect():
                return

    def close(self) -> None:
        """Let the connection go; safe to call twice."""
        self._connection.close()

    def _pictures(self) -> Iterator[DecodedFrame | float]:
        """Yield the pictures of this connection; after each the time before which the next is not to be expected."""
        connected_s = time.monotonic()
        for picture, interval_s in self._placed():
            if self._stop.wait(self.clock.wait_s(picture.time_s, time.monotonic())):
                return
            if time.monotonic() - connected_s > self._config.retry_max_s:
                self._backoff.reset()
            yield picture
            yield picture.time_s + interval_s / 2

    def _placed(self) -> Iterator[tuple[DecodedFrame, float]]:
        """The pictures with their stream time, and how long after the one before each was captured.

        What a camera sends in one go when it is connected to, to begin with a key picture, is old already: of that
        only the newest is kept.
        """
        is_beginning = self.clock.early == "newest"
        newest, came_s, stamp_s = None, -math.inf, -math.inf
        for picture in self._new_pictures():
            now_s = time.monotonic()
            interval_s = picture.time_s - stamp_s if newest else picture.duration_s
            is_burst = newest is not None and now_s - came_s < interval_s / 2
            # The last picture before a break is held back for no longer than it took the stream to break.
            held_s = interval_s if is_beginning else min(interval_s, now_s - came_s)
            came_s, stamp_s = now_s, picture.time_s
            placed = replace(picture, time_s=self._stream_s(picture, now_s, held_s))
            if is_beginning and newest and not is_burst:
                is_beginning = False
                yield newest
            newest = placed, interval_s
            if not is_beginning:
                yield newest
        if is_beginning and newest:
            yield newest

    def _new_pictures(self) -> Iterator[DecodedFrame]:
        """The pictures but for those that were seen before the connection broke."""
        connection = self._connection
        seen_s, self._stamp_s = self._seen_stamp_s(), connection.first_stamp_s
        for picture in connection.pictures():
            self._stamp_s = max(self._stamp_s, connection.first_stamp_s + picture.time_s)
            if connection.first_stamp_s + picture.time_s > seen_s:
                yield picture

    def _seen_stamp_s(self) -> float:
        """Up to which of its own stamps this connection gives again what was there before: a recording, or HLS.

        HLS begins some seconds back. Where its stamps lie elsewhere, the server has begun anew.
        """
        overlap_s = self._stamp_s - self._connection.first_stamp_s
        is_again = self._connection.is_recording or (self._connection.is_paced and 0 <= overlap_s < MAX_OVERLAP_S)
        return self._stamp_s if is_again else -math.inf

    def _stream_s(self, picture: DecodedFrame, now_s: float, held_s: float) -> float:
        has_clock = self._connection.has_clock or self.clock.early != "newest"
        came_s = now_s - held_s if self._connection.holds_one_back else now_s
        return self.clock.tell(picture.time_s if has_clock else None, came_s)

    def _is_over(self) -> bool:
        return self._connect is None or self._connection.has_ended

    def _reconnect(self) -> bool:
        """Try until a connection stands; False where the stream has ended meanwhile, or shall not be watched any more.

        Raises VideoError once it was tried for as long as it may be.
        """
        broken = self._connection
        _LOG.warning("%s broke off (%s); connecting again", self._shown, broken.broken_by or "it ended")
        broken_s = time.monotonic()
        while not self._stop.wait(self._backoff.next_s()):
            try:
                connection = self._connect()
            except BrokenStreamError as error:
                self._check_patience(time.monotonic() - broken_s, error)
                continue
            if connection.is_recording and not broken.is_recording:
                connection.close()  # what was live is now offered as a recording: it has ended
                return False
            self._take_over(connection)
            _LOG.warning("%s is back after %.1f s", self._shown, time.monotonic() - broken_s)
            return True
        return False

    def _take_over(self, connection: "Connection") -> None:
        self._past = replace(_sum(self._past, self._connection.skipped), num_reconnects=self._past.num_reconnects + 1)
        self._connection = connection
        if connection.is_recording:
            connection.seek(self._stamp_s - connection.first_stamp_s)
        else:
            self.clock.reconnected()

    def _check_patience(self, tried_s: float, error: BrokenStreamError) -> None:
        limit_s = self._config.retry_for_s
        if limit_s is not None and tried_s > limit_s:
            raise VideoError(f"{error}; it was tried for live.retry_for_s = {limit_s:g} s") from None


class PacedFeed:
    """A recording, shown as if it were live."""

    def __init__(self, source: PictureSource, stop: threading.Event):
        self._source, self._stop = source, stop
        self.info = source.info
        self.clock = LiveClock("wait")

    @property
    def skipped(self) -> SkipCounts:
        """What could not be shown so far."""
        return self._source.skipped

    def events(self) -> Iterator[DecodedFrame | float]:
        """Yield each picture at its time."""
        for picture in self._source.pictures():
            now_s = time.monotonic()
            time_s = self.clock.tell(picture.time_s, now_s)
            if self._stop.wait(self.clock.wait_s(time_s, now_s)):
                return
            yield replace(picture, time_s=time_s)

    def close(self) -> None:
        """Let the file go; safe to call twice."""
        self._source.close()


class PushedFeed:
    """Frames that are pushed, each captured when its pusher says."""

    def __init__(self, frames: PushedFrames, stop: threading.Event):
        self._frames, self._stop = frames, stop
        self.info = VideoInfo(None, 0, 0, None, "pushed frames", 0)
        self.clock = LiveClock()

    @property
    def skipped(self) -> SkipCounts:
        """The frames that were let go before anybody looked at them."""
        return SkipCounts(num_frames=self._frames.num_dropped)

    def events(self) -> Iterator[DecodedFrame | float]:
        """Yield the frames, and meanwhile how far stream time has come; a frame that is out of order is passed over."""
        newest_s = -math.inf
        for pushed in pictures_of(self._frames, IDLE_S):
            if self._stop.is_set():
                return
            if pushed is None:
                yield self.clock.stream_s(time.monotonic() - IDLE_S)
                continue
            picture, captured_s = pushed
            if captured_s > newest_s:
                newest_s = captured_s
                yield replace(picture, time_s=self.clock.tell(picture.time_s, captured_s))

    def close(self) -> None:
        """Nothing is held."""


def _sum(first: SkipCounts, second: SkipCounts) -> SkipCounts:
    return SkipCounts(*(getattr(first, field.name) + getattr(second, field.name) for field in fields(SkipCounts)))
