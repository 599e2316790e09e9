"""In which numbers the keys and values of a cache are kept.

A row of a cache is what one head keeps of one token. Whatever it is kept as, a row is moved and copied whole and as it
is, so that only what writes or reads its numbers knows of this file.

Shapes: D head size.
"""

from typing import Protocol

import torch

_SCALE_BYTES = 4
_SMALLEST_SCALE = torch.finfo(torch.float32).tiny


class Storage(Protocol):
    """How rows are kept; ``row_dtype`` and ``row_size``: of what is kept of one row."""

    row_dtype: torch.dtype
    row_size: int

    def encode(self, x: torch.Tensor) -> torch.Tensor:
        """What is kept [..., row size] of rows [..., D]."""

    def decode(self, rows: torch.Tensor) -> torch.Tensor:
        """The rows [..., D] that are kept as [..., row size]."""


class Plain:
    """Rows as the model computes them."""

    def __init__(self, head_size: int, dtype: torch.dtype):
        self.row_dtype, self.row_size = dtype, head_size

    def encode(self, x: torch.Tensor) -> torch.Tensor:
        return x

    def decode(self, rows: torch.Tensor) -> torch.Tensor:
        return rows


class Fp8:
    """A byte a number, float8_e4m3fn, and a float32 scale a row, which stands behind them in the same bytes.

    The scale puts the largest number of the row at the largest of the type (Micikevicius et al., FP8 Formats for Deep
    Learning, arXiv 2209.05433), so that a few large keys cost no others their precision.
    """

    row_dtype = torch.uint8

    def __init__(self, head_size: int, dtype: torch.dtype):
        self.head_size, self.dtype = head_size, dtype
        self.row_size = head_size + _SCALE_BYTES

    def encode(self, x: torch.Tensor) -> torch.Tensor:
        x = x.float()
        scale = x.abs().amax(-1, keepdim=True) / torch.finfo(torch.float8_e4m3fn).max
        scale = scale.clamp(min=_SMALLEST_SCALE)
        numbers = (x / scale).to(torch.float8_e4m3fn)
        return torch.cat((numbers.view(torch.uint8), scale.view(torch.uint8)), dim=-1)

    def decode(self, rows: torch.Tensor) -> torch.Tensor:
        numbers, scale = rows.split((self.head_size, _SCALE_BYTES), dim=-1)
        return numbers.view(torch.float8_e4m3fn).to(self.dtype) * scale.view(torch.float32).to(self.dtype)


def storage_named(name: str | None, head_size: int, dtype: torch.dtype) -> Storage:
    """The storage of a setting ``cache.dtype``; ``dtype``: in which the model computes."""
    return Plain(head_size, dtype) if name is None else Fp8(head_size, dtype)
