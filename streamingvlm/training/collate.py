"""From examples of unequal length to one batch: padded to a rectangle, or packed end to end without padding."""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch.nn.utils.rnn import pad_sequence

from streamingvlm.model.vision import VisionFeatures
from streamingvlm.training.examples import IGNORED_LABEL, Example
from streamingvlm.training.packing import boundaries, text_positions
from streamingvlm.training.vision_cache import ReadChunk

_COUNTING = ("names", "num_asked", "weights")


class Collate:
    """Makes batches: ``packed`` lays the examples end to end; else they are padded on the right.

    Neither needs an attention mask: no earlier token can see padding, and packs say where their examples begin.
    silence_weight: weight of the tokens of a reply in which nothing is said.
    """

    def __init__(self, pad_token_id: int, *, packed: bool = False, silence_weight: float = 1.0):
        self.pad_token_id = pad_token_id
        self.packed = packed
        self.silence_weight = silence_weight

    def __call__(self, examples: Sequence[Example]) -> dict[str, Any]:
        """Return what `Commentator` takes, and what counts it: names, and weights [A] of the A tokens asked for.

        Padded: input_ids and labels [B, L], position_ids [3, B, L]. Packed: input_ids and labels [1, T], position_ids
        [4, 1, T] whose first row begins anew with each example, and starts [B + 1]. Both: vision and deepstack
        [all vision tokens, D]; or the chunks, of which `Encoded` or `with_pixels` makes what the model takes.
        """
        weights = [self._weights(example) for example in examples]
        return {
            "names": [example.name for example in examples],
            "num_asked": [len(asked) for asked in weights],
            "weights": torch.cat(weights),
            **(self._packed(examples) if self.packed else self._padded(examples)),
            **_vision(examples),
        }

    def _padded(self, examples: Sequence[Example]) -> dict[str, Any]:
        return {
            "input_ids": _padded([example.input_ids for example in examples], self.pad_token_id),
            "labels": _padded([example.labels for example in examples], IGNORED_LABEL),
            "position_ids": _padded([example.position_ids.T for example in examples], 0).permute(2, 0, 1),
        }

    def _packed(self, examples: Sequence[Example]) -> dict[str, Any]:
        starts = boundaries([len(example.input_ids) for example in examples])
        rotary = torch.cat([example.position_ids for example in examples], dim=1)
        labels = torch.cat([example.labels for example in examples])
        labels[starts[:-1].long()] = IGNORED_LABEL  # nothing before it may foretell the first token of an example
        return {
            "input_ids": torch.cat([example.input_ids for example in examples])[None],
            "labels": labels[None],
            "position_ids": torch.cat([text_positions(starts)[None], rotary])[:, None],
            "starts": starts,
        }

    def _weights(self, example: Example) -> torch.Tensor:
        weights = torch.ones(len(example.labels))
        if example.silent is not None:
            weights[example.silent] = self.silence_weight
        # The first token of an example follows nothing and cannot be asked for.
        return weights[1:][example.labels[1:] != IGNORED_LABEL]


def _padded(rows: list[torch.Tensor], value: int) -> torch.Tensor:
    return pad_sequence(rows, batch_first=True, padding_value=value)


def _vision(examples: Sequence[Example]) -> dict[str, Any]:
    if examples[0].seconds is not None:
        return {"chunks": [example.seconds for example in examples]}
    levels = zip(*(example.deepstack for example in examples), strict=True)
    return {
        "vision": torch.cat([example.vision for example in examples]),
        "deepstack": tuple(torch.cat(level) for level in levels),
    }


def model_inputs(batch: dict[str, Any]) -> dict[str, Any]:
    """What of a batch the model takes; the rest counts its losses and names their examples."""
    return {name: value for name, value in batch.items() if name not in _COUNTING}


class Encoded:
    """Gives a batch of chunks its vision, in the process that has the tower.

    encode: what makes features of the seconds of a chunk, as `CachedVision.encode` does.
    """

    def __init__(self, encode: Callable[[ReadChunk], list[VisionFeatures]]):
        self.encode = encode

    def __call__(self, batch: dict[str, Any]) -> dict[str, Any]:
        """Return the batch with vision and deepstack [all vision tokens, D]."""
        seconds = [second for chunk in batch["chunks"] for second in self.encode(chunk)]
        levels = zip(*(second.deepstack for second in seconds), strict=True)
        return _without_chunks(batch) | {
            "vision": torch.cat([second.embeddings for second in seconds]),
            "deepstack": tuple(torch.cat(level) for level in levels),
        }


def with_pixels(batch: dict[str, Any]) -> dict[str, Any]:
    """Give a batch of chunks their pixels [all patches, values] and grids [all seconds, 3]: its tower is trained."""
    seconds = [second for chunk in batch["chunks"] for second in chunk.seconds]
    return _without_chunks(batch) | {
        "pixels": torch.cat([second.pixels for second in seconds]),
        "grids": torch.tensor([second.patch_grid for second in seconds]),
    }


def _without_chunks(batch: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in batch.items() if name != "chunks"}
