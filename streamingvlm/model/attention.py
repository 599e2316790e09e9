"""The streaming attention, and the one place that knows which kernel runs.

transformers rotates queries and keys before it calls a cache. The text model is therefore run at position 0, where that
rotation is the identity; the cache rotates the keys to where they stand now, and the function below the queries. It
is registered under a name and chosen by ``attn_implementation``: no class is patched.

Shapes: B batch, T new tokens, S cached tokens with the new ones, H heads, D head size.
"""

import importlib.util
from functools import cache

import torch
from torch.nn.functional import scaled_dot_product_attention
from transformers import AttentionInterface

from streamingvlm.cache.kv_cache import rotate

STREAMING_ATTENTION = "streamingvlm"


def streaming_attention(
    module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: None,
    *,
    scaling: float,
    query_rotation: tuple[torch.Tensor, torch.Tensor],
    **_transformers_extras,
) -> tuple[torch.Tensor, None]:
    """Attend from the newest tokens to the cache, in cache order.

    query [B, H, T, D] unrotated; key, value [B, kv heads, S, D], keys rotated; query_rotation: cos and sin [T, D].
    The registered name has no mask function, so transformers hands over no mask: causality follows from the
    lengths, for the queries are always the last T of S. Returns [B, T, H, D] and no weights.
    """
    assert attention_mask is None, "the streaming attention derives causality from the lengths"
    return attend(rotate(query, *query_rotation), key, value, scaling), None


def attend(query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, scaling: float) -> torch.Tensor:
    """Causal attention aligned to the end: query t sees the keys up to S - T + t. Returns [B, T, H, D]."""
    if query.is_cuda and query.dtype != torch.float32 and has_flash_attn():
        return _flash(query, key, value, scaling)
    return _torch(query, key, value, scaling)


@cache
def has_flash_attn() -> bool:
    """Whether flash-attn is installed."""
    return importlib.util.find_spec("flash_attn") is not None


def _flash(query, key, value, scaling):
    from flash_attn import flash_attn_func  # installed on GPU machines alone

    bthd = (x.transpose(1, 2) for x in (query, key, value))
    return flash_attn_func(*bthd, softmax_scale=scaling, causal=True)


def _torch(query, key, value, scaling):
    num_new, num_cached = query.shape[2], key.shape[2]
    mask = None
    if num_new > 1:
        mask = torch.ones(num_new, num_cached, dtype=torch.bool, device=query.device).tril(num_cached - num_new)
    out = scaled_dot_product_attention(query, key, value, attn_mask=mask, scale=scaling, enable_gqa=True)
    return out.transpose(1, 2)


AttentionInterface.register(STREAMING_ATTENTION, streaming_attention)
