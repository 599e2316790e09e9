"""Built-in induction heads, with which a small model can look up a name in its text.

"Rovers in red ... goal for red! Rovers" needs two heads: one in an early layer that copies a word to the tokens after
it, and one in a later layer that finds where the same word stood before. Neither helps without the other, so gradient
descent takes thousands of steps to find the pair (Olsson et al. 2022, arXiv 2209.11895, where a built-in previous-token
mechanism makes it form at once). Here both are given: two heads of the first layer attend one and two tokens back, and
two heads of the second layer match what these copy with the current token. The weights that use the result are trained;
the heads themselves are not.
"""

import torch
from torch import nn
from transformers import Qwen2_5_VLForConditionalGeneration

_DISTANCES = (1, 2)
_FASTEST_PAIRS = 12  # rotary pairs of high frequency, which distinguish neighbours
_SLOWEST_PAIRS = 12  # rotary pairs of low frequency, which match at any distance
_SHARPNESS = 5.0
_MATCH = 2.6
_SHARE = 0.04  # scale of what a previous-token head adds; embeddings are about 0.02


@torch.no_grad()
def init_induction_heads_(model: Qwen2_5_VLForConditionalGeneration):
    """Set the weights of the first two heads in the first two layers; the model must have at least two layers."""
    text = model.model.language_model
    first, second = (layer.self_attn for layer in text.layers[:2])
    head_size, hidden_size = first.head_dim, text.config.hidden_size
    read_basis, write_basis = (torch.linalg.qr(torch.randn(hidden_size, hidden_size))[0] for _ in range(2))
    values = read_basis[:head_size]  # the subspace of a token that the heads copy
    targets = [write_basis[:, number * head_size :][:, :head_size] for number in range(len(_DISTANCES))]
    _attend_back_(first, text.rotary_emb.inv_freq)
    first.v_proj.weight[:head_size], first.v_proj.bias[:head_size] = values, 0
    for number, target in enumerate(targets):
        first.o_proj.weight[:, _head(number, head_size)] = _SHARE * target
    _match_(second, values, targets)


def freeze_induction_heads_(model: Qwen2_5_VLForConditionalGeneration):
    """Exclude the weights of the induction heads from training."""
    first, second = (layer.self_attn for layer in model.model.language_model.layers[:2])
    for module in (first, second.q_proj, second.k_proj):
        module.requires_grad_(False)


def _attend_back_(attention: nn.Module, frequencies: torch.Tensor):
    """Set constant queries and keys, whose product depends on the distance only and peaks at the wanted one."""
    head_size = attention.head_dim
    amplitude = torch.zeros(head_size // 2)
    amplitude[:_FASTEST_PAIRS] = _SHARPNESS
    attention.k_proj.weight[:head_size] = 0
    attention.k_proj.bias[:head_size] = torch.cat([amplitude, torch.zeros_like(amplitude)])
    for number, distance in enumerate(_DISTANCES):
        angle = -distance * frequencies
        rows = _head(number, head_size)
        attention.q_proj.weight[rows] = 0
        attention.q_proj.bias[rows] = torch.cat([amplitude * angle.cos(), amplitude * angle.sin()])


def _match_(attention: nn.Module, values: torch.Tensor, targets: list[torch.Tensor]):
    """Match copied tokens (queries) with tokens (keys), over the slow rotary pairs."""
    head_size = attention.head_dim
    half = head_size // 2
    slow = torch.arange(half - _SLOWEST_PAIRS, half)
    slow = torch.cat([slow, slow + half])
    keys = torch.zeros_like(values)
    keys[slow] = _MATCH * values[slow]
    attention.k_proj.weight[:head_size] = keys
    for number, target in enumerate(targets):
        queries = torch.zeros_like(values)
        queries[slow] = _MATCH * target.T[slow]
        attention.q_proj.weight[_head(number, head_size)] = queries


def _head(number: int, head_size: int) -> slice:
    return slice(number * head_size, (number + 1) * head_size)
