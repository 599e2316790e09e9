"""Rotary positions (t, h, w) as a pure function of the layout.

Sec. 3.1 of the paper and Sec. 2.1 of Qwen2.5-VL (arXiv 2502.13923): text takes consecutive integers, the same on three
axes; a vision grid that starts at s takes (s + t * temporal_step, s + row, s + column), where a temporal step is the
seconds of a temporal patch times the checkpoint's positions a second; what follows stands one past the largest so far.
"""

from collections.abc import Iterable

import torch

from streamingvlm.cache.layout import Segment


def contiguous_positions(segments: Iterable[Segment], first: float = 0.0) -> torch.Tensor:
    """Number the tokens of ``segments`` from ``first`` without a gap.

    Returns float32 [3, T]: the temporal axis is not truncated, so it may be fractional at odd frame rates.
    """
    parts, num_text = [], 0
    for segment in segments:
        if segment.grid is None:
            num_text += segment.num_tokens
            continue
        start = first + num_text
        parts += [_line(first, num_text), _grid(segment) + start]
        first, num_text = start + _extent(segment), 0
    return torch.cat([*parts, _line(first, num_text)], dim=1)


def next_position(positions: torch.Tensor) -> float:
    """The position of the token after ``positions`` [3, T]: one past the largest on any axis, 0 after none."""
    return positions.max().item() + 1 if positions.numel() else 0.0


def _line(first: float, num_tokens: int) -> torch.Tensor:
    return (torch.arange(num_tokens, dtype=torch.float32) + first).expand(3, -1)


def _grid(segment: Segment) -> torch.Tensor:
    t, h, w = (torch.arange(size, dtype=torch.float32) for size in segment.grid)
    axes = torch.meshgrid(t * segment.temporal_step, h, w, indexing="ij")
    return torch.stack([axis.flatten() for axis in axes])


def _extent(segment: Segment) -> float:
    """Positions that a grid takes up: one past its largest, whichever the axis."""
    t, h, w = segment.grid
    return max((t - 1) * segment.temporal_step, h - 1, w - 1) + 1
