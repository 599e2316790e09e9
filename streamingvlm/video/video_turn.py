"""The frames of one turn, the unit in which video reaches the model."""

from dataclasses import dataclass

import torch


@dataclass(frozen=True, eq=False)
class VideoTurn:
    """The frames that the model sees before one reply."""

    index: int  # 0-based number of the turn
    start_s: float  # stream time; 0 is the first frame, whatever timestamp the file gives it
    end_s: float
    frames: torch.Tensor  # uint8 [F, 3, H, W], RGB, F = round(fps * turn_s)
    num_repeated: int = 0  # frames equal to the frame before, because of a gap, a low frame rate or the end of the file
    captured_s: float | None = None  # capture time of the newest frame, by time.monotonic(); None if unknown
    dropped_s: float = 0.0  # seconds of a live stream dropped before this turn because the model was late
    coalesced_s: float = 0.0  # seconds beyond turn_s that were merged into this turn because the model was late
    detail: float = 1.0  # share of the usual frames and of a frame's pixels; below 1 while the model is late
