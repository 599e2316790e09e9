"""A part of a video file, read turn by turn and never past its end."""

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TypeVar

import torch

from streamingvlm.config import TIME_SLACK_S, VideoConfig
from streamingvlm.errors import VideoError
from streamingvlm.video.reader import open_video
from streamingvlm.video.video_turn import VideoTurn

T = TypeVar("T")


@dataclass(frozen=True)
class Clip:
    """The part of a file from ``start_s`` to ``end_s``; an infinite end is the end of the file.

    query: the standing instruction of the stream; previous_text: the commentary before the clip.
    """

    video: Path
    start_s: float = 0.0
    end_s: float = math.inf
    query: str = ""
    previous_text: str = ""

    def turns(self, config: VideoConfig) -> Iterator[VideoTurn]:
        """Yield the clip's turns in the file's own times, without a turn that ends after the clip.

        Raises VideoError where the file cannot be read.
        """
        with open_video(
            self.video,
            fps=config.fps,
            turn_s=config.turn_s,
            decoder=config.decoder,
            prefetch=config.prefetch,
            start_s=self.start_s,
        ) as reader:
            for turn in reader:
                if turn.end_s > self.end_s + TIME_SLACK_S:
                    return
                yield turn

    def turns_to_end(self, config: VideoConfig) -> Iterator[VideoTurn]:
        """Yield all turns that begin in the clip; in the last one, the newest frame before the clip's end is repeated.

        Raises VideoError where the file cannot be read or the clip has no frame.
        """
        num_turns = (self.end_s - self.start_s) / config.turn_s
        whole_s = math.ceil(num_turns - TIME_SLACK_S) * config.turn_s if self.is_finite else math.inf
        turn = None
        for turn in replace(self, end_s=self.start_s + whole_s).turns(config):
            yield _without_frames_after(turn, self.end_s, config.fps)
        if turn is None:
            raise VideoError(
                f"{str(self.video)!r} has no frame from {self.start_s:g} to {self.end_s:g} s; check the clip's times"
            )

    @property
    def is_finite(self) -> bool:
        """Return True if the clip has an end of its own."""
        return math.isfinite(self.end_s)


def num_frames_before(time_s: float, fps: float) -> int:
    """Count the frames of a clip before a time in it; the first frame is at 0."""
    return math.ceil(time_s * fps - TIME_SLACK_S)


def _without_frames_after(turn: VideoTurn, end_s: float, fps: float) -> VideoTurn:
    """Replace the frames at or after ``end_s`` by the newest one before it."""
    if end_s >= turn.end_s:
        return turn
    num_shown = num_frames_before(end_s - turn.start_s, fps)
    newest = torch.arange(len(turn.frames)).clamp(max=num_shown - 1)
    return replace(turn, frames=turn.frames[newest])


def evenly_spaced(items: Sequence[T], max_items: int) -> list[T]:
    """Return at most ``max_items`` of the items, evenly spaced, the last one always among them."""
    if len(items) <= max_items:
        return list(items)
    return [items[math.ceil((k + 1) * len(items) / max_items) - 1] for k in range(max_items)]


def sample_evenly(
    frames: Iterator[torch.Tensor], max_frames: int, convert: Callable[[torch.Tensor], T], *, oversampling: int = 8
) -> list[T]:
    """Convert at most ``max_frames`` of a stream of frames of unknown length, evenly spaced, the newest among them.

    Every n-th frame is converted and held. Whenever more than ``oversampling * max_frames`` are held, every second one
    is dropped and n doubles, so memory is bounded for clips of hours.
    """
    held: list[T] = []
    num_frames, newest, stride = 0, None, 1
    for newest in frames:
        if num_frames % stride == 0:
            held.append(convert(newest))
        num_frames += 1
        if len(held) > oversampling * max_frames:
            held, stride = held[::2], 2 * stride
    if newest is not None and (num_frames - 1) % stride:
        held.append(convert(newest))
    return evenly_spaced(held, max_frames)
