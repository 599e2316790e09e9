"""Rotary positions (t, h, w) as a pure function of the layout.

Sec. 3.1 of the paper and Sec. 2.1 of Qwen2.5-VL (arXiv 2502.13923). A text token has the same position on all three
axes: the largest position before it, plus one. The tokens of a vision grid that starts at s have positions
(s + t * temporal_step, s + row, s + column), where temporal_step is the number of seconds of a temporal patch times the
checkpoint's positions per second.
"""

from collections.abc import Iterable, Iterator
from functools import lru_cache
from itertools import groupby
from operator import attrgetter

import numpy as np
import torch

from streamingvlm.cache.layout import Segment


def contiguous_positions(segments: Iterable[Segment], first: float = 0.0) -> torch.Tensor:
    """Number the tokens of ``segments`` from ``first`` without gaps.

    Returns float32 [3, T]. Times are not rounded, so that positions may be fractional at odd frame rates.
    """
    # numpy, because torch is slow at many small pieces.
    pieces, starts = [_line(0)], [first]
    for piece, num_positions in _pieces(segments):
        pieces.append(piece)
        starts.append(first)
        first += num_positions
    lengths = [piece.shape[1] for piece in pieces]
    return torch.from_numpy(np.concatenate(pieces, axis=1) + np.repeat(np.float32(starts), lengths))


def next_position(positions: torch.Tensor) -> float:
    """Return the position after ``positions`` [3, T]: the largest on any axis plus one, or 0 if T is 0."""
    return positions.max().item() + 1 if positions.numel() else 0.0


def _pieces(segments: Iterable[Segment]) -> Iterator[tuple[np.ndarray, float]]:
    """Yield positions [3, n] from 0, and their extent: one piece per grid, one per stretch of text."""
    for grid, neighbours in groupby(segments, key=attrgetter("grid")):
        if grid is None:
            num_tokens = sum(map(attrgetter("num_tokens"), neighbours))
            yield _line(num_tokens), num_tokens
        else:
            yield from ((_grid(grid, segment.temporal_step), _grid_extent(segment)) for segment in neighbours)


@lru_cache(maxsize=1024)
def _line(num_tokens: int) -> np.ndarray:
    return np.broadcast_to(np.arange(num_tokens, dtype=np.float32), (3, num_tokens))


@lru_cache(maxsize=64)
def _grid(grid: tuple[int, int, int], temporal_step: float) -> np.ndarray:
    t, h, w = (np.arange(size, dtype=np.float32) for size in grid)
    axes = np.meshgrid(t * np.float32(temporal_step), h, w, indexing="ij")
    return np.stack([axis.ravel() for axis in axes])


def _grid_extent(segment: Segment) -> float:
    """Positions that a grid takes up: its largest on any axis plus one."""
    t, h, w = segment.grid
    return max((t - 1) * segment.temporal_step, h - 1, w - 1) + 1
