"""Watch what does not wait: cameras, RTSP, RTMP, HLS, HTTP, a pipe, frames pushed from Python.

with open_source("rtsp://camera/stream") as video:
    for second in video:
        session.step(second)

A thread of its own receives, decodes and chooses frames; the seconds that the model has not seen yet wait in a backlog
of bounded size, and the lag policy decides which of them it gets.
"""

import threading
import time
import weakref
from collections.abc import Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Self

from streamingvlm.config import LiveConfig
from streamingvlm.video.address import Address, parse_address
from streamingvlm.video.clock import SamplingGrid, VideoTurn
from streamingvlm.video.frames import make_second
from streamingvlm.video.live.backlog import Backlog, Policy
from streamingvlm.video.live.clock import LiveClock, LiveSampler
from streamingvlm.video.live.feed import GAP, ConnectionFeed, Feed, PacedFeed, PushedFeed
from streamingvlm.video.live.pushed import PushedFrames
from streamingvlm.video.reader import VideoReader, open_pictures, open_video
from streamingvlm.video.source import SkipCounts, VideoInfo

CLOSE_PATIENCE_S = 1.0
"""A thread that is in the middle of a read is left behind after this; it lets its connection go by itself."""


def open_source(
    source: str | Path | PushedFrames,
    *,
    fps: float = 2.0,
    turn_s: float = 1.0,
    decoder: str = "pyav",
    prefetch: int = 2,
    start_s: float = 0.0,
    live: LiveConfig | None = None,
) -> "VideoReader | LiveReader":
    """Open anything that can be watched, to be read in chunks of `turn_s` seconds with `fps` frames a second.

    source: the path of a file, an address (rtsp, rtsps, rtmp, http, https, file), "webcam" or "webcam:1", "-" for a
    pipe on standard input, or PushedFrames. A file is read as by `open_video`, `decoder` and `prefetch` are for it;
    under a policy other than "wait" it is shown as if it were live. `start_s`: where in a file to begin.

    Raises VideoError where the source cannot be opened, ConfigError where a setting is out of range.
    """
    live = live or LiveConfig()
    grid = SamplingGrid(fps=fps, turn_s=turn_s)
    stop = threading.Event()
    if isinstance(source, PushedFrames):
        return LiveReader(PushedFeed(source, stop), live.policy or "drop", live, grid, stop, name="pushed frames")
    address = parse_address(source)
    if address.kind != "file":
        feed, policy = _connect(address, live, stop)
    elif live.policy in (None, "wait"):
        return open_video(address.target, fps=fps, turn_s=turn_s, decoder=decoder, prefetch=prefetch, start_s=start_s)
    else:
        feed, policy = PacedFeed(open_pictures(address.target, decoder, start_s=start_s), stop), live.policy
    return LiveReader(feed, policy, live, grid, stop, name=address.name)


class LiveReader:
    """The seconds of a live source: an iterator, read once, and a context manager, as a VideoReader is.

    Which second comes next is the lag policy's matter. A reader that is dropped ends its thread, as `close` does.
    """

    def __init__(
        self, feed: Feed, policy: Policy, config: LiveConfig, grid: SamplingGrid, stop: threading.Event, *, name: str
    ):
        self.name = name
        self.policy = policy
        self.info: VideoInfo = feed.info
        self.fps, self.turn_s = grid.fps, grid.turn_s
        self._feed = feed
        self._backlog = Backlog(
            policy,
            num_frames=grid.num_frames,
            turn_s=grid.turn_s,
            max_frames=config.max_frames,
            max_bytes=config.max_bytes,
            max_lag_s=config.max_lag_s,
        )
        thread = threading.Thread(target=_receive, args=(feed, grid, self._backlog), name=f"watch {name}", daemon=True)
        self._shut_down = weakref.finalize(self, _shut_down, stop, self._backlog, thread)
        thread.start()

    @property
    def skipped(self) -> SkipCounts:
        """What of the stream could not be shown so far; it runs a little ahead of the caller."""
        return self._feed.skipped

    def __iter__(self) -> Iterator[VideoTurn]:
        return self

    def __next__(self) -> VideoTurn:
        second = self._backlog.take()
        if second is None:
            raise StopIteration
        return second

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.close()

    def close(self) -> None:
        """End the thread and let the source go; safe to call twice, and from any thread. Iteration then ends."""
        self._shut_down()


def _shut_down(stop: threading.Event, backlog: Backlog, thread: threading.Thread) -> None:
    stop.set()
    backlog.clear()
    if thread is not threading.current_thread():
        thread.join(CLOSE_PATIENCE_S)


def _receive(feed: Feed, grid: SamplingGrid, backlog: Backlog) -> None:
    """Move what a feed gives into a backlog, until it ends; an error belongs to who takes from there."""
    error = None
    try:
        for second in _seconds(feed, grid):
            backlog.put(second)
    except BaseException as raised:  # noqa: BLE001 - raised again where the seconds are taken
        error = raised
    finally:
        feed.close()
        backlog.end(error)


def _seconds(feed: Feed, grid: SamplingGrid) -> Iterator[VideoTurn]:
    sampler = LiveSampler(grid)
    before = None
    for event in _and_gap(feed.events()):
        if event == GAP:
            chosen = sampler.flush()
        elif isinstance(event, float):
            chosen = sampler.advance(event)
        else:
            chosen = sampler.add(event)
        for index, shown in chosen:
            second = make_second(index, shown, before, grid)
            before = shown[-1]
            yield replace(second, captured_s=feed.clock.captured_s(before.time_s, time.monotonic()))


def _and_gap(events: Iterator) -> Iterator:
    yield from events
    yield GAP


def _connect(address: Address, config: LiveConfig, stop: threading.Event) -> tuple[ConnectionFeed, Policy]:
    from streamingvlm.video.live.connection import connect  # no decoder is imported before it is needed

    reconnect = partial(connect, address, config, stop.is_set)
    connection = reconnect()
    is_pipe = address.kind == "pipe"
    policy = config.policy or ("wait" if is_pipe or connection.is_recording else "drop")
    if policy == "wait":
        clock = LiveClock("keep")
    else:
        clock = LiveClock("wait" if connection.is_paced or connection.is_recording else "newest")
    feed = ConnectionFeed(connection, None if is_pipe else reconnect, clock, config, shown=address.shown, stop=stop)
    return feed, policy
