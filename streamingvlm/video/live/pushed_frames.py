"""Frames pushed from Python, as a source like a camera."""

import threading
import time
from collections import deque
from collections.abc import Iterator
from functools import partial

import torch

from streamingvlm.errors import ConfigError, VideoError
from streamingvlm.video.frame_tensors import Frame, to_frame
from streamingvlm.video.source import DecodedFrame


class PushedFrames:
    """A source whose frames are pushed from any thread, and watched by `session.stream(frames)`.

        camera = PushedFrames()
        camera.push(frame)  # in one thread, for each frame
        for line in session.stream(camera): ...  # in another

    At most `max_frames` frames and `max_bytes` bytes wait. Beyond that the oldest frame is dropped and counted in
    `num_dropped`, or `push(..., wait=True)` blocks.
    """

    def __init__(self, *, max_frames: int = 64, max_bytes: int = 256 * 2**20):
        for name, value in (("max_frames", max_frames), ("max_bytes", max_bytes)):
            if value < 1:
                raise ConfigError(f"{name} is {value}, but must be at least 1; leave it out for the default")
        self.max_frames, self.max_bytes = max_frames, max_bytes
        self._num_dropped = 0
        self._frames: deque[tuple[torch.Tensor, float]] = deque()
        self._num_bytes = 0
        self._changed = threading.Condition()
        self._is_closed = False

    @property
    def num_dropped(self) -> int:
        """Frames dropped so far because there was no room."""
        with self._changed:
            return self._num_dropped

    def push(self, frame: Frame, *, captured_s: float | None = None, wait: bool = False) -> None:
        """Push one RGB frame: a uint8 tensor or array [3, H, W] or [H, W, 3], or a PIL image. It is copied.

        captured_s: its capture time by `time.monotonic()`; now by default. wait: block until there is room.
        Raises VideoError for another shape or dtype, for a frame larger than `max_bytes`, and after `close`.
        """
        pushed = to_frame(frame).clone()
        if pushed.nbytes > self.max_bytes:
            raise VideoError(
                f"a frame has {pushed.nbytes:,} bytes, more than max_bytes = {self.max_bytes:,}; raise max_bytes"
            )
        captured_s = time.monotonic() if captured_s is None else captured_s
        with self._changed:
            if wait:
                self._changed.wait_for(lambda: self._is_closed or self._fits(pushed))
            if self._is_closed:
                raise VideoError("a frame was pushed after close(); open another PushedFrames")
            while not self._fits(pushed):
                self._pop()
                self._num_dropped += 1
            self._frames.append((pushed, captured_s))
            self._num_bytes += pushed.nbytes
            self._changed.notify_all()

    def close(self) -> None:
        """End the source after the frames that wait. Safe to call twice, and from any thread."""
        with self._changed:
            self._is_closed = True
            self._changed.notify_all()

    def take(self, timeout_s: float) -> tuple[torch.Tensor, float] | None:
        """Return the oldest frame and its capture time; None if no frame came within `timeout_s`.

        Raises EOFError once the source is closed and empty.
        """
        with self._changed:
            self._changed.wait_for(lambda: self._frames or self._is_closed, timeout_s)
            if self._frames:
                taken = self._pop()
                self._changed.notify_all()
                return taken
            if self._is_closed:
                raise EOFError
            return None

    def _fits(self, frame: torch.Tensor) -> bool:
        return len(self._frames) < self.max_frames and self._num_bytes + frame.nbytes <= self.max_bytes

    def _pop(self) -> tuple[torch.Tensor, float]:
        frame, captured_s = self._frames.popleft()
        self._num_bytes -= frame.nbytes
        return frame, captured_s


def decoded_frames(frames: PushedFrames, idle_s: float) -> Iterator[tuple[DecodedFrame, float] | None]:
    """Yield each pushed frame with its capture time, and None whenever no frame came for `idle_s`."""
    first_s = None
    while True:
        try:
            taken = frames.take(idle_s)
        except EOFError:
            return
        if taken is None:
            yield None
            continue
        frame, captured_s = taken
        first_s = captured_s if first_s is None else first_s
        yield DecodedFrame(captured_s - first_s, 0.0, partial(_identity, frame)), captured_s


def _identity(frame: torch.Tensor) -> torch.Tensor:
    return frame
