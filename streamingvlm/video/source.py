"""What every decoder offers: pictures with their times, facts about the file, and a count of what was lost."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Protocol

import torch

from streamingvlm.errors import VideoError


class BrokenStreamError(VideoError):
    """A live source does not answer, or no longer: it may be tried again."""


@dataclass(frozen=True)
class VideoInfo:
    """What is known of a video once it is open."""

    duration_s: float | None  # as the file announces it; None where it does not
    width: int  # as shown, after rotation
    height: int
    average_fps: float | None
    codec: str
    rotation: int  # degrees clockwise that turn the stored picture into the shown one: 0, 90, 180 or 270


@dataclass
class SkipCounts:
    """What of a video could not be shown; it grows while the video is read."""

    num_packets: int = 0  # pieces of the file that could not be read or decoded
    num_frames: int = 0  # decoded pictures that were damaged or came too late, and are not shown
    num_resolution_changes: int = 0
    num_clock_jumps: int = 0  # breaks of the file's clock, closed so that stream time goes on
    gap_s: float = 0.0  # time for which the file has no picture and the newest one is shown again
    missing_s: float = 0.0  # time between the last picture and the end that the file announces
    num_reconnects: int = 0  # times a live source broke off and came back
    lost_s: float = 0.0  # time for which a live source had no picture; stream time went on without them

    def describe(self) -> str | None:
        """One line to show the user, or None where nothing was lost."""
        facts = [
            (self.num_packets, f"skipped {_count(self.num_packets, 'unreadable packet')}"),
            (self.num_frames, f"skipped {_count(self.num_frames, 'damaged or late frame')}"),
            (self.gap_s, f"repeated the newest picture over gaps of {self.gap_s:.1f} s"),
            (self.num_clock_jumps, f"closed {_count(self.num_clock_jumps, 'jump')} of the clock"),
            (self.num_resolution_changes, f"picture size changed {_count(self.num_resolution_changes, 'time')}"),
            (self.num_reconnects, f"connected again {_count(self.num_reconnects, 'time')}"),
            (self.lost_s, f"no picture for {self.lost_s:.1f} s"),
            (self.missing_s, f"file ends {self.missing_s:.1f} s before its announced end"),
        ]
        return "; ".join(text for value, text in facts if value) or None


def _count(number: int, noun: str) -> str:
    return f"{number} {noun}" if number == 1 else f"{number} {noun}s"


@dataclass(frozen=True, eq=False)
class DecodedFrame:
    """One decoded picture, compared by identity; its pixels are converted only when they are asked for."""

    time_s: float  # stream time at which it appears
    duration_s: float  # how long it stays, as the file says or the frame rate implies
    rgb: Callable[[], torch.Tensor]  # -> uint8 [3, H, W], rotation applied


class PictureSource(Protocol):
    """An open file, read once from front to back, from one thread at a time."""

    info: VideoInfo
    skipped: SkipCounts
    tick_s: float  # the unit in which the file counts its time

    def pictures(self) -> Iterator[DecodedFrame]:
        """Yield the pictures in the order in which they are shown."""

    def close(self) -> None:
        """Let the file go; safe to call twice."""
