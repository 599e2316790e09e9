"""One training example: the tokens of a chunk, their labels and positions, and its vision."""

from dataclasses import dataclass

import torch

from streamingvlm.cache.layout import SegmentKind
from streamingvlm.cache.positions import contiguous_positions
from streamingvlm.training.vision_cache import ChunkVision
from streamingvlm.turns import SUPERVISED_KINDS, Tokens

IGNORED_LABEL = -100


@dataclass(frozen=True)
class Example:
    """One training example of T tokens, V of which are vision tokens of width D.

    name: identifies the example in the data, for error messages.
    input_ids, labels: [T]; a label is IGNORED_LABEL where the token is not supervised.
    position_ids: [3, T].
    vision: [V, D], in the order of the vision tokens; None if ``chunk`` is given.
    deepstack: further [V, D] features that Qwen3-VL adds to its first layers; empty for other families.
    chunk: the features of each turn, or the pixels that the training process still has to encode.
    is_silent: [T], True at the tokens of a silent turn's reply; None if there is no such turn.
    """

    name: str
    input_ids: torch.Tensor
    labels: torch.Tensor
    position_ids: torch.Tensor
    vision: torch.Tensor | None
    deepstack: tuple[torch.Tensor, ...] = ()
    chunk: ChunkVision | None = None
    is_silent: torch.Tensor | None = None


def example_from(
    name: str,
    tokens: Tokens,
    vision: torch.Tensor | None,
    deepstack: tuple[torch.Tensor, ...] = (),
    *,
    chunk: ChunkVision | None = None,
) -> Example:
    """Make an example of ``tokens``; the assistant's text alone is supervised."""
    ids = torch.tensor(tokens.ids)
    return Example(
        name=name,
        input_ids=ids,
        labels=ids.masked_fill(~torch.tensor(tokens.supervised()), IGNORED_LABEL),
        position_ids=contiguous_positions(tokens.segments),
        vision=vision,
        deepstack=deepstack,
        is_silent=torch.tensor(_is_silent(tokens)),
        chunk=chunk,
    )


def _is_silent(tokens: Tokens) -> list[bool]:
    turns_with_speech = {segment.turn for segment in tokens.segments if segment.kind is SegmentKind.SPEECH}
    return [
        segment.kind in SUPERVISED_KINDS and segment.turn not in turns_with_speech
        for segment in tokens.segments
        for _ in range(segment.num_tokens)
    ]
