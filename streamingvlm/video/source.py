"""The interface of every video decoder: decoded frames with times, metadata, and counts of what was skipped."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Protocol

import torch

from streamingvlm.errors import VideoError


class BrokenStreamError(VideoError):
    """A live source does not answer or has stopped. The connection may be retried."""


class EarlyEndError(VideoError):
    """A file ends before the time from which it is to be read."""


@dataclass(frozen=True)
class VideoInfo:
    """Metadata of an open video."""

    duration_s: float | None  # as announced by the file; None if it announces none
    width: int  # as displayed: after rotation, with square pixels
    height: int
    average_fps: float | None
    codec: str
    rotation: int  # degrees clockwise from the stored to the displayed frame: 0, 90, 180 or 270


@dataclass
class SkipCounts:
    """Counts of the parts of a video that could not be shown.

    One thread writes them. Once the source is open, each count only grows and none depends on another, so other threads
    may read them without a lock. They are a little ahead of the turns that were taken.
    """

    num_packets: int = 0  # packets that could not be read or decoded
    num_frames: int = 0  # decoded frames that were damaged or late
    num_resolution_changes: int = 0
    num_clock_jumps: int = 0  # breaks of the file's clock, closed so that stream time is continuous
    gap_s: float = 0.0  # time without a new frame, during which the newest one is repeated
    missing_s: float = 0.0  # time between the last frame and the announced end of the file
    num_reconnects: int = 0  # times a live source disconnected and was reconnected
    lost_s: float = 0.0  # time for which a live source had no frame; stream time continued

    def describe(self) -> str | None:
        """Return one line to show the user, or None if nothing was skipped."""
        counts = [
            (self.num_packets, f"skipped {_count(self.num_packets, 'unreadable packet')}"),
            (self.num_frames, f"skipped {_count(self.num_frames, 'damaged or late frame')}"),
            (self.gap_s, f"repeated the newest frame over gaps of {self.gap_s:.1f} s"),
            (self.num_clock_jumps, f"closed {_count(self.num_clock_jumps, 'jump')} of the clock"),
            (self.num_resolution_changes, f"frame size changed {_count(self.num_resolution_changes, 'time')}"),
            (self.num_reconnects, f"reconnected {_count(self.num_reconnects, 'time')}"),
            (self.lost_s, f"no frame for {self.lost_s:.1f} s"),
            (self.missing_s, f"file ends {self.missing_s:.1f} s before its announced end"),
        ]
        return "; ".join(text for value, text in counts if value) or None


def _count(number: int, noun: str) -> str:
    return f"{number} {noun}" if number == 1 else f"{number} {noun}s"


@dataclass(frozen=True, eq=False)
class DecodedFrame:
    """One decoded frame, compared by identity. Its pixels are converted only when `rgb` is called."""

    time_s: float  # stream time at which it appears
    duration_s: float  # as given by the file or implied by the frame rate
    rgb: Callable[[], torch.Tensor]  # -> uint8 [3, H, W], rotation applied, square pixels


class FrameSource(Protocol):
    """An open file, read once from front to back, by one thread at a time."""

    info: VideoInfo
    skipped: SkipCounts
    tick_s: float  # the time unit of the file

    def frames(self) -> Iterator[DecodedFrame]:
        """Yield the frames in display order."""

    def close(self) -> None:
        """Close the file. Safe to call twice."""
