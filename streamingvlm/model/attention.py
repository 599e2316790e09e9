"""Attention of streams and of the vision tower: the only module that chooses a kernel for them.

`forward_text` calls `attend` for the text model. `windowed_attention` runs all windows of the vision tower in one call;
it is registered with transformers under a name and selected by ``attn_implementation``, so that no class is patched.

Shapes: T new tokens of N sequence slices, S cached tokens including the new ones, H heads, D head size.
"""

import importlib.util
from functools import cache
from itertools import groupby

import torch
from torch.nn.functional import scaled_dot_product_attention
from transformers import AttentionInterface

from streamingvlm.model.attention_metadata import AttentionMetadata, SequenceSlice

# transformers passes the window boundaries to implementations whose name contains "flash", and loops over windows for
# all others.
WINDOWED_ATTENTION = "streamingvlm_flash_windows"

_HALF = (torch.bfloat16, torch.float16)
_MAX_FLASH_HEAD_SIZE = 256


def attend(query: torch.Tensor, metadata: AttentionMetadata, layer: int, scaling: float) -> torch.Tensor:
    """Causal attention of each slice to its stream's cached tokens: rotated query [T, H, D] to output [T, H, D]."""
    keys, values = metadata.pool.rotated[layer], metadata.pool.values[layer]
    decode = metadata.pool.storage.decode
    if supports_varlen(query):
        return _varlen(
            query,
            decode(keys).transpose(0, 1),
            decode(values).transpose(0, 1),
            offsets=(metadata.cu_seqlens_q, metadata.row_offsets),
            max_seqlens=(metadata.max_seqlen_q, metadata.max_seqlen_k),
            seqlens_k=metadata.seqlens_k,
            is_causal=metadata.max_seqlen_q > 1,
            scaling=scaling,
        )
    queries = query.split([len(part) for part in metadata.slices])
    outputs = [
        _attend_slice(q, decode(_rows_of(keys, part)), decode(_rows_of(values, part)), mask, scaling)
        for q, part, mask in zip(queries, metadata.slices, metadata.masks, strict=True)
    ]
    return outputs[0] if len(outputs) == 1 else torch.cat(outputs)


@cache
def has_flash_attn() -> bool:
    """Return True if flash-attn is installed. Only training uses it: streams use torch's built-in kernel."""
    return importlib.util.find_spec("flash_attn") is not None


def supports_varlen(query: torch.Tensor) -> bool:
    """Return True if one kernel call can take slices of several lengths: flash attention in half precision on CUDA."""
    return query.is_cuda and query.dtype in _HALF and query.shape[-1] <= _MAX_FLASH_HEAD_SIZE


def windowed_attention(
    _module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: None,
    *,
    scaling: float,
    cu_seq_lens_q: torch.Tensor,
    max_length_q: int,
    **_transformers_extras,
) -> tuple[torch.Tensor, None]:
    """Attend within each window, in one call for all windows.

    query, key, value: [1, H, T, D]; cu_seq_lens_q: [windows + 1], the window boundaries.
    Returns [1, T, H, D] and no weights.
    """
    assert attention_mask is None, "windows have no mask"
    query, key, value = (x[0].transpose(0, 1) for x in (query, key, value))
    if supports_varlen(query):
        offsets, max_seqlens = (cu_seq_lens_q, cu_seq_lens_q), (max_length_q, max_length_q)
        out = _varlen(query, key, value, offsets=offsets, max_seqlens=max_seqlens, is_causal=False, scaling=scaling)
    else:
        out = _attend_windows(query, key, value, cu_seq_lens_q.diff().tolist(), scaling)
    return out[None], None


def _varlen(query, keys, values, *, offsets, max_seqlens, is_causal, scaling, seqlens_k=None):
    # The public torch.nn.attention.varlen changes its arguments between versions of torch; this operator does not.
    # It aligns the causal mask to the end of the keys. Single-query sequences use split-KV (flash-decoding).
    return torch.ops.aten._flash_attention_forward(
        query, keys, values, *offsets, *max_seqlens, 0.0, is_causal, False, scale=scaling, seqused_k=seqlens_k
    )[0]


def _rows_of(buffer: torch.Tensor, part: SequenceSlice) -> torch.Tensor:
    """Return the pool rows of the tokens that a slice attends to, [1, kv heads, S, D].

    ``part.row`` is the pool row of its stream's first token; ``part.stop`` counts from there.
    """
    return buffer[None, :, part.row : part.row + part.stop]


def _attend_slice(query, keys, values, mask, scaling):
    num_new, num_heads, size = query.shape
    if num_new == 1:  # the heads of a group become queries of their shared key head, so that no key is repeated
        grouped = query.view(1, keys.shape[1], -1, size)
        return scaled_dot_product_attention(grouped, keys, values, scale=scaling).reshape(1, num_heads, size)
    out = scaled_dot_product_attention(
        query.transpose(0, 1)[None],
        keys,
        values,
        attn_mask=mask,
        is_causal=mask is None,  # no mask: the slice starts at token 0, so its keys are its own tokens
        scale=scaling,
        enable_gqa=True,
    )
    return out[0].transpose(0, 1)


def _attend_windows(query, key, value, lengths: list[int], scaling):
    """Attend within windows, batching neighbours of equal length."""
    outputs, start = [], 0
    for length, run in groupby(lengths):
        num_windows = len(list(run))
        stop = start + length * num_windows
        batch = (x[start:stop].unflatten(0, (num_windows, length)).transpose(1, 2) for x in (query, key, value))
        outputs.append(scaled_dot_product_attention(*batch, scale=scaling).transpose(1, 2).flatten(0, 1))
        start = stop
    return torch.cat(outputs)


AttentionInterface.register(WINDOWED_ATTENTION, windowed_attention)
