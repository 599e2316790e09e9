"""Convert sampled frames to the tensor of a turn."""

from collections.abc import Sequence
from itertools import pairwise

import numpy as np
import torch
from torch.nn.functional import interpolate

from streamingvlm.video.sampling_grid import SamplingGrid
from streamingvlm.video.source import DecodedFrame
from streamingvlm.video.video_turn import VideoTurn


def make_turn(
    index: int, sampled: Sequence[DecodedFrame], before: DecodedFrame | None, grid: SamplingGrid
) -> VideoTurn:
    """Convert the frames of one turn; `before` is the last frame of the turn before."""
    rgb = {frame: frame.rgb() for frame in sampled}
    height, width = rgb[sampled[-1]].shape[1:]
    # Stacked channels-last, as each frame is in memory; torch.cat would make the result channels-first.
    frames = [fit(rgb[frame][None], height, width)[0].permute(1, 2, 0) for frame in sampled]
    num_repeated = sum(frame is earlier for earlier, frame in pairwise([before, *sampled]))
    start_s, end_s = grid.turn_start_s(index), grid.turn_start_s(index + 1)
    return VideoTurn(index, start_s, end_s, torch.stack(frames).permute(0, 3, 1, 2), num_repeated)


def channels_first(image: np.ndarray) -> torch.Tensor:
    """View an image [H, W, 3] as [3, H, W]; its memory stays channels-last, which resizes twice as fast."""
    return torch.from_numpy(np.ascontiguousarray(image)).permute(2, 0, 1)


def fit(frames: torch.Tensor, height: int, width: int) -> torch.Tensor:
    """Resize frames, uint8 [F, 3, H, W], to the resolution of newer frames."""
    if frames.shape[2:] == (height, width):
        return frames
    return interpolate(frames, size=(height, width), mode="bilinear", antialias=True)
