"""What is watched in an evaluation: a part of a file, second by second, and never a frame that comes after its end."""

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

Item = TypeVar("Item")


@dataclass(frozen=True)
class Clip:
    """What a candidate watches: the part of a file from ``start_s`` to ``end_s``, infinite for the rest of it.

    query: an instruction that stands while it watches; previous_text: what was said before the clip.
    """

    video: Path
    start_s: float = 0.0
    end_s: float = math.inf
    query: str = ""
    previous_text: str = ""

    def seconds(self, config: VideoConfig) -> Iterator[VideoTurn]:
        """Read the clip's turns in the file's own times; a turn that ends after the clip is not shown.

        Raises VideoError where the file cannot be watched.
        """
        with open_video(
            self.video,
            fps=config.fps,
            turn_s=config.turn_s,
            decoder=config.decoder,
            prefetch=config.prefetch,
            start_s=self.start_s,
        ) as reader:
            for second in reader:
                if second.end_s > self.end_s + TIME_SLACK_S:
                    return
                yield second

    def seconds_to_the_end(self, config: VideoConfig) -> Iterator[VideoTurn]:
        """Read all turns that begin in the clip; the last one is held at the newest frame before the clip's end.

        Raises VideoError where the file cannot be watched or the clip holds no frame.
        """
        num_turns = (self.end_s - self.start_s) / config.turn_s
        whole_s = math.ceil(num_turns - TIME_SLACK_S) * config.turn_s if self.is_finite else math.inf
        second = None
        for second in replace(self, end_s=self.start_s + whole_s).seconds(config):
            yield _held_at(second, self.end_s, config.fps)
        if second is None:
            raise VideoError(f"{str(self.video)!r} shows nothing from {self.start_s:g} to {self.end_s:g} s")

    @property
    def is_finite(self) -> bool:
        """Whether it ends before its file may."""
        return math.isfinite(self.end_s)


def num_frames_before(time_s: float, fps: float) -> int:
    """Frames of a clip that lie before a time in it; the first one is at 0."""
    return math.ceil(time_s * fps - TIME_SLACK_S)


def _held_at(second: VideoTurn, end_s: float, fps: float) -> VideoTurn:
    """The second as it is known at ``end_s``: where frames are still to come, the newest one is shown again."""
    if end_s >= second.end_s:
        return second
    num_seen = num_frames_before(end_s - second.start_s, fps)
    newest = torch.arange(len(second.frames)).clamp(max=num_seen - 1)
    return replace(second, frames=second.frames[newest])


def spread(items: Sequence[Item], max_items: int) -> list[Item]:
    """At most ``max_items`` of the items, evenly spread, the newest always among them."""
    if len(items) <= max_items:
        return list(items)
    return [items[math.ceil((k + 1) * len(items) / max_items) - 1] for k in range(max_items)]


def evenly(
    frames: Iterator[torch.Tensor], max_frames: int, show: Callable[[torch.Tensor], Item], *, num_kept_for_one: int = 8
) -> list[Item]:
    """What ``show`` makes of at most ``max_frames`` of any number of frames, evenly spread, the newest among them.

    A clip may last for hours and its end be unknown: every n-th frame is kept, and n doubles whenever there are many,
    more than ``num_kept_for_one`` for each of ``max_frames``.
    """
    kept: list[Item] = []
    num_frames, newest, stride = 0, None, 1
    for newest in frames:
        if num_frames % stride == 0:
            kept.append(show(newest))
        num_frames += 1
        if len(kept) > num_kept_for_one * max_frames:
            kept, stride = kept[::2], 2 * stride
    if newest is not None and (num_frames - 1) % stride:
        kept.append(show(newest))
    return spread(kept, max_frames)
