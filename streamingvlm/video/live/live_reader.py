"""Read sources that do not wait: cameras, RTSP, RTMP, HLS, HTTP, a pipe, frames pushed from Python.

with open_source("rtsp://camera/stream") as video:
    for turn in video:
        session.step(turn)

A thread receives, decodes and samples frames. Turns that the model has not taken yet wait in a backlog of bounded size,
and the lag policy chooses which of them it gets.
"""

import threading
import time
import weakref
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Self

from streamingvlm.config import LiveConfig
from streamingvlm.video.address import Address, parse_address
from streamingvlm.video.frame_tensors import make_turn
from streamingvlm.video.live.backlog import Backlog, Policy
from streamingvlm.video.live.feed import GAP, ConnectionFeed, Feed, PacedFeed, PushedFeed
from streamingvlm.video.live.live_clock import LiveClock
from streamingvlm.video.live.live_sampler import LiveSampler
from streamingvlm.video.live.pushed_frames import PushedFrames
from streamingvlm.video.reader import VideoReader, open_frame_source, open_video
from streamingvlm.video.sampling_grid import SamplingGrid
from streamingvlm.video.source import SkipCounts, VideoInfo
from streamingvlm.video.video_turn import VideoTurn

if TYPE_CHECKING:
    from streamingvlm.video.live.connection import Connection

JOIN_TIMEOUT_S = 1.0
"""A thread that is blocked in a read is not joined for longer than this; it closes its connection by itself."""


def open_source(
    source: str | Path | int | PushedFrames,
    *,
    fps: float = 2.0,
    turn_s: float = 1.0,
    decoder: str = "pyav",
    prefetch: int = 2,
    start_s: float = 0.0,
    live: LiveConfig | None = None,
) -> "VideoReader | LiveReader":
    """Open any source that is read in turns of `turn_s` seconds with `fps` frames per second.

    source: the path of a file, an address (rtsp, rtsps, rtmp, http, https, file), "webcam", "webcam:1" or a camera's
    number, "-" for a pipe on standard input, or PushedFrames. `decoder`, `prefetch` and `start_s`, the time at which to
    begin, are for files. A file is read by `open_video`; under a policy other than "wait" it plays in real time as if
    it were live.

    Raises VideoError if the source cannot be opened, ConfigError if a setting is out of range.
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
        feed, policy = PacedFeed(open_frame_source(address.target, decoder, start_s=start_s), stop), live.policy
    return LiveReader(feed, policy, live, grid, stop, name=address.name)


class LiveReader:
    """The turns of a live source: a context manager and an iterator that is read once, like a VideoReader.

    The lag policy chooses the next turn. A reader that is garbage collected ends its thread, as `close` does.
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
        """Counts of what could not be shown so far, a little ahead of the caller."""
        return self._feed.skipped

    def __iter__(self) -> Iterator[VideoTurn]:
        return self

    def __next__(self) -> VideoTurn:
        turn = self._backlog.take()
        if turn is None:
            raise StopIteration
        return turn

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.close()

    def close(self) -> None:
        """End the thread and close the source; iteration then ends. Safe to call twice, and from any thread."""
        self._shut_down()


def _shut_down(stop: threading.Event, backlog: Backlog, thread: threading.Thread) -> None:
    stop.set()
    backlog.clear()
    if thread is not threading.current_thread():
        thread.join(JOIN_TIMEOUT_S)


def _receive(feed: Feed, grid: SamplingGrid, backlog: Backlog) -> None:
    """Put the turns of a feed into a backlog until the feed ends; an error is raised where they are taken."""
    error = None
    try:
        for turn in _turns(feed, grid):
            backlog.put(turn)
    except BaseException as raised:  # noqa: BLE001 - raised again in `Backlog.take`
        error = raised
    finally:
        feed.close()
        backlog.end(error)


def _turns(feed: Feed, grid: SamplingGrid) -> Iterator[VideoTurn]:
    sampler = LiveSampler(grid, tick_s=feed.tick_s)
    before = None
    for event in _with_final_gap(feed.events()):
        if event == GAP:
            complete = sampler.flush()
        elif isinstance(event, float):
            complete = sampler.advance(event)
        else:
            complete = sampler.add(event)
        for index, sampled in complete:
            turn = make_turn(index, sampled, before, grid)
            before = sampled[-1]
            yield replace(turn, captured_s=feed.clock.captured_s(before.time_s, time.monotonic()))


def _with_final_gap(events: Iterator) -> Iterator:
    yield from events
    yield GAP


def _connect(address: Address, config: LiveConfig, stop: threading.Event) -> tuple[ConnectionFeed, Policy]:
    from streamingvlm.video.live.connection import connect  # imports a decoder

    connect_again = partial(connect, address, config, stop.is_set)
    connection = _interruptible(connect_again, stop)
    is_pipe = address.kind == "pipe"
    policy = config.policy or ("wait" if is_pipe or connection.is_recording else "drop")
    if policy == "wait":
        clock = LiveClock("keep")
    else:
        clock = LiveClock("wait" if connection.is_paced or connection.is_recording else "newest")
    feed = ConnectionFeed(connection, None if is_pipe else connect_again, clock, config, shown=address.shown, stop=stop)
    return feed, policy


def _interruptible(connect: "Callable[[], Connection]", stop: threading.Event) -> "Connection":
    """Connect in a thread, as FFmpeg holds up the signals of the thread that it runs in until it has an answer."""
    future: Future = Future()
    threading.Thread(target=_resolve, args=(future, connect), name="connect", daemon=True).start()
    try:
        return future.result()
    except KeyboardInterrupt:
        stop.set()
        future.add_done_callback(_close_connection)
        raise


def _resolve(future: Future, connect: "Callable[[], Connection]") -> None:
    try:
        future.set_result(connect())
    except BaseException as error:  # noqa: BLE001 - raised again in the caller
        future.set_exception(error)


def _close_connection(future: Future) -> None:
    if future.exception() is None:
        future.result().close()
