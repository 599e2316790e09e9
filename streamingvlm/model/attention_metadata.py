"""New tokens of several streams, one after the other without padding: where they are written and what they see.

The linear layers of a model see one sequence; only the attention knows that it is of many streams. What tells them
apart is a list of runs. A run is a stream's tokens [first, stop) in cache order: they are written there, and token t
sees the tokens up to t. A stream may have several runs, if none sees what a later one writes.

Shapes: T new tokens of all runs, N runs, H heads, D head size, R rows of the pool.
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
    """The tokens [first, stop) of the stream whose rows of the pool begin at ``row``."""

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

    pool: where all streams have their keys; runs: in the order of the tokens; cos, sin: [T, D] their rotation.
    """

    def __init__(self, pool: KVPool, runs: Sequence[SequenceSlice], cos: torch.Tensor, sin: torch.Tensor):
        self.pool = pool
        self.runs = list(runs)
        self.cos, self.sin = cos[:, None], sin[:, None]
        places = [torch.arange(run.row + run.first, run.row + run.stop) for run in self.runs]
        self.rows = on_device(torch.cat(places), torch.long, pool.keys.device)

    @cached_property
    def max_seqlen_q(self) -> int:
        """The most tokens of a run."""
        return max(map(len, self.runs))

    @cached_property
    def max_seqlen_k(self) -> int:
        """The most tokens that a run sees, its own included."""
        return max(run.stop for run in self.runs)

    @cached_property
    def cu_seqlens_q(self) -> torch.Tensor:
        """Where each run begins among the new tokens, int32 [N + 1], the end last."""
        return self._int32([0, *accumulate(map(len, self.runs))])

    @cached_property
    def row_offsets(self) -> torch.Tensor:
        """The first row of the stream of each run, int32 [N + 1]; the last stands for nothing."""
        return self._int32([*(run.row for run in self.runs), 0])

    @cached_property
    def seqlens_k(self) -> torch.Tensor:
        """How many tokens each run sees, int32 [N]."""
        return self._int32([run.stop for run in self.runs])

    @cached_property
    def masks(self) -> list[torch.Tensor | None]:
        """Per run the mask [t, s] that is added to its scores; None for one token, and for a stream's first ones."""
        return [_mask(run, self.cos) if 1 < len(run) < run.stop else None for run in self.runs]

    def write_(self, layer: int, keys: torch.Tensor, rotated: torch.Tensor, values: torch.Tensor):
        """Write new keys, unrotated and rotated, and values [T, kv heads, D] of a layer."""
        self.pool.write_(layer, self.rows, keys, rotated, values)

    def _int32(self, numbers: list[int]) -> torch.Tensor:
        return on_device(numbers, torch.int32, self.rows.device)


def _mask(run: SequenceSlice, like: torch.Tensor) -> torch.Tensor:
    """Minus infinity where a token would see a later one."""
    hidden = torch.full((len(run), run.stop), float("-inf"), dtype=like.dtype, device=like.device)
    return hidden.triu_(run.stop - len(run) + 1)
