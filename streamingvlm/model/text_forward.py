"""New tokens of several streams through a text model, in one pass.

The layers are walked through here. A text model's own forward would make a mask, an identity rotation and some thirty
small kernels a layer more, which is half of the time of a token of a small model, and of a large one in a CUDA graph;
and it would take every token through the last layer, of which only the end of each stream is read. All weights are read
through their modules, so that adapters and quantised weights are in effect.

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
    """The tokens whose states are asked for: their places [N] among all new tokens, and they alone, packed."""

    places: torch.Tensor
    packed: AttentionMetadata


class Deepstack(NamedTuple):
    """What Qwen3-VL adds after its first layers: to the states at ``places`` [V], a level [V, hidden size] a layer."""

    places: torch.Tensor
    levels: Sequence[torch.Tensor]


def forward_text(
    text_model: nn.Module,
    hidden: torch.Tensor,
    packed: AttentionMetadata,
    *,
    ends: LogitsIndices | None = None,
    deepstack: Deepstack | None = None,
) -> torch.Tensor:
    """Run embeddings [T, hidden size] through the text model; return the last states of ``ends``, by default of all."""
    levels = deepstack.levels if deepstack else ()
    last = len(text_model.layers) - 1
    for index, layer in enumerate(text_model.layers):
        asked = ends if index == last else None
        attended = _attention(layer.self_attn, _normalised(layer.input_layernorm, hidden), packed, asked, index)
        hidden = (hidden if asked is None else hidden[asked.places]) + attended
        hidden = hidden + layer.mlp(_normalised(layer.post_attention_layernorm, hidden))
        if index < len(levels) and asked is None:
            hidden = hidden.index_add(0, deepstack.places, levels[index])
    return _normalised(text_model.norm, hidden)


def _attention(
    attention: nn.Module, x: torch.Tensor, packed: AttentionMetadata, ends: LogitsIndices | None, layer: int
) -> torch.Tensor:
    keys, values = (_heads(attention, project, x) for project in (attention.k_proj, attention.v_proj))
    query = _heads(attention, attention.q_proj, x if ends is None else x[ends.places])
    if hasattr(attention, "q_norm"):  # Qwen3
        query, keys = _normalised(attention.q_norm, query), _normalised(attention.k_norm, keys)
    asking = packed if ends is None else ends.packed
    if ends is None:  # one rotation is less work than two
        both = rotate(torch.cat((query, keys), dim=1), packed.cos, packed.sin)
        query, rotated = both.split((query.shape[1], keys.shape[1]), dim=1)
    else:
        query, rotated = rotate(query, asking.cos, asking.sin), rotate(keys, packed.cos, packed.sin)
    packed.write_(layer, keys, rotated, values)
    return attention.o_proj(attend(query, asking, layer, attention.scaling).flatten(1))


def _heads(attention: nn.Module, project: nn.Module, x: torch.Tensor) -> torch.Tensor:
    return project(x).unflatten(-1, (-1, attention.head_dim))


def _normalised(norm: nn.Module, x: torch.Tensor) -> torch.Tensor:
    return F.rms_norm(x, norm.weight.shape, norm.weight, norm.variance_epsilon)
