"""Many chunks in one sequence, none of which sees another: the arithmetic of padding without the padding."""

from collections.abc import Sequence
from itertools import accumulate, pairwise

import torch

from streamingvlm.errors import ConfigError


def pack(lengths: Sequence[int], limit: int) -> list[list[int]]:
    """Put items into bins of at most ``limit`` tokens, the longest first, each into the first bin that has room.

    Returns the positions of the items in each bin; the same lengths give the same bins. First-fit decreasing needs at
    most 11/9 of the fewest bins, and one (Dósa 2007). Raises ConfigError for an item that no bin can hold.
    """
    if lengths and max(lengths) > limit:
        raise ConfigError(f"an example of {max(lengths)} tokens is longer than pack_tokens={limit}; raise pack_tokens")
    bins: list[list[int]] = []
    rooms: list[int] = []
    for item in sorted(range(len(lengths)), key=lambda item: -lengths[item]):
        place = next((place for place, room in enumerate(rooms) if room >= lengths[item]), len(bins))
        if place == len(bins):
            bins.append([])
            rooms.append(limit)
        bins[place].append(item)
        rooms[place] -= lengths[item]
    return bins


def boundaries(lengths: Sequence[int]) -> torch.Tensor:
    """Where each of some sequences laid end to end begins, and where the last ends: int32 [C + 1]."""
    return torch.tensor([0, *accumulate(lengths)], dtype=torch.int32)


def text_positions(starts: torch.Tensor) -> torch.Tensor:
    """Number the tokens of sequences laid end to end from 0 in each; float32 [T], as the rotary positions are.

    starts: as `boundaries` gives them. transformers reads off the restarts which tokens may see each other.
    """
    return torch.cat([torch.arange(stop - start) for start, stop in pairwise(starts.tolist())]).float()
