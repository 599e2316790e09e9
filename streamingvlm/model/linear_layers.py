"""The linear layers of a float32 model on a CPU, by a kernel that uses its widest instructions.

torch hands products in float32 to MKL, which leaves the 512-bit instructions of AMD's processors alone: 104 GFLOP/s on
a core where oneDNN, which torch brings along, too, reaches 230. A small product is MKL's, which has less to prepare.
"""

from collections.abc import Callable
from typing import Self

import torch
from torch import nn
from torch.nn import functional as F
from transformers.activations import SiLUActivation

# Multiplications from which on oneDNN is faster, its weights cold: measured in streams of the embedded model.
_FEWEST_MULTIPLICATIONS = 4_000_000
# oneDNN compiles a kernel for each number of rows, in a third of a millisecond, and keeps .6 MB of it: these are few.
_ROWS_APART = 32
_MOST_ROWS = 256


def can_widen(device: torch.device, dtype: torch.dtype) -> bool:
    """Whether oneDNN has wider instructions there than MKL may take."""
    return (
        device.type == "cpu"
        and dtype == torch.float32
        and torch.backends.mkldnn.is_available()
        and torch.backends.cpu.get_cpu_capability() == "AVX512"
    )


def widen_(model: nn.Module):
    """Put the layers of this file in the place of a model's linear layers and gated MLPs, with the same weights."""
    _replace_(model, lambda layer: type(layer) is nn.Linear and _is_plain(layer.weight), WideLinear.of)
    _replace_(model, GatedMLP.is_like, GatedMLP)


class WideLinear(nn.Linear):
    """A linear layer; a large product [T, features] of which no gradient is asked is oneDNN's."""

    fewest_rows = 1

    @classmethod
    def of(cls, linear: nn.Linear) -> Self:
        """The same layer: it shares the weights, and their names."""
        layer = cls(linear.in_features, linear.out_features, bias=linear.bias is not None, device="meta")
        layer.weight, layer.bias = linear.weight, linear.bias
        layer.fewest_rows = -(-_FEWEST_MULTIPLICATIONS // linear.weight.numel())
        return layer

    def is_large(self, x: torch.Tensor) -> bool:
        """Whether the product is large enough for oneDNN, which knows of no gradient."""
        if len(x) < self.fewest_rows or x.ndim != 2 or torch.is_grad_enabled():
            return False
        return _is_plain(self.weight) and x.dtype == self.weight.dtype  # not so once quantised, or under autocast

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Rows [..., in features] to rows [..., out features]."""
        return in_blocks(self.product, x) if self.is_large(x) else F.linear(x, self.weight, self.bias)

    def product(self, x: torch.Tensor, then: str = "none") -> torch.Tensor:
        """The layer by oneDNN; ``then``: what is done with each number at once, "swish" for SiLU."""
        return torch.ops.mkldnn._linear_pointwise(x, self.weight, self.bias, then, [], "")

    def product_times(self, x: torch.Tensor, factors: torch.Tensor) -> torch.Tensor:
        """The layer by oneDNN, each number at once multiplied by its factor."""
        return torch.ops.mkldnn._linear_pointwise.binary(x, factors, self.weight, self.bias, "mul")


class GatedMLP(nn.Module):
    """down(silu(gate(x)) * up(x)), the SwiGLU of arXiv 2002.05202; large, it walks over what is between once less."""

    def __init__(self, mlp: nn.Module):
        super().__init__()
        self.gate_proj, self.up_proj, self.down_proj = mlp.gate_proj, mlp.up_proj, mlp.down_proj
        self.act_fn = mlp.act_fn

    @staticmethod
    def is_like(layer: nn.Module) -> bool:
        """Whether a layer of transformers is one, by its parts."""
        parts = dict(layer.named_children())
        is_gated = parts.keys() == {"gate_proj", "up_proj", "down_proj", "act_fn"}
        return is_gated and isinstance(parts["act_fn"], nn.SiLU | SiLUActivation)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Rows [..., hidden size] to rows of the same size."""
        gate, up, down = self.gate_proj, self.up_proj, self.down_proj  # an adapter may have taken the place of one
        if type(gate) is type(up) is type(down) is WideLinear and gate.is_large(x):
            return in_blocks(lambda rows: down.product(up.product_times(rows, gate.product(rows, "swish"))), x)
        return down(self.act_fn(gate(x)) * up(x))


def in_blocks(work: Callable[[torch.Tensor], torch.Tensor], x: torch.Tensor) -> torch.Tensor:
    """What ``work``, for which rows are nothing to each other, makes of ``x`` [T, features], in few sizes of blocks."""
    done = [work(_padded(rows))[: len(rows)] for rows in x.split(_MOST_ROWS)]
    return done[0] if len(done) == 1 else torch.cat(done)


def _padded(x: torch.Tensor) -> torch.Tensor:
    num_missing = -len(x) % _ROWS_APART
    return F.pad(x, (0, 0, 0, num_missing)) if num_missing else x


def _is_plain(weight: torch.Tensor) -> bool:
    """Whether a weight is numbers as they are; a quantised one is of a class of its own."""
    return type(weight) is nn.Parameter


def _replace_(model: nn.Module, is_one: Callable[[nn.Module], bool], other: Callable[[nn.Module], nn.Module]):
    for parent in list(model.modules()):
        for name, layer in list(parent.named_children()):
            if is_one(layer):
                setattr(parent, name, other(layer))
