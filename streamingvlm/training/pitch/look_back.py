"""Heads that look back from birth, so that a small model can look a name up.

"Rovers in red ... goal for red! Rovers" asks one layer to carry a word forward to its neighbours and the next to find
the place where the same word stood. Neither helps without the other, so gradients take thousands of steps to find the
pair (Olsson et al. 2022, arXiv 2209.11895, where a look at the token before that is built in makes it form at once).
Here both halves are given: two heads of the first layer attend one and two tokens back, and two heads of the second
match what those bring with what a token is. What to make of it is learned; the heads themselves are not trained.
"""

import torch
from torch import nn
from transformers import Qwen2_5_VLForConditionalGeneration

_DISTANCES = (1, 2)
_FASTEST_PAIRS = 12  # of the rotary pairs: fast ones tell neighbours apart
_SLOWEST_PAIRS = 12  # slow ones do not mind how far a match is away
_SHARPNESS = 5.0
_MATCH = 2.6
_SHARE = 0.04  # what a looking head adds, against embeddings of about .02


@torch.no_grad()
def look_back_(model: Qwen2_5_VLForConditionalGeneration):
    """Give the first heads of the first two layers their task; the model must have more than one layer."""
    text = model.model.language_model
    first, second = (layer.self_attn for layer in text.layers[:2])
    head_size, hidden_size = first.head_dim, text.config.hidden_size
    brought, written = (torch.linalg.qr(torch.randn(hidden_size, hidden_size))[0] for _ in range(2))
    values = brought[:head_size]  # what a head brings of a token
    slots = [written[:, number * head_size :][:, :head_size] for number in range(len(_DISTANCES))]  # where it is put
    _attend_back_(first, text.rotary_emb.inv_freq)
    first.v_proj.weight[:head_size], first.v_proj.bias[:head_size] = values, 0
    for number, slot in enumerate(slots):
        first.o_proj.weight[:, _head(number, head_size)] = _SHARE * slot
    _match_(second, values, slots)


def hold_(model: Qwen2_5_VLForConditionalGeneration):
    """Keep the heads that look back out of training."""
    first, second = (layer.self_attn for layer in model.model.language_model.layers[:2])
    for module in (first, second.q_proj, second.k_proj):
        module.requires_grad_(False)


def _attend_back_(attention: nn.Module, frequencies: torch.Tensor):
    """Constant queries and keys: their product depends on the distance alone, and is largest at the one wanted."""
    head_size = attention.head_dim
    pull = torch.zeros(head_size // 2)
    pull[:_FASTEST_PAIRS] = _SHARPNESS
    attention.k_proj.weight[:head_size] = 0
    attention.k_proj.bias[:head_size] = torch.cat([pull, torch.zeros_like(pull)])
    for number, distance in enumerate(_DISTANCES):
        angle = -distance * frequencies
        rows = _head(number, head_size)
        attention.q_proj.weight[rows] = 0
        attention.q_proj.bias[rows] = torch.cat([pull * angle.cos(), pull * angle.sin()])


def _match_(attention: nn.Module, values: torch.Tensor, slots: list[torch.Tensor]):
    """Queries of what was brought from before, keys of what a token is, over the slow rotary pairs."""
    head_size = attention.head_dim
    half = head_size // 2
    slow = torch.arange(half - _SLOWEST_PAIRS, half)
    slow = torch.cat([slow, slow + half])
    keys = torch.zeros_like(values)
    keys[slow] = _MATCH * values[slow]
    attention.k_proj.weight[:head_size] = keys
    for number, slot in enumerate(slots):
        queries = torch.zeros_like(values)
        queries[slow] = _MATCH * slot.T[slow]
        attention.q_proj.weight[_head(number, head_size)] = queries


def _head(number: int, head_size: int) -> slice:
    return slice(number * head_size, (number + 1) * head_size)
