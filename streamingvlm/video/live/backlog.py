"""The turns of a live stream that wait for the model, and the policies for a model that is late.

One thread puts turns in and another takes them out. Frames and bytes that wait are bounded under every policy.
"""

import threading
from collections import deque
from collections.abc import Sequence
from dataclasses import replace
from typing import Literal

import torch

from streamingvlm.errors import VideoError
from streamingvlm.video.frame_tensors import fit
from streamingvlm.video.video_turn import VideoTurn

Policy = Literal["wait", "drop", "coalesce", "degrade"]

DETAIL_LEVELS = (1.0, 0.5, 0.25, 0.125)
"""The levels of `degrade`: shares of a turn's frames and of a frame's pixels. Below an eighth, nothing is visible."""

MIN_FRAMES = 2
"""A single frame costs as many tokens as two, which form one temporal patch, and shows no motion."""

RECOVERY_TURNS = 3
"""`degrade` restores one step of detail after this many turns on time. A single turn on time may be chance."""

SAME_TIME_S = 1e-6


class Backlog:
    """The turns that wait, and the policy that chooses the next one for the model.

    wait: every turn in order; `put` blocks while there is no room. drop: the newest turn; the others are dropped.
    coalesce: one turn merged from all that wait, up to a gap in the stream. degrade: every turn in order, with a
    step less detail for each turn that finds others waiting; turns beyond `max_lag_s` are dropped.

    One reentrant lock guards all state, so that locked methods may call each other.
    """

    def __init__(
        self, policy: Policy, *, num_frames: int, max_frames: int, max_bytes: int, max_lag_s: float, turn_s: float
    ):
        """`num_frames`: frames of a turn. `max_frames`, `max_bytes`: the most that may wait."""
        self.policy = policy
        self._frames_per_turn, self._max_frames, self._max_bytes = num_frames, max_frames, max_bytes
        self._max_lag_s = max_lag_s
        self._turn_s = turn_s
        self._turns: deque[VideoTurn] = deque()
        self._changed = threading.Condition(threading.RLock())
        self._has_ended = False
        self._error: BaseException | None = None
        self._dropped_s = 0.0  # since the last turn that was taken
        self._level = self._turns_on_time = 0

    @property
    def num_frames(self) -> int:
        """Frames that wait."""
        with self._changed:
            return sum(len(turn.frames) for turn in self._turns)

    @property
    def num_bytes(self) -> int:
        """Bytes of the frames that wait."""
        with self._changed:
            return sum(turn.frames.nbytes for turn in self._turns)

    def put(self, turn: VideoTurn) -> None:
        """Add the newest turn. Under `wait` this blocks until there is room; after `end` the turn is discarded.

        Raises VideoError for a turn that exceeds the limits by itself.
        """
        self._check_size(turn)
        with self._changed:
            if self.policy == "wait":
                self._changed.wait_for(lambda: self._has_ended or self._fits(turn))
            if self._has_ended:
                return
            self._make_room(turn)
            self._turns.append(turn)
            self._changed.notify_all()

    def end(self, error: BaseException | None = None) -> None:
        """Accept no more turns. `take` returns those that wait, then raises `error` or returns None.

        After an earlier `end` or `clear` this does nothing.
        """
        with self._changed:
            if not self._has_ended:
                self._has_ended, self._error = True, error
                self._changed.notify_all()

    def clear(self) -> None:
        """Discard the turns that wait, accept no more, and wake threads blocked in `put` or `take`."""
        with self._changed:
            self._turns.clear()
            self._has_ended, self._error = True, None
            self._changed.notify_all()

    def take(self) -> VideoTurn | None:
        """Wait for the next turn by the policy; None at the end of the stream. Raises the error that ended it."""
        with self._changed:
            self._changed.wait_for(lambda: self._turns or self._has_ended)
            if not self._turns:
                if self._error is not None:
                    raise self._error
                return None
            turn = self._next_turn()
            turn, self._dropped_s = replace(turn, dropped_s=self._dropped_s), 0.0
            self._changed.notify_all()
            return turn

    def _next_turn(self) -> VideoTurn:
        if self.policy == "coalesce":
            return coalesce(self._pop_contiguous(), self._frames_per_turn, self._turn_s)
        if self.policy == "degrade":
            while len(self._turns) > 1 and self._lag_s() > self._max_lag_s:
                self._drop_oldest()
            return self._degrade(self._turns.popleft())
        return self._turns.popleft()

    def _pop_contiguous(self) -> list[VideoTurn]:
        """Pop the turns up to the first gap; a turn merged across a gap would cover seconds without video."""
        turns = [self._turns.popleft()]
        while self._turns and is_contiguous(turns[-1], self._turns[0]):
            turns.append(self._turns.popleft())
        return turns

    def _degrade(self, turn: VideoTurn) -> VideoTurn:
        """Lower the detail by one step if other turns wait; raise it by one after RECOVERY_TURNS turns on time."""
        if self._turns:
            self._turns_on_time = 0
            self._level = min(self._level + 1, len(DETAIL_LEVELS) - 1)
        else:
            self._turns_on_time += 1
            if self._turns_on_time % RECOVERY_TURNS == 0:
                self._level = max(self._level - 1, 0)
        detail = DETAIL_LEVELS[self._level]
        frames = subsample(turn.frames, max(MIN_FRAMES, round(len(turn.frames) * detail)))
        return replace(turn, detail=detail, frames=frames)

    def _lag_s(self) -> float:
        """Time from the end of the oldest turn to the end of the newest."""
        return self._turns[-1].end_s - self._turns[0].end_s

    def _make_room(self, turn: VideoTurn) -> None:
        while self._turns and (self.policy == "drop" or not self._fits(turn)):
            if self.policy == "coalesce" and len(self._turns) > 1 and is_contiguous(self._turns[0], self._turns[1]):
                first, second = self._turns.popleft(), self._turns.popleft()
                self._turns.appendleft(coalesce([first, second], self._frames_per_turn, self._turn_s))
            else:
                self._drop_oldest()

    def _drop_oldest(self) -> None:
        oldest = self._turns.popleft()
        self._dropped_s += oldest.end_s - oldest.start_s

    def _fits(self, turn: VideoTurn) -> bool:
        return (
            self.num_frames + len(turn.frames) <= self._max_frames
            and self.num_bytes + turn.frames.nbytes <= self._max_bytes
        )

    def _check_size(self, turn: VideoTurn) -> None:
        num_frames, num_bytes = len(turn.frames), turn.frames.nbytes
        if num_frames > self._max_frames or num_bytes > self._max_bytes:
            raise VideoError(
                f"a turn has {num_frames} frames and {num_bytes:,} bytes, but at most {self._max_frames} frames and "
                f"{self._max_bytes:,} bytes may wait; lower video.fps or raise live.max_frames and live.max_bytes"
            )


def is_contiguous(first: VideoTurn, second: VideoTurn) -> bool:
    """Return True if there is no gap between the two turns."""
    return abs(second.start_s - first.end_s) < SAME_TIME_S


def coalesce(turns: Sequence[VideoTurn], num_frames: int, turn_s: float) -> VideoTurn:
    """Merge contiguous turns into one that spans their time and keeps `num_frames` of their frames."""
    if len(turns) == 1:
        return turns[0]
    first, last = turns[0], turns[-1]
    height, width = last.frames.shape[-2:]
    frames = torch.cat([fit(turn.frames, height, width) for turn in turns])
    return replace(
        last,
        index=first.index,
        start_s=first.start_s,
        frames=subsample(frames, num_frames),
        num_repeated=0,
        coalesced_s=last.end_s - first.start_s - turn_s,  # beyond one turn
    )


def subsample(frames: torch.Tensor, num_frames: int) -> torch.Tensor:
    """Return the last frame of each of `num_frames` equal parts of [F, 3, H, W], so the newest is always included."""
    if len(frames) <= num_frames:
        return frames
    return frames[[(part + 1) * len(frames) // num_frames - 1 for part in range(num_frames)]]
