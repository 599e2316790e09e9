"""One example of training: the tokens of a chunk, what is asked of them, and the vision that they see."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch

from streamingvlm.cache.layout import Kind
from streamingvlm.cache.positions import contiguous_positions
from streamingvlm.model.vision import Grid, VisionFeatures
from streamingvlm.turns import SUPERVISED_KINDS, Tokens

IGNORED_LABEL = -100


class VisionPixels(NamedTuple):
    """A second that the vision tower has yet to see, as `model.vision.preprocess` makes it.

    pixels: [patches, values]; grid: merged (t, h, w), as in `VisionFeatures`.
    """

    pixels: torch.Tensor
    grid: Grid


@dataclass(frozen=True)
class Example:
    """One row of a batch, T tokens of which V are vision of width D.

    name: what a person finds it by in the data.
    input_ids, labels: [T]; a label is IGNORED_LABEL where nothing is asked.
    position_ids: [3, T].
    vision: [V, D], in the order of the vision tokens; or what a tower that is trained makes it of:
    pixels, grids: [patches, values] and the merged (t, h, w) of each second.
    deepstack: further [V, D] features that Qwen3-VL adds to its first layers; empty for other families.
    silent: [T], True at the tokens of a reply in which nothing is said; None: nowhere.
    """

    name: str
    input_ids: torch.Tensor
    labels: torch.Tensor
    position_ids: torch.Tensor
    vision: torch.Tensor | None
    deepstack: tuple[torch.Tensor, ...] = ()
    pixels: torch.Tensor | None = None
    grids: tuple[Grid, ...] = ()
    silent: torch.Tensor | None = None


def example_from(
    name: str, tokens: Tokens, vision: torch.Tensor | None, deepstack: tuple[torch.Tensor, ...] = (), **seen
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
        **seen,
    )


def example_of_seconds(
    name: str, tokens: Tokens, seconds: Sequence[VisionFeatures] | Sequence[VisionPixels]
) -> Example:
    """Make an example of the vision of each second: features, or pixels where the tower is trained."""
    if isinstance(seconds[0], VisionPixels):
        pixels = torch.cat([second.pixels for second in seconds])
        return example_from(name, tokens, None, pixels=pixels, grids=tuple(second.grid for second in seconds))
    levels = zip(*(second.deepstack for second in seconds), strict=True)
    vision = torch.cat([second.embeddings for second in seconds])
    return example_from(name, tokens, vision, tuple(torch.cat(level) for level in levels))


def _silent(tokens: Tokens) -> list[bool]:
    speaking = {segment.turn for segment in tokens.segments if segment.kind is Kind.SPEECH}
    return [
        segment.kind in SUPERVISED_KINDS and segment.turn not in speaking
        for segment in tokens.segments
        for _ in range(segment.num_tokens)
    ]
