"""Batching on the host: from what was scheduled to the input tensors of one forward pass.

Shapes: T new tokens of all streams, N streams, B rows of a decode step of fixed shape.
"""

from collections.abc import Sequence
from dataclasses import replace
from typing import NamedTuple, Protocol

import torch

from streamingvlm.cache.kv_cache import KVPool
from streamingvlm.device import on_device
from streamingvlm.inference.sampling import Sampler
from streamingvlm.inference.sequence import TokenSequence
from streamingvlm.model.attention_metadata import AttentionMetadata, SequenceSlice
from streamingvlm.model.loading import StreamingModel
from streamingvlm.model.text_forward import Deepstack, LogitsIndices


class PrefillSlice(NamedTuple):
    """Tokens of one sequence that are prefilled in one pass: what `TokenSequence.pending` returned."""

    sequence: TokenSequence
    slices: list[SequenceSlice]

    @property
    def num_tokens(self) -> int:
        """Tokens of all slices."""
        return sum(map(len, self.slices))


class DecodeItem(Protocol):
    """A stream with an appended token that needs its forward pass."""

    @property
    def sequence(self) -> TokenSequence:
        """Its tokens."""

    @property
    def sampler(self) -> Sampler:
        """The sampler of the next token."""


class PrefillInputs(NamedTuple):
    """The arguments of `forward_text` for one prefill; logits are computed after the last token of each stream."""

    hidden: torch.Tensor
    metadata: AttentionMetadata
    logits_indices: LogitsIndices
    deepstack: Deepstack | None

    @classmethod
    def of(cls, model: StreamingModel, pool: KVPool, batch: Sequence[PrefillSlice]) -> "PrefillInputs":
        """Gather the inputs of several sequences of one pool."""
        slices = [part for item in batch for part in item.slices]
        rotations = [
            (item.sequence.kv.cos[part.first : part.stop], item.sequence.kv.sin[part.first : part.stop])
            for item in batch
            for part in item.slices
        ]
        cos, sin = (torch.cat(parts) for parts in zip(*rotations, strict=True))
        indices = _last_indices(batch, model.device)
        last_slices = [replace(item.slices[-1], first=item.slices[-1].stop - 1) for item in batch]
        logits_indices = LogitsIndices(indices, AttentionMetadata(pool, last_slices, cos[indices], sin[indices]))
        hidden, deepstack = _embed(model, batch)
        return cls(hidden, AttentionMetadata(pool, slices, cos, sin), logits_indices, deepstack)


def _embed(model: StreamingModel, batch: Sequence[PrefillSlice]) -> tuple[torch.Tensor, Deepstack | None]:
    """Return the embeddings [T, hidden size], vision features in their places, and the deepstack features if any."""
    ids = [token for item in batch for part in item.slices for token in item.sequence.ids[part.first : part.stop]]
    embeddings = model.text_model.embed_tokens(on_device(ids, torch.long, model.device))
    indices, features, offset = [], [], 0
    for item in batch:
        for first, levels in item.sequence.pending_vision(item.slices):
            indices.append(torch.arange(offset + first, offset + first + len(levels[0])))
            features.append(levels)
        offset += item.num_tokens
    if not features:
        return embeddings, None
    where = on_device(torch.cat(indices), torch.long, model.device)
    vision, *deepstack = (torch.cat(level) for level in zip(*features, strict=True))
    return embeddings.index_copy(0, where, vision.to(embeddings.dtype)), Deepstack(
        where, [level.to(embeddings.dtype) for level in deepstack]
    )


def _last_indices(batch: Sequence[PrefillSlice], device: torch.device) -> torch.Tensor:
    """Return the index of each stream's last token among all tokens, [N]."""
    lengths = torch.tensor([item.num_tokens for item in batch])
    return on_device(lengths.cumsum(0) - 1, torch.long, device)


class StaticDecodeInputs(AttentionMetadata):
    """One new token a row, in tensors whose addresses never change, as a CUDA graph needs them.

    numbers: int64 [B, 5], of each row its token, the pool row written, the stream's first pool row, the sequence
    length, and the stream's row of the penalty mask. max_seqlen_k: the longest sequence there may be.
    """

    def __init__(self, pool: KVPool, numbers: torch.Tensor, max_seqlen_k: int):
        self.pool = pool
        self.numbers = numbers
        self.slices: list[SequenceSlice] = []
        self.max_seqlen_q, self.max_seqlen_k = 1, max_seqlen_k
        self.cu_seqlens_q = torch.arange(len(numbers) + 1, dtype=torch.int32, device=numbers.device)
        self.masks = [None] * len(numbers)

    def rotated_by(self, cos: torch.Tensor, sin: torch.Tensor) -> "StaticDecodeInputs":
        """Set the rotation [B, D] of the tokens, and derive the other tensors from the current numbers."""
        self.cos, self.sin = cos[:, None], sin[:, None]
        self.slot_mapping = self.numbers[:, 1]
        self.row_offsets = torch.nn.functional.pad(self.numbers[:, 2], (0, 1)).to(torch.int32)
        self.seqlens_k = self.numbers[:, 3].to(torch.int32)
        return self
