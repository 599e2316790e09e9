"""What waits in front of a model: seconds of a live stream that it has not seen yet, and what is done when it is late.

One thread puts seconds in, another takes them out. How many frames and bytes wait is bounded under every policy.
"""

import threading
from collections import deque
from collections.abc import Sequence
from dataclasses import replace
from typing import Literal

import torch

from streamingvlm.errors import VideoError
from streamingvlm.video.clock import VideoTurn
from streamingvlm.video.frames import fit

Policy = Literal["wait", "drop", "coalesce", "degrade"]

DETAILS = (1.0, 0.5, 0.25, 0.125)
"""The steps of `degrade`: shares of the pixels and tokens of a turn. Below an eighth, a picture shows nothing."""

LEAST_FRAMES = 2
"""A single frame costs as many tokens as two, which make one temporal patch, and shows no motion."""

CALM_TURNS = 3
"""So many turns in time before `degrade` gives a step back: one turn in time may be luck."""

SAME_MOMENT_S = 1e-6


class Backlog:
    """The seconds that wait, and the policy by which the model gets the next one.

    wait: every second in order; who puts them in is held back. drop: the newest second, the others go by unseen.
    coalesce: one turn of all that waits, up to a gap in the stream. degrade: every second in order, with less detail
    the longer the model is late, and those beyond `max_lag_s` go by unseen.
    """

    def __init__(
        self, policy: Policy, *, num_frames: int, max_frames: int, max_bytes: int, max_lag_s: float, turn_s: float
    ):
        """`num_frames`: frames of a turn."""
        self.policy = policy
        self._num_frames, self._max_frames, self._max_bytes = num_frames, max_frames, max_bytes
        self._max_lag_s = max_lag_s
        self._chunk_s = turn_s
        self._seconds: deque[VideoTurn] = deque()
        self._changed = threading.Condition()
        self._is_ended = False
        self._error: BaseException | None = None
        self._dropped_s = 0.0
        self._step = self._calm_turns = 0

    @property
    def num_frames(self) -> int:
        """Frames that wait."""
        with self._changed:
            return sum(len(second.frames) for second in self._seconds)

    @property
    def num_bytes(self) -> int:
        """Bytes of the frames that wait."""
        with self._changed:
            return sum(second.frames.nbytes for second in self._seconds)

    def put(self, second: VideoTurn) -> None:
        """Add the newest second. Under `wait` this blocks until there is room; after `end` the second is forgotten.

        Raises VideoError for a second that is larger than all that may wait.
        """
        self._check_size(second)
        with self._changed:
            if self.policy == "wait":
                self._changed.wait_for(lambda: self._is_ended or self._fits(second))
            if self._is_ended:
                return
            self._make_room(second)
            self._seconds.append(second)
            self._changed.notify_all()

    def end(self, error: BaseException | None = None) -> None:
        """Nothing more is to come; what waits is still given out, then `error` is raised or the stream ends."""
        with self._changed:
            self._is_ended = True
            self._error = self._error or error
            self._changed.notify_all()

    def clear(self) -> None:
        """Nothing more is wanted: forget what waits, wake who waits for room or for a second."""
        with self._changed:
            self._seconds.clear()
            self._is_ended, self._error = True, None
            self._changed.notify_all()

    def take(self) -> VideoTurn | None:
        """The next turn by the policy, waiting for it; None at the end of the stream, or the error that ended it."""
        with self._changed:
            self._changed.wait_for(lambda: self._seconds or self._is_ended)
            if not self._seconds:
                if self._error is not None:
                    raise self._error
                return None
            second = replace(self._next_turn(), dropped_s=self._dropped_s)
            self._dropped_s = 0.0
            self._changed.notify_all()
        return second

    def _next_turn(self) -> VideoTurn:
        if self.policy == "coalesce":
            return coalesced(self._take_run(), self._num_frames, self._chunk_s)
        if self.policy == "degrade":
            while len(self._seconds) > 1 and self._lag_s() > self._max_lag_s:
                self._drop_oldest()
            return self._degraded(self._seconds.popleft())
        return self._seconds.popleft()

    def _take_run(self) -> list[VideoTurn]:
        """What waits up to the first gap: a turn over it would say that the stream was there all the time."""
        run = [self._seconds.popleft()]
        while self._seconds and is_next(run[-1], self._seconds[0]):
            run.append(self._seconds.popleft())
        return run

    def _degraded(self, second: VideoTurn) -> VideoTurn:
        """Step down while seconds wait behind this one, up again after some turns in time."""
        if self._seconds:
            self._calm_turns = 0
            self._step = min(self._step + 1, len(DETAILS) - 1)
        else:
            self._calm_turns += 1
            if self._calm_turns % CALM_TURNS == 0:
                self._step = max(self._step - 1, 0)
        detail = DETAILS[self._step]
        frames = thinned(second.frames, max(LEAST_FRAMES, round(len(second.frames) * detail)))
        return replace(second, detail=detail, frames=frames)

    def _lag_s(self) -> float:
        """How far the end of the oldest second lies behind the newest."""
        return self._seconds[-1].end_s - self._seconds[0].end_s

    def _make_room(self, second: VideoTurn) -> None:
        while self._seconds and (self.policy == "drop" or not self._fits(second)):
            if self.policy == "coalesce" and len(self._seconds) > 1 and is_next(*_first_two(self._seconds)):
                first, then = self._seconds.popleft(), self._seconds.popleft()
                self._seconds.appendleft(coalesced([first, then], self._num_frames, self._chunk_s))
            else:
                self._drop_oldest()

    def _drop_oldest(self) -> None:
        oldest = self._seconds.popleft()
        self._dropped_s += oldest.end_s - oldest.start_s

    def _fits(self, second: VideoTurn) -> bool:
        return (
            self.num_frames + len(second.frames) <= self._max_frames
            and self.num_bytes + second.frames.nbytes <= self._max_bytes
        )

    def _check_size(self, second: VideoTurn) -> None:
        num_frames, num_bytes = len(second.frames), second.frames.nbytes
        if num_frames > self._max_frames or num_bytes > self._max_bytes:
            raise VideoError(
                f"a turn has {num_frames} frames of {num_bytes:,} bytes in all, more than may wait "
                f"({self._max_frames} frames, {self._max_bytes:,} bytes); lower video.fps or raise live.max_frames "
                "and live.max_bytes"
            )


