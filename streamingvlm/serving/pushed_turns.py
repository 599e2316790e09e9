"""Group the frames that clients push into turns, by the stream time of each frame.

Slot k of the stream is at ``k / fps``, and shows the nearest frame, so a small jitter of the camera drops no frame. A
turn is complete with its last frame; it does not wait for the first of the next turn.
"""

import threading
import time
from collections.abc import Iterator

import torch

from streamingvlm.video.frame_tensors import fit
from streamingvlm.video.live.backlog import Backlog, Policy
from streamingvlm.video.video_turn import VideoTurn


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
        self._fps, self._turn_s = fps, turn_s
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
        self._frames: dict[int, torch.Tensor] = {}  # of the incomplete turn, by slot
        self._turn = round(start_s / turn_s)
        self._next_slot = self._turn * self._num_frames
        self._captured_s = 0.0
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
        """Return True if a frame of this time would be used; otherwise it need not be decoded."""
        with self._lock:
            return not self._has_ended and self._slot(time_s) >= self._next_slot

    def push(self, frame: torch.Tensor, time_s: float) -> bool:
        """Add a frame, uint8 [3, H, W], of stream time ``time_s``; return False if it is late and not used.

        Under the policy ``wait`` this blocks until there is room; check ``has_room`` first.
        """
        with self._lock:
            if not self.wants(time_s):
                return False
            slot = self._slot(time_s)
            turn, slot_in_turn = divmod(slot, self._num_frames)
            if turn > self._turn and self._frames:
                self._complete_turn()
            self._turn = turn
            self._frames[slot_in_turn] = frame
            self._next_slot, self.pushed_s, self._captured_s = slot + 1, time_s, time.monotonic()
            if slot_in_turn == self._num_frames - 1:
                self._complete_turn()
            return True

    def finish(self):
        """Accept no more frames; the turns that wait are still iterated."""
        with self._lock:
            if self._frames and not self._has_ended:
                self._complete_turn()
            self._has_ended = True
            self._backlog.end()

    def close(self):
        """Accept no more frames, and drop the turns that wait."""
        self._backlog.clear()  # first, without the lock: a push that waits for room holds the lock
        with self._lock:
            self._has_ended = True
            self._frames.clear()

    def __iter__(self) -> Iterator[VideoTurn]:
        return self

    def __next__(self) -> VideoTurn:
        if (turn := self._backlog.take()) is None:
            raise StopIteration
        return turn

    def _slot(self, time_s: float) -> int:
        return int(max(time_s, 0.0) * self._fps + 0.5)

    def _complete_turn(self):
        """Queue the incomplete turn; an empty slot repeats the frame before it, or the first frame of the turn."""
        frames, frame = [], self._frames[min(self._frames)]
        for slot in range(self._num_frames):
            frame = self._frames.get(slot, frame)
            frames.append(frame)
        height, width = frame.shape[1:]
        video = torch.cat([fit(frame[None], height, width) for frame in frames])
        num_repeated = self._num_frames - len(self._frames)
        start_s = self._turn * self._turn_s
        end_s = start_s + self._turn_s
        turn = VideoTurn(self._turn, start_s, end_s, video, num_repeated, captured_s=self._captured_s)
        self._frames = {}
        self._turn += 1
        self._backlog.put(turn)
