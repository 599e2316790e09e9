"""Chosen pictures become the frames of a second."""

from collections.abc import Sequence
from itertools import pairwise

import numpy as np
import torch
from torch.nn.functional import interpolate

from streamingvlm.video.clock import SamplingGrid, VideoTurn
from streamingvlm.video.source import DecodedFrame


def make_second(
    index: int, shown: Sequence[DecodedFrame], before: DecodedFrame | None, grid: SamplingGrid
) -> VideoTurn:
    """Convert the pictures of one chunk; `before` is the last picture of the chunk before."""
    pixels = {picture: picture.rgb() for picture in shown}
    height, width = pixels[shown[-1]].shape[1:]
    # Stacked with the channels last, as the pictures are: torch.cat of single ones would put each channel by itself.
    frames = [fit(pixels[picture][None], height, width)[0].permute(1, 2, 0) for picture in shown]
    num_repeated = sum(picture is earlier for earlier, picture in pairwise([before, *shown]))
    start_s, end_s = grid.turn_start_s(index), grid.turn_start_s(index + 1)
    return VideoTurn(index, start_s, end_s, torch.stack(frames).permute(0, 3, 1, 2), num_repeated)


def channels_first(image: np.ndarray) -> torch.Tensor:
    """Return a picture [H, W, 3] as [3, H, W], its channels side by side in memory: so it is resized twice as fast."""
    return torch.from_numpy(np.ascontiguousarray(image)).permute(2, 0, 1)


def fit(frames: torch.Tensor, height: int, width: int) -> torch.Tensor:
    """Resize frames, uint8 [F, 3, H, W], from before a change of resolution to the size after it."""
    if frames.shape[2:] == (height, width):
        return frames
    return interpolate(frames, size=(height, width), mode="bilinear", antialias=True)
