"""Frames that come in by themselves become seconds, and what the model has no time for is let go.

Moment k of the stream is at ``k / fps``; the picture nearest to it is shown there, so that a camera that is early or
late by a little loses nothing. A second is ready with its last picture, not with the first of the next.
"""

import threading
import time
from collections import deque
from collections.abc import Iterator
from dataclasses import replace
from typing import Literal

import torch
from torch.nn.functional import interpolate

from streamingvlm.errors import ConfigError
from streamingvlm.video.clock import Second

LagPolicy = Literal["wait", "drop", "coalesce"]
LAG_POLICIES = ("wait", "drop", "coalesce")


class PushedFrames:
    """The seconds of a stream whose frames are pushed from one thread and watched from another.

    policy: what is done with seconds that wait for the model: ``wait`` has whoever pushes wait, ``drop`` takes the
        newest and lets the others go, ``coalesce`` makes one turn of all of them.
    max_waiting_s: seconds that may wait; then the oldest is let go, but under ``wait``, where whoever pushes is to look
        at ``has_room`` first.
    """

    def __init__(self, *, fps: float, chunk_s: float, policy: LagPolicy = "drop", max_waiting_s: float = 8.0):
        if policy not in LAG_POLICIES:
            raise ConfigError(f"lag={policy} is unknown; choose one of {', '.join(LAG_POLICIES)}")
        self._fps, self._chunk_s, self._policy = fps, chunk_s, policy
        self._num_frames = round(fps * chunk_s)
        self._max_waiting = max(1, round(max_waiting_s / chunk_s))
        self._waiting: deque[Second] = deque()
        self._changed = threading.Condition()
        self._slots: dict[int, torch.Tensor] = {}  # of the second that is being filled, by their number in it
        self._chunk = 0
        self._next_moment = 0
        self._newest: torch.Tensor | None = None
        self._captured_s = 0.0
        self._has_ended = False
        self._unseen_s = 0.0
        self.dropped_s = 0.0  # seconds of video that went by unseen
        self.pushed_s = 0.0  # stream time of the newest frame

    def wants(self, time_s: float) -> bool:
        """Whether a frame of this time would be shown; one that would not need not be decoded."""
        return not self._has_ended and self._moment(time_s) >= self._next_moment

    @property
    def has_room(self) -> bool:
        """Whether another second may wait."""
        return len(self._waiting) < self._max_waiting

    def push(self, frame: torch.Tensor, time_s: float) -> bool:
        """Take a frame, uint8 [3, H, W], of stream time ``time_s``; False where nothing had use for it."""
        with self._changed:
            if not self.wants(time_s):
                return False
            moment = self._moment(time_s)
            chunk, slot = divmod(moment, self._num_frames)
            if chunk > self._chunk and self._slots:
                self._close_second()
            self._chunk = chunk
            self._slots[slot] = self._newest = frame
            self._next_moment, self.pushed_s, self._captured_s = moment + 1, time_s, time.monotonic()
            if slot == self._num_frames - 1:
                self._close_second()
            return True

    def finish(self):
        """No frame comes any more; what has come is still watched."""
        with self._changed:
            if self._slots and not self._has_ended:
                self._close_second()
            self._has_ended = True
            self._changed.notify_all()

    def close(self):
        """No frame comes any more, and what waits is let go."""
        with self._changed:
            self._slots.clear()
            self._waiting.clear()
            self._has_ended = True
            self._changed.notify_all()

    def __iter__(self) -> Iterator[Second]:
        return self

    def __next__(self) -> Second:
        with self._changed:
            while not self._waiting:
                if self._has_ended:
                    raise StopIteration
                self._changed.wait()
            second = self._take()
            self._changed.notify_all()
            return second

    def _moment(self, time_s: float) -> int:
        return int(max(time_s, 0.0) * self._fps + 0.5)

    def _close_second(self):
        """Put the second that is being filled in line; moments without a picture show the one before, or the first."""
        shown, picture = [], self._slots[min(self._slots)]
        for slot in range(self._num_frames):
            picture = self._slots.get(slot, picture)
            shown.append(picture)
        repeated = self._num_frames - len(self._slots)
        start_s = self._chunk * self._chunk_s
        frames = torch.stack([_fit(frame, shown[-1].shape[1:]) for frame in shown])
        second = Second(self._chunk, start_s, start_s + self._chunk_s, frames, repeated, captured_s=self._captured_s)
        self._slots = {}
        self._chunk += 1
        self._enqueue(second)

    def _enqueue(self, second: Second):
        if len(self._waiting) >= self._max_waiting and self._policy != "wait":
            self._let_go(self._waiting.popleft())
        self._waiting.append(second)
        self._changed.notify_all()

    def _take(self) -> Second:
        if self._policy == "drop":
            while len(self._waiting) > 1:
                self._let_go(self._waiting.popleft())
        if self._policy == "coalesce" and len(self._waiting) > 1:
            second = _coalesced(list(self._waiting))
            self._waiting.clear()
        else:
            second = self._waiting.popleft()
        unseen_s, self._unseen_s = self._unseen_s, 0.0
        return replace(second, dropped_s=unseen_s) if unseen_s else second

    def _let_go(self, second: Second):
        self._unseen_s += second.end_s - second.start_s
        self.dropped_s += second.end_s - second.start_s


def _coalesced(seconds: list[Second]) -> Second:
    """One second of all of them, its frames spread evenly over their time."""
    newest = seconds[-1]
    frames = [_fit(frame, newest.frames.shape[2:]) for second in seconds for frame in second.frames]
    num_kept = len(newest.frames)
    chosen = [frames[(i + 1) * len(frames) // num_kept - 1] for i in range(num_kept)]
    missed_s = newest.start_s - seconds[0].start_s
    return replace(newest, start_s=seconds[0].start_s, frames=torch.stack(chosen), coalesced_s=missed_s)


def _fit(frame: torch.Tensor, size: tuple[int, ...]) -> torch.Tensor:
    """Resize a frame from before a change of resolution to the size after it."""
    if frame.shape[1:] == tuple(size):
        return frame
    return interpolate(frame[None], size=tuple(size), mode="bilinear", antialias=True)[0]
