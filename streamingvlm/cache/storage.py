"""The number formats in which a cache stores keys and values.

A row is the key or the value of one head for one token. Rows are moved and copied as opaque bytes, so only the code
that writes or reads their numbers needs a `Storage`.

Shapes: D head size.
"""

from typing import Protocol

import torch

_SCALE_BYTES = 4
_SMALLEST_SCALE = torch.finfo(torch.float32).tiny


class Storage(Protocol):
    """A row format; ``row_dtype`` and ``row_size`` describe a stored row."""

    row_dtype: torch.dtype
    row_size: int

    def encode(self, x: torch.Tensor) -> torch.Tensor:
        """Convert rows [..., D] to stored rows [..., row size]."""

    def decode(self, rows: torch.Tensor) -> torch.Tensor:
        """Convert stored rows [..., row size] to rows [..., D]."""


class PlainStorage:
    """Rows in the model's own dtype."""

    def __init__(self, head_size: int, dtype: torch.dtype):
        self.row_dtype, self.row_size = dtype, head_size

    def encode(self, x: torch.Tensor) -> torch.Tensor:
        return x

    def decode(self, rows: torch.Tensor) -> torch.Tensor:
        return rows


class Fp8Storage:
    """Rows in float8_e4m3fn, one byte a number, followed by a float32 scale per row in the same byte tensor.

    The scale maps the row's largest magnitude to the largest of the type (Micikevicius et al., FP8 Formats for Deep
    Learning, arXiv 2209.05433), so that a row with large keys does not cost other rows their precision.
    """

    row_dtype = torch.uint8

    def __init__(self, head_size: int, dtype: torch.dtype):
        self.head_size, self.dtype = head_size, dtype
        self.row_size = head_size + _SCALE_BYTES

    def encode(self, x: torch.Tensor) -> torch.Tensor:
        x = x.float()
        scale = (x.abs().amax(-1, keepdim=True) / torch.finfo(torch.float8_e4m3fn).max).clamp(min=_SMALLEST_SCALE)
        numbers = (x / scale).to(torch.float8_e4m3fn)
        return torch.cat((numbers.view(torch.uint8), scale.view(torch.uint8)), dim=-1)

    def decode(self, rows: torch.Tensor) -> torch.Tensor:
        numbers, scale = rows.split((self.head_size, _SCALE_BYTES), dim=-1)
        return numbers.view(torch.float8_e4m3fn).to(self.dtype) * scale.view(torch.float32).to(self.dtype)


def storage_named(name: str | None, head_size: int, dtype: torch.dtype) -> Storage:
    """Return the storage for a value of ``cache.dtype``; ``dtype`` is the model's."""
    return PlainStorage(head_size, dtype) if name is None else Fp8Storage(head_size, dtype)
