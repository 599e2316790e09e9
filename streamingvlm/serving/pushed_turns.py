"""Group the frames that clients push into turns, by the stream time of each frame.

The frames are sampled as those of every live source: each moment shows the newest frame at or before it. Other frames
are not decoded. A turn is complete with the frame at its last moment, or the first one after it.
"""

import math
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace

import torch

from streamingvlm.errors import VideoError
from streamingvlm.video.frame_tensors import make_turn
from streamingvlm.video.live.backlog import Backlog, Policy
from streamingvlm.video.live.live_sampler import UNKNOWN_TICK_S, LiveSampler
from streamingvlm.video.sampling_grid import SamplingGrid
from streamingvlm.video.video_turn import VideoTurn

Decode = Callable[[], torch.Tensor]
"""Decodes a frame, uint8 [3, H, W]; raises VideoError if it is invalid."""


@dataclass(eq=False)
class PushedFrame:
    """A frame that is decoded only if it is sampled. arrived_s: by time.monotonic()."""

    time_s: float
    decode: Decode
    arrived_s: float
    duration_s: float = 0.0
    pixels: torch.Tensor | None = None

    def rgb(self) -> torch.Tensor:
        """Return the pixels. Raises VideoError."""
        if self.pixels is None:
            self.pixels = self.decode()
        return self.pixels


class PushedTurns:
    """The turns of a stream whose frames are pushed by one thread and iterated by another.

    policy: handling of turns that wait for the model, as for any live stream.
    max_waiting_s, max_waiting_bytes: limits of what may wait.
    max_frame_bytes: size of the largest decoded frame that may be pushed.
    start_s: stream time of the first turn, if the stream is resumed; frames before it are late.
    """

    def __init__(
        self,
        *,
        fps: float,
        turn_s: float,
        policy: Policy,
        max_lag_s: float,
        max_waiting_s: float,
        max_waiting_bytes: int,
        max_frame_bytes: int,
        start_s: float = 0.0,
    ):
        self.policy = policy
        self._num_frames = round(fps * turn_s)
        self._max_turn_bytes = self._num_frames * max_frame_bytes
        self._max_frames = max(self._num_frames, round(max_waiting_s * fps))
        self._max_bytes = max(2 * self._max_turn_bytes, max_waiting_bytes)
        self._backlog = Backlog(
            policy,
            num_frames=self._num_frames,
            max_frames=self._max_frames,
            max_bytes=self._max_bytes,
            max_lag_s=max_lag_s,
            turn_s=turn_s,
        )
        self._lock = threading.RLock()  # of all below: the thread that iterates closes while another may push
        self._grid = SamplingGrid(fps, turn_s)
        self._sampler = LiveSampler(self._grid, start_s)
        self._before: PushedFrame | None = None  # the last one of the turn before
        self._valid: torch.Tensor | None = None  # the newest frame that could be decoded
        self._failure: VideoError | None = None
        self._newest_s = -math.inf
        self._has_ended = False
        self.pushed_s = start_s  # stream time of the newest frame

    @property
    def has_room(self) -> bool:
        """Return True if a turn of the largest frames fits without dropping or waiting."""
        return (
            self._backlog.num_frames + self._num_frames <= self._max_frames
            and self._backlog.num_bytes + self._max_turn_bytes <= self._max_bytes
        )

    def wants(self, time_s: float) -> bool:
        """Return True if a frame of this time may be used."""
        with self._lock:
            return not self._has_ended and time_s > self._newest_s

    def push(self, decode: Decode, time_s: float) -> bool:
        """Add the frame of stream time ``time_s``; return False if it is late and not used.

        Under the policy ``wait`` this blocks until there is room; check ``has_room`` first. Raises VideoError if a
        frame is invalid: this one, which is then not used, or the one before it, in whose place an older one is shown.
        """
        with self._lock:
            if not self.wants(time_s):
                return False
            frame = PushedFrame(time_s, decode, time.monotonic())
            if self._valid is None or self._is_at_moment(time_s):
                self._valid = frame.rgb()
            self._newest_s = self.pushed_s = time_s
            self._queue(self._sampler.add(frame))
            self._queue(self._sampler.complete())
            failure, self._failure = self._failure, None
            if failure is not None:
                raise failure
            return True

    def finish(self):
        """Accept no more frames; the turns that wait are still iterated."""
        with self._lock:
            if not self._has_ended:
                self._queue(self._sampler.flush())
            self._has_ended = True
            self._backlog.end()

    def close(self):
        """Accept no more frames, and drop the turns that wait."""
        self._backlog.clear()  # first, without the lock: a push that waits for room holds the lock
        with self._lock:
            self._has_ended = True
            self._sampler, self._valid, self._before = LiveSampler(self._grid), None, None

    def __iter__(self) -> Iterator[VideoTurn]:
        return self

    def __next__(self) -> VideoTurn:
        if (turn := self._backlog.take()) is None:
            raise StopIteration
        return turn

    def _is_at_moment(self, time_s: float) -> bool:
        moment_s = round(time_s * self._grid.fps) / self._grid.fps
        return abs(time_s - moment_s) <= UNKNOWN_TICK_S / 2

    def _queue(self, turns: Iterable[tuple[int, list[PushedFrame]]]):
        for index, sampled in turns:
            for frame in sampled:
                self._decode(frame)
            turn = make_turn(index, sampled, self._before, self._grid)
            self._before = sampled[-1]
            self._backlog.put(replace(turn, captured_s=self._before.arrived_s))

    def _decode(self, frame: PushedFrame):
        """Decode a frame that is shown; an invalid one gets the pixels of the valid frame before it."""
        try:
            self._valid = frame.rgb()
        except VideoError as error:
            frame.pixels, self._failure = self._valid, error
