"""Frames that clients push become seconds, at the stream time that the client gives them.

Moment k of the stream is at ``k / fps``; the picture nearest to it is shown there, so that a camera that is early or
late by a little loses nothing. A second is ready with its last picture, not with the first of the next.
"""

import time
from collections.abc import Iterator

import torch

from streamingvlm.video.frame_tensors import fit
from streamingvlm.video.live.backlog import Backlog, Policy
from streamingvlm.video.video_turn import VideoTurn


class PushedSeconds:
    """The seconds of a stream whose frames are pushed in one thread and watched in another.

    policy: what is done with seconds that wait for the model, as of any live stream.
    max_waiting_s, max_waiting_bytes: how much may wait.
    max_frame_bytes: of the largest frame, decoded, that is ever pushed.
    start_s: stream time of the first second, where a stream is taken up again; frames before it are late.
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
        self._fps, self._chunk_s = fps, turn_s
        self._num_frames = round(fps * turn_s)
        self._largest_bytes = self._num_frames * max_frame_bytes
        self._max_frames = max(self._num_frames, round(max_waiting_s * fps))
        self._max_bytes = max(2 * self._largest_bytes, max_waiting_bytes)
        self._backlog = Backlog(
            policy,
            num_frames=self._num_frames,
            max_frames=self._max_frames,
            max_bytes=self._max_bytes,
            max_lag_s=max_lag_s,
            turn_s=turn_s,
        )
        self._slots: dict[int, torch.Tensor] = {}  # of the second that is being filled, by their number in it
        self._chunk = round(start_s / turn_s)
        self._next_moment = self._chunk * self._num_frames
        self._captured_s = 0.0
        self._has_ended = False
        self.pushed_s = start_s  # stream time of the newest frame

    @property
    def has_room(self) -> bool:
        """Whether any second may be pushed now without one that waits being let go."""
        return (
            self._backlog.num_frames + self._num_frames <= self._max_frames
            and self._backlog.num_bytes + self._largest_bytes <= self._max_bytes
        )

    def wants(self, time_s: float) -> bool:
        """Whether a frame of this time would be shown; one that would not need not be decoded."""
        return not self._has_ended and self._moment(time_s) >= self._next_moment

    def push(self, frame: torch.Tensor, time_s: float) -> bool:
        """Take a frame, uint8 [3, H, W], of stream time ``time_s``; False where nothing had use for it.

        Under the policy ``wait`` whoever pushes looks at ``has_room`` first, or is held back here.
        """
        if not self.wants(time_s):
            return False
        moment = self._moment(time_s)
        chunk, slot = divmod(moment, self._num_frames)
        if chunk > self._chunk and self._slots:
            self._close_second()
        self._chunk = chunk
        self._slots[slot] = frame
        self._next_moment, self.pushed_s, self._captured_s = moment + 1, time_s, time.monotonic()
        if slot == self._num_frames - 1:
            self._close_second()
        return True

    def finish(self):
        """No frame comes any more; what has come is still watched."""
        if self._slots and not self._has_ended:
            self._close_second()
        self._has_ended = True
        self._backlog.end()

    def close(self):
        """No frame comes any more, and what waits is let go."""
        self._has_ended = True
        self._slots.clear()
        self._backlog.clear()

    def __iter__(self) -> Iterator[VideoTurn]:
        return self

    def __next__(self) -> VideoTurn:
        if (second := self._backlog.take()) is None:
            raise StopIteration
        return second

    def _moment(self, time_s: float) -> int:
        return int(max(time_s, 0.0) * self._fps + 0.5)

    def _close_second(self):
        """Put the second that is being filled in line; moments without a picture show the one before, or the first."""
        shown, picture = [], self._slots[min(self._slots)]
        for slot in range(self._num_frames):
            picture = self._slots.get(slot, picture)
            shown.append(picture)
        height, width = picture.shape[1:]
        frames = torch.cat([fit(frame[None], height, width) for frame in shown])
        num_repeated = self._num_frames - len(self._slots)
        start_s = self._chunk * self._chunk_s
        end_s = start_s + self._chunk_s
        second = VideoTurn(self._chunk, start_s, end_s, frames, num_repeated, captured_s=self._captured_s)
        self._slots = {}
        self._chunk += 1
        self._backlog.put(second)
