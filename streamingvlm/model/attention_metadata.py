"""Attention metadata of a batch: for new tokens of several streams, the rows they are written to and attend to.

New tokens are concatenated without padding. The linear layers process them as one sequence; only attention
distinguishes the streams, by a list of sequence slices. A slice is the tokens [first, stop) of one stream in cache
order: their keys and values are written there, and token t attends to the tokens up to t. A stream may have several
slices, if none attends to tokens that a later one writes.

Shapes: T new tokens of all slices, N slices, D head size.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import accumulate

import torch

from streamingvlm.cache.kv_cache import KVCache, KVPool
from streamingvlm.device import on_device


@dataclass(frozen=True)
class SequenceSlice:
    """The tokens [first, stop) of the stream whose rows in the pool begin at ``row``."""

    row: int
    first: int
    stop: int

    @classmethod
    def of(cls, cache: KVCache, first: int, stop: int) -> "SequenceSlice":
        """The tokens [first, stop) of a stream's cache."""
        return cls(cache.extent.start, first, stop)

    def __len__(self) -> int:
        return self.stop - self.first


class AttentionMetadata:
    """The new tokens of one forward pass.

    pool: the keys and values of all streams.
    slices: in the order of the tokens.
    cos, sin: [T, D], the rotation of the new tokens.
    """

    def __init__(self, pool: KVPool, slices: Sequence[SequenceSlice], cos: torch.Tensor, sin: torch.Tensor):
        self.pool = pool
        self.slices = list(slices)
        self.cos, self.sin = cos[:, None], sin[:, None]
        rows = [torch.arange(part.row + part.first, part.row + part.stop) for part in self.slices]
        self.slot_mapping = on_device(torch.cat(rows), torch.long, pool.keys.device)

    @cached_property
    def max_seqlen_q(self) -> int:
        """New tokens of the longest slice."""
        return max(map(len, self.slices))

    @cached_property
    def max_seqlen_k(self) -> int:
        """The most tokens that a slice attends to, its own included."""
        return max(part.stop for part in self.slices)

    @cached_property
    def cu_seqlens_q(self) -> torch.Tensor:
        """Cumulative numbers of new tokens, int32 [N + 1]: slice i is the new tokens [i] to [i + 1]."""
        return self._int32([0, *accumulate(map(len, self.slices))])

    @cached_property
    def row_offsets(self) -> torch.Tensor:
        """First row of each slice's stream, int32 [N + 1]; the kernel wants one more entry and does not use it."""
        return self._int32([*(part.row for part in self.slices), 0])

    @cached_property
    def seqlens_k(self) -> torch.Tensor:
        """Tokens that each slice attends to, int32 [N]."""
        return self._int32([part.stop for part in self.slices])

    @cached_property
    def masks(self) -> list[torch.Tensor | None]:
        """Additive mask [t, s] of each slice; None for a single token and for the first tokens of a stream."""
        return [_mask(part, self.cos) if 1 < len(part) < part.stop else None for part in self.slices]

    def write_(self, layer: int, keys: torch.Tensor, rotated: torch.Tensor, values: torch.Tensor):
        """Write the new unrotated keys, rotated keys and values, [T, kv heads, D] each, of a layer."""
        self.pool.write_(layer, self.slot_mapping, keys, rotated, values)

    def _int32(self, numbers: list[int]) -> torch.Tensor:
        return on_device(numbers, torch.int32, self.slot_mapping.device)


def _mask(part: SequenceSlice, like: torch.Tensor) -> torch.Tensor:
    """Minus infinity where a token would attend to a later one."""
    hidden = torch.full((len(part), part.stop), float("-inf"), dtype=like.dtype, device=like.device)
    return hidden.triu_(part.stop - len(part) + 1)
