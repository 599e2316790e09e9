"""One token of each of several streams through a text model: the step that is repeated for every word.

The layers are walked through here. A text model's own forward would make a mask, an identity rotation and some thirty
small kernels a layer more, which is half of the time of a small model, and of a large one in a CUDA graph. All weights
are read through their modules, so that adapters and quantised weights are in effect.

Shapes: N streams, a token each, H heads, D head size.
"""

import torch
from torch import nn
from torch.nn import functional as F

from streamingvlm.cache.kv_cache import rotate
from streamingvlm.model.attention import attend
from streamingvlm.model.packing import PackedTokens


def feed_tokens(text_model: nn.Module, ids: torch.Tensor, packed: PackedTokens) -> torch.Tensor:
    """Run one token of each stream, ``ids`` [N], through the text model; return its last states [N, hidden size]."""
    hidden = text_model.embed_tokens(ids)
    for index, layer in enumerate(text_model.layers):
        hidden = hidden + _attention(layer.self_attn, _normalised(layer.input_layernorm, hidden), packed, index)
        hidden = hidden + layer.mlp(_normalised(layer.post_attention_layernorm, hidden))
    return _normalised(text_model.norm, hidden)


def _attention(attention: nn.Module, x: torch.Tensor, packed: PackedTokens, layer: int) -> torch.Tensor:
    query, keys, values = (
        project(x).unflatten(-1, (-1, attention.head_dim))
        for project in (attention.q_proj, attention.k_proj, attention.v_proj)
    )
    if hasattr(attention, "q_norm"):  # Qwen3
        query, keys = _normalised(attention.q_norm, query), _normalised(attention.k_norm, keys)
    num_heads, num_kv_heads = query.shape[1], keys.shape[1]
    both = rotate(torch.cat((query, keys), dim=1), packed.cos, packed.sin)
    query, rotated = both.split((num_heads, num_kv_heads), dim=1)
    packed.write_(layer, keys, rotated, values)
    return attention.o_proj(attend(query, packed, layer, attention.scaling).flatten(1))


def _normalised(norm: nn.Module, x: torch.Tensor) -> torch.Tensor:
    return F.rms_norm(x, norm.weight.shape, norm.weight, norm.variance_epsilon)
