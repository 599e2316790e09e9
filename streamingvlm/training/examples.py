"""One example of training: the tokens of a chunk, what is asked of them, and the vision that they see."""

from dataclasses import dataclass

import torch

from streamingvlm.cache.layout import SegmentKind
from streamingvlm.cache.positions import contiguous_positions
from streamingvlm.training.vision_cache import ReadChunk
from streamingvlm.turns import SUPERVISED_KINDS, Tokens

IGNORED_LABEL = -100


@dataclass(frozen=True)
class Example:
    """One row of a batch, T tokens of which V are vision of width D.

    name: what a person finds it by in the data.
    input_ids, labels: [T]; a label is IGNORED_LABEL where nothing is asked.
    position_ids: [3, T].
    vision: [V, D], in the order of the vision tokens; None where it comes with the seconds:
    seconds: of the chunk, each with its vision, or with the pixels of which a tower makes it in the training process.
    deepstack: further [V, D] features that Qwen3-VL adds to its first layers; empty for other families.
    silent: [T], True at the tokens of a reply in which nothing is said; None: nowhere.
    """

    name: str
    input_ids: torch.Tensor
    labels: torch.Tensor
    position_ids: torch.Tensor
    vision: torch.Tensor | None
    deepstack: tuple[torch.Tensor, ...] = ()
    seconds: ReadChunk | None = None
    silent: torch.Tensor | None = None


def example_from(
    name: str,
    tokens: Tokens,
    vision: torch.Tensor | None,
    deepstack: tuple[torch.Tensor, ...] = (),
    *,
    seconds: ReadChunk | None = None,
) -> Example:
    """Ask of ``tokens`` what training asks: the assistant's text alone."""
    ids = torch.tensor(tokens.ids)
    return Example(
        name=name,
        input_ids=ids,
        labels=ids.masked_fill(~torch.tensor(tokens.supervised()), IGNORED_LABEL),
        position_ids=contiguous_positions(tokens.segments),
        vision=vision,
        deepstack=deepstack,
        silent=torch.tensor(_silent(tokens)),
        seconds=seconds,
    )


def _silent(tokens: Tokens) -> list[bool]:
    speaking = {segment.turn for segment in tokens.segments if segment.kind is SegmentKind.SPEECH}
    return [
        segment.kind in SUPERVISED_KINDS and segment.turn not in speaking
        for segment in tokens.segments
        for _ in range(segment.num_tokens)
    ]
