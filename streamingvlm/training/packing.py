"""Packing: several examples in one sequence, without padding and without attention between them."""

from collections.abc import Sequence
from itertools import accumulate, pairwise

import torch

from streamingvlm.errors import ConfigError


def pack(lengths: Sequence[int], max_tokens: int) -> list[list[int]]:
    """Put items into bins of at most ``max_tokens`` tokens, the longest first, each into the first bin with room.

    Returns the indices of the items in each bin; the result is deterministic. First-fit decreasing needs at most 11/9
    of the optimal number of bins, plus one (Dósa 2007). Raises ConfigError for an item that is longer than a bin.
    """
    if lengths and max(lengths) > max_tokens:
        raise ConfigError(
            f"an example of {max(lengths)} tokens is longer than pack_tokens={max_tokens}; raise pack_tokens"
        )
    bins: list[list[int]] = []
    free_tokens: list[int] = []
    for item in sorted(range(len(lengths)), key=lambda item: -lengths[item]):
        index = next((index for index, free in enumerate(free_tokens) if free >= lengths[item]), len(bins))
        if index == len(bins):
            bins.append([])
            free_tokens.append(max_tokens)
        bins[index].append(item)
        free_tokens[index] -= lengths[item]
    return bins


def cumulative_lengths(lengths: Sequence[int]) -> torch.Tensor:
    """Return the start of each of C concatenated sequences and the end of the last: int32 [C + 1]."""
    return torch.tensor([0, *accumulate(lengths)], dtype=torch.int32)


def text_positions(cu_seqlens: torch.Tensor) -> torch.Tensor:
    """Return float32 positions [T] that restart at 0 in each sequence, which tells transformers the boundaries."""
    return torch.cat([torch.arange(stop - start) for start, stop in pairwise(cu_seqlens.tolist())]).float()