def is_next(first: VideoTurn, then: VideoTurn) -> bool:
    """Whether the stream goes on from one second to the other without a gap."""
    return abs(then.start_s - first.end_s) < SAME_MOMENT_S


def coalesced(seconds: Sequence[VideoTurn], num_frames: int, turn_s: float) -> VideoTurn:
    """One turn over seconds that follow each other: its time spans them all, of their frames `num_frames` are left."""
    if len(seconds) == 1:
        return seconds[0]
    first, last = seconds[0], seconds[-1]
    height, width = last.frames.shape[-2:]
    frames = torch.cat([fit(second.frames, height, width) for second in seconds])
    return replace(
        last,
        index=first.index,
        start_s=first.start_s,
        frames=thinned(frames, num_frames),
        num_repeated=0,
        coalesced_s=last.end_s - first.start_s - turn_s,
    )


def thinned(frames: torch.Tensor, num_frames: int) -> torch.Tensor:
    """The last frame of each of `num_frames` equal parts of [F, 3, H, W]: the newest is always among them."""
    if len(frames) <= num_frames:
        return frames
    return frames[[(part + 1) * len(frames) // num_frames - 1 for part in range(num_frames)]]


def _first_two(seconds: deque[VideoTurn]) -> tuple[VideoTurn, VideoTurn]:
    return seconds[0], seconds[1]
