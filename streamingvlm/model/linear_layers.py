"""The linear layers of a float32 model on a CPU, by a kernel that uses its widest instructions.

torch hands products in float32 to MKL, which leaves the 512-bit instructions of AMD's processors alone: 104 GFLOP/s on
a core where oneDNN, which torch brings along, too, reaches 230. A small product is MKL's, which has less to prepare.
"""

from collections.abc import Callable
from typing import Self
from weakref import WeakKeyDictionary, ref

import torch
from torch import nn
from torch.nn import functional as F
from transformers.activations import SiLUActivation

# Multiplications from which on oneDNN is faster, its weights cold: measured in streams of the embedded model.
_FEWEST_MULTIPLICATIONS = 5_000_000
# oneDNN compiles a kernel for each number of rows, in a third of a millisecond, and keeps .6 MB of it: these are few.
_ROWS_APART = 32
_MOST_ROWS = 256
_FEWEST_PADDED_ROWS = 16
# A matrix that is read from the processor's last cache is worth a copy in oneDNN's own order: with it even the MLP of a
# few rows is faster, that of four takes 60 µs for 97. That of one does not: 60 for 38.
_FEWEST_ROWS_OF_MLP = 2
_BYTES_WORTH_A_COPY = range(2**19, 2**22 + 1)


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

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Rows [..., in features] to rows [..., out features]."""
        if x.size(0) >= self.fewest_rows and self.can_take(x):
            return in_blocks(self.product, x)
        return F.linear(x, self.weight, self.bias)

    def can_take(self, x: torch.Tensor) -> bool:
        """Whether oneDNN can do the product: it knows of no gradient, no quantised weight, no autocast."""
        weight = self.weight
        return x.ndim == 2 and _is_plain(weight) and x.dtype == weight.dtype and not torch.is_grad_enabled()

    def product(self, x: torch.Tensor, then: str = "none") -> torch.Tensor:
        """The layer by oneDNN; ``then``: what is done with each number at once, "swish" for SiLU."""
        return torch.ops.mkldnn._linear_pointwise(x, self._matrix, self.bias, then, [], "")

    def product_times(self, x: torch.Tensor, factors: torch.Tensor) -> torch.Tensor:
        """The layer by oneDNN, each number at once multiplied by its factor."""
        return torch.ops.mkldnn._linear_pointwise.binary(x, factors, self._matrix, self.bias, "mul")

    @property
    def has_copy(self) -> bool:
        """Whether oneDNN has the weight a second time, in its own order; not where a change could go unseen."""
        weight = self.weight
        is_watched = torch.is_inference_mode_enabled() and not weight.is_inference()
        return is_watched and weight.nbytes in _BYTES_WORTH_A_COPY

    @property
    def _matrix(self) -> torch.Tensor:
        """The weight, or its copy."""
        if not self.has_copy:
            return self.weight
        copy = _COPIES.get(self)
        if copy is None or not copy.is_of(self.weight):
            copy = _COPIES[self] = _Copy(self.weight)
        return copy.reordered


def forget_copies():
    """Copy small weights anew: for what changes them unseen, as ``weight.data`` and what merges adapters through it."""
    _COPIES.clear()


class _Copy:
    """A weight in oneDNN's own order, as long as it is the same weight with the same numbers."""

    def __init__(self, weight: nn.Parameter):
        self._weight, self._place, self._version = ref(weight), weight.data_ptr(), weight._version
        self.reordered = torch.ops.mkldnn._reorder_linear_weight(weight.detach(), _ROWS_APART)

    def is_of(self, weight: nn.Parameter) -> bool:
        return self._weight() is weight and self._place == weight.data_ptr() and self._version == weight._version


# By layer, and not in the layers: what is copied or stored of them is theirs.
_COPIES: WeakKeyDictionary[WideLinear, _Copy] = WeakKeyDictionary()


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
        gate, up, down = self.gate_proj, self.up_proj, self.down_proj
        if x.size(0) >= _FEWEST_ROWS_OF_MLP and self._is_for_one_dnn(x):
            return in_blocks(self._at_once, x)
        return down(self.act_fn(gate(x)) * up(x))

    def _is_for_one_dnn(self, x: torch.Tensor) -> bool:
        gate = self.gate_proj
        is_whole = type(gate) is type(self.up_proj) is type(self.down_proj) is WideLinear  # no adapter in its place
        return is_whole and (gate.has_copy or x.size(0) >= gate.fewest_rows) and gate.can_take(x)

    def _at_once(self, x: torch.Tensor) -> torch.Tensor:
        return self.down_proj.product(self.up_proj.product_times(x, self.gate_proj.product(x, "swish")))


def in_blocks(work: Callable[[torch.Tensor], torch.Tensor], x: torch.Tensor) -> torch.Tensor:
    """What ``work``, which takes each row of ``x`` [T, features] for itself, makes of them, by few numbers of rows."""
    done = [work(_padded(rows))[: len(rows)] for rows in x.split(_MOST_ROWS)]
    return done[0] if len(done) == 1 else torch.cat(done)


def _padded(x: torch.Tensor) -> torch.Tensor:
    num_missing = -len(x) % _ROWS_APART if len(x) >= _FEWEST_PADDED_ROWS else 0
    return F.pad(x, (0, 0, 0, num_missing)) if num_missing else x


def _is_plain(weight: torch.Tensor) -> bool:
    """Whether a weight is numbers as they are; a quantised one is of a class of its own."""
    return type(weight) is nn.Parameter


def _replace_(model: nn.Module, is_one: Callable[[nn.Module], bool], other: Callable[[nn.Module], nn.Module]):
    for parent in list(model.modules()):
        for name, layer in list(parent.named_children()):
            if is_one(layer):
                setattr(parent, name, other(layer))
