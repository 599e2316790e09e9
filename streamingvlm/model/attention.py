"""The attention of streams, and the one place that knows which kernel runs.

That of the text model is called by `text_states`. That of the vision tower, whose windows it takes all at once, is
registered under a name and chosen by ``attn_implementation``: no class is patched.

Shapes: T new tokens, of N runs, S cached tokens with the new ones, H heads, D head size.
"""

import importlib.util
from functools import cache
from itertools import groupby

import torch
from torch.nn.functional import scaled_dot_product_attention
from transformers import AttentionInterface

from streamingvlm.model.attention_metadata import AttentionMetadata, SequenceSlice

# transformers hands the bounds of the windows to what calls itself flash, and loops over them for all others.
WINDOWED_ATTENTION = "streamingvlm_flash_windows"

_HALF = (torch.bfloat16, torch.float16)
_MAX_FLASH_HEAD_SIZE = 256


def attend(query: torch.Tensor, packed: AttentionMetadata, layer: int, scaling: float) -> torch.Tensor:
    """Causal attention of each run to its stream's cached tokens: query and result [T, H, D], rotated."""
    keys, values = packed.pool.rotated[layer], packed.pool.values[layer]
    decode = packed.pool.storage.decode
    if takes_runs_at_once(query):
        return _varlen(
            query,
            decode(keys).transpose(0, 1),
            decode(values).transpose(0, 1),
            offsets=(packed.cu_seqlens_q, packed.row_offsets),
            longest=(packed.max_seqlen_q, packed.max_seqlen_k),
            seqlens_k=packed.seqlens_k,
            is_causal=packed.max_seqlen_q > 1,
            scaling=scaling,
        )
    outputs = [
        _run(part, decode(_rows_of(keys, run)), decode(_rows_of(values, run)), mask, scaling)
        for part, run, mask in zip(
            query.split([len(run) for run in packed.runs]), packed.runs, packed.masks, strict=True
        )
    ]
    return outputs[0] if len(outputs) == 1 else torch.cat(outputs)


@cache
def has_flash_attn() -> bool:
    """Whether flash-attn is installed, which training asks for; streams use the flash attention of torch."""
    return importlib.util.find_spec("flash_attn") is not None


def takes_runs_at_once(query: torch.Tensor) -> bool:
    """Whether a kernel takes runs of any length in one call: torch's own flash attention, on CUDA in half precision."""
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
    """Attend inside windows, all of them at once: query, key, value [1, H, T, D], bounds of the windows [N + 1].

    Returns [1, T, H, D] and no weights.
    """
    assert attention_mask is None, "windows have no mask"
    query, key, value = (x[0].transpose(0, 1) for x in (query, key, value))
    if takes_runs_at_once(query):
        offsets = (cu_seq_lens_q, cu_seq_lens_q)
        longest = (max_length_q, max_length_q)
        return _varlen(query, key, value, offsets=offsets, longest=longest, is_causal=False, scaling=scaling)[
            None
        ], None
    return _windows(query, key, value, cu_seq_lens_q.diff().tolist(), scaling)[None], None


def _varlen(query, keys, values, *, offsets, longest, is_causal, scaling, seqlens_k=None):
    # The public torch.nn.attention.varlen changes its arguments between versions of torch; what it calls does not.
    # Flash attention aligns causality to the end of what is seen, and takes one query per run apart over its keys.
    return torch.ops.aten._flash_attention_forward(
        query, keys, values, *offsets, *longest, 0.0, is_causal, False, scale=scaling, seqused_k=seqlens_k
    )[0]


def _rows_of(buffer: torch.Tensor, run: SequenceSlice) -> torch.Tensor:
    """The rows of the pool that a run sees, [1, kv heads, S, D]."""
    return buffer[None, :, run.row : run.row + run.stop]


def _run(query, keys, values, mask, scaling):
    num_new, num_heads, size = query.shape
    if num_new == 1:  # the heads that share keys are as many queries: no key is repeated for them
        grouped = query.view(1, keys.shape[1], -1, size)
        return scaled_dot_product_attention(grouped, keys, values, scale=scaling).reshape(1, num_heads, size)
    out = scaled_dot_product_attention(
        query.transpose(0, 1)[None],
        keys,
        values,
        attn_mask=mask,
        is_causal=mask is None,
        scale=scaling,
        enable_gqa=True,
    )
    return out[0].transpose(0, 1)


def _windows(query, key, value, lengths: list[int], scaling):
    """Neighbours of one length are a batch."""
    outputs, start = [], 0
    for length, run in groupby(lengths):
        num_windows = len(list(run))
        stop = start + length * num_windows
        batch = (x[start:stop].unflatten(0, (num_windows, length)).transpose(1, 2) for x in (query, key, value))
        outputs.append(scaled_dot_product_attention(*batch, scale=scaling).transpose(1, 2).flatten(0, 1))
        start = stop
    return torch.cat(outputs)


AttentionInterface.register(WINDOWED_ATTENTION, windowed_attention)
