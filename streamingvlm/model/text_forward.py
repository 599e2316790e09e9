"""The forward pass of a text model over new tokens of several streams.

It calls the layers itself instead of the text model's own forward. That would build a mask and an identity rotation and
launch some thirty more small kernels per layer, which is half of the time of a decode step in a small model, or in a
large one under a CUDA graph. It would also compute the last layer for every token, while only the last token of each
stream needs logits. Weights are read through their modules, so that adapters and quantised weights apply.

Shapes: T new tokens, N streams, V vision tokens, H heads, D head size.
"""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import nn
from torch.nn import functional as F

from streamingvlm.cache.kv_cache import rotate
from streamingvlm.model.attention import attend
from streamingvlm.model.attention_metadata import AttentionMetadata


class LogitsIndices(NamedTuple):
    """The tokens that need logits: their indices [N] among the new tokens, and the attention metadata of them alone."""

    indices: torch.Tensor
    metadata: AttentionMetadata


class Deepstack(NamedTuple):
    """Features that Qwen3-VL adds after its first layers: one level [V, hidden size] per layer, at ``indices`` [V]."""

    indices: torch.Tensor
    levels: Sequence[torch.Tensor]


def forward_text(
    text_model: nn.Module,
    hidden: torch.Tensor,
    metadata: AttentionMetadata,
    *,
    logits_indices: LogitsIndices | None = None,
    deepstack: Deepstack | None = None,
) -> torch.Tensor:
    """Run embeddings [T, hidden size] through the text model, writing their keys and values to the pool.

    Returns the last hidden states of ``logits_indices`` [N, hidden size], by default of all tokens.
    """
    levels = deepstack.levels if deepstack else ()
    last = len(text_model.layers) - 1
    for index, layer in enumerate(text_model.layers):
        wanted = logits_indices if index == last else None
        attended = _attention(layer.self_attn, _normalised(layer.input_layernorm, hidden), metadata, wanted, index)
        hidden = (hidden if wanted is None else hidden[wanted.indices]) + attended
        hidden = hidden + layer.mlp(_normalised(layer.post_attention_layernorm, hidden))
        if index < len(levels) and wanted is None:
            hidden = hidden.index_add(0, deepstack.indices, levels[index])
    return _normalised(text_model.norm, hidden)


def _attention(
    attention: nn.Module, x: torch.Tensor, metadata: AttentionMetadata, wanted: LogitsIndices | None, layer: int
) -> torch.Tensor:
    keys, values = (_heads(attention, project, x) for project in (attention.k_proj, attention.v_proj))
    query = _heads(attention, attention.q_proj, x if wanted is None else x[wanted.indices])
    if hasattr(attention, "q_norm"):  # Qwen3
        query, keys = _normalised(attention.q_norm, query), _normalised(attention.k_norm, keys)
    query_metadata = metadata if wanted is None else wanted.metadata
    if wanted is None:  # rotating both at once launches fewer kernels
        both = rotate(torch.cat((query, keys), dim=1), metadata.cos, metadata.sin)
        query, rotated = both.split((query.shape[1], keys.shape[1]), dim=1)
    else:
        query = rotate(query, query_metadata.cos, query_metadata.sin)
        rotated = rotate(keys, metadata.cos, metadata.sin)
    metadata.write_(layer, keys, rotated, values)
    return attention.o_proj(attend(query, query_metadata, layer, attention.scaling).flatten(1))


def _heads(attention: nn.Module, project: nn.Module, x: torch.Tensor) -> torch.Tensor:
    return project(x).unflatten(-1, (-1, attention.head_dim))


def _normalised(norm: nn.Module, x: torch.Tensor) -> torch.Tensor:
    return F.rms_norm(x, norm.weight.shape, norm.weight, norm.variance_epsilon)
