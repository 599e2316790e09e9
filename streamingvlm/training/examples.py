"""One example of training: the tokens of a chunk, what is asked of them, and the vision that they see."""

from dataclasses import dataclass

import torch

from streamingvlm.cache.positions import contiguous_positions
from streamingvlm.turns import Tokens

IGNORED_LABEL = -100


@dataclass(frozen=True)
class Example:
    """One row of a batch, T tokens of which V are vision of width D.

    name: what a person finds it by in the data.
    input_ids, labels: [T]; a label is IGNORED_LABEL where nothing is asked.
    position_ids: [3, T].
    vision: [V, D], in the order of the vision tokens.
    deepstack: further [V, D] features that Qwen3-VL adds to its first layers; empty for other families.
    """

    name: str
    input_ids: torch.Tensor
    labels: torch.Tensor
    position_ids: torch.Tensor
    vision: torch.Tensor
    deepstack: tuple[torch.Tensor, ...] = ()


def example_from(name: str, tokens: Tokens, vision: torch.Tensor, deepstack: tuple[torch.Tensor, ...] = ()) -> Example:
    """Ask of ``tokens`` what training asks: the assistant's text alone."""
    ids = torch.tensor(tokens.ids)
    return Example(
        name=name,
        input_ids=ids,
        labels=ids.masked_fill(~torch.tensor(tokens.supervised()), IGNORED_LABEL),
        position_ids=contiguous_positions(tokens.segments),
        vision=vision,
        deepstack=deepstack,
    )
