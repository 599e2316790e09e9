"""Collation of examples of different lengths into one batch, padded to a rectangle or packed without padding."""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch.nn.utils.rnn import pad_sequence

from streamingvlm.model.vision import VisionFeatures
from streamingvlm.training.examples import IGNORED_LABEL, Example
from streamingvlm.training.packing import cumulative_lengths, text_positions
from streamingvlm.training.vision_cache import ChunkVision

_NOT_MODEL_INPUTS = ("names", "num_supervised", "weights")


class Collate:
    """Makes batches of examples: concatenated if ``packed``, else padded on the right.

    Neither needs an attention mask: attention is causal, so that no token attends to the padding after it, and a packed
    batch has its sequence boundaries. silence_weight: loss weight of the tokens of a silent turn's reply.
    """

    def __init__(self, pad_token_id: int, *, packed: bool = False, silence_weight: float = 1.0):
        self.pad_token_id = pad_token_id
        self.packed = packed
        self.silence_weight = silence_weight

    def __call__(self, examples: Sequence[Example]) -> dict[str, Any]:
        """Return a batch: inputs of `SFTModel`, names of the examples, and weights [A] of its A supervised tokens.

        Padded: input_ids and labels [B, L], position_ids [3, B, L]. Packed: input_ids and labels [1, T], position_ids
        [4, 1, T], whose first row restarts at 0 with each example, and cu_seqlens [B + 1]. Both: vision and deepstack
        [all vision tokens, D]; or ``chunks``, which `EncodeVision` or `with_pixels` converts into model inputs.
        """
        weights = [self._weights(example) for example in examples]
        return {
            "names": [example.name for example in examples],
            "num_supervised": [len(supervised) for supervised in weights],
            "weights": torch.cat(weights),
            **(self._packed(examples) if self.packed else self._padded(examples)),
            **_vision(examples),
        }

    def _padded(self, examples: Sequence[Example]) -> dict[str, Any]:
        return {
            "input_ids": _pad([example.input_ids for example in examples], self.pad_token_id),
            "labels": _pad([example.labels for example in examples], IGNORED_LABEL),
            "position_ids": _pad([example.position_ids.T for example in examples], 0).permute(2, 0, 1),
        }

    def _packed(self, examples: Sequence[Example]) -> dict[str, Any]:
        cu_seqlens = cumulative_lengths([len(example.input_ids) for example in examples])
        rotary = torch.cat([example.position_ids for example in examples], dim=1)
        labels = torch.cat([example.labels for example in examples])
        labels[cu_seqlens[:-1].long()] = IGNORED_LABEL  # must not be predicted from the example before it
        return {
            "input_ids": torch.cat([example.input_ids for example in examples])[None],
            "labels": labels[None],
            "position_ids": torch.cat([text_positions(cu_seqlens)[None], rotary])[:, None],
            "cu_seqlens": cu_seqlens,
        }

    def _weights(self, example: Example) -> torch.Tensor:
        weights = torch.ones(len(example.labels))
        if example.is_silent is not None:
            weights[example.is_silent] = self.silence_weight
        return weights[1:][example.labels[1:] != IGNORED_LABEL]  # nothing precedes the first token: it isn't predicted


def _pad(rows: list[torch.Tensor], value: int) -> torch.Tensor:
    return pad_sequence(rows, batch_first=True, padding_value=value)


def _vision(examples: Sequence[Example]) -> dict[str, Any]:
    if examples[0].chunk is not None:
        return {"chunks": [example.chunk for example in examples]}
    levels = zip(*(example.deepstack for example in examples), strict=True)
    return {
        "vision": torch.cat([example.vision for example in examples]),
        "deepstack": tuple(torch.cat(level) for level in levels),
    }


def model_inputs(batch: dict[str, Any]) -> dict[str, Any]:
    """Return the entries of a batch that `SFTModel.forward` takes, without names, counts and weights."""
    return {name: value for name, value in batch.items() if name not in _NOT_MODEL_INPUTS}


class EncodeVision:
    """Batch transform that replaces ``chunks`` by vision features; runs in the process that has the tower.

    encode: returns the features of the turns of a chunk, as `CachedVision.encode` does.
    """

    def __init__(self, encode: Callable[[ChunkVision], list[VisionFeatures]]):
        self.encode = encode

    def __call__(self, batch: dict[str, Any]) -> dict[str, Any]:
        """Return the batch with vision and deepstack [all vision tokens, D]."""
        features = [turn for chunk in batch["chunks"] for turn in self.encode(chunk)]
        levels = zip(*(turn.deepstack for turn in features), strict=True)
        return _without_chunks(batch) | {
            "vision": torch.cat([turn.embeddings for turn in features]),
            "deepstack": tuple(torch.cat(level) for level in levels),
        }


def with_pixels(batch: dict[str, Any]) -> dict[str, Any]:
    """Replace ``chunks`` by pixels [all patches, values] and grids [turns, 3]: the transform to train the tower."""
    turns = [turn for chunk in batch["chunks"] for turn in chunk.turns]
    return _without_chunks(batch) | {
        "pixels": torch.cat([turn.pixels for turn in turns]),
        "grids": torch.tensor([turn.patch_grid for turn in turns]),
    }


def _without_chunks(batch: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in batch.items() if name != "chunks"}
