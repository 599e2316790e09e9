"""Linear layers and gated MLPs of a float32 model on a CPU, by oneDNN kernels.

torch computes float32 matrix products by MKL, which does not use the AVX-512 instructions of AMD processors: 104
GFLOP/s on one core, where oneDNN reaches 230. MKL has less overhead and keeps the small products.

Where a layer cannot use oneDNN (gradients, autocast, quantised weights, adapters), it computes the product by torch.
"""

from collections.abc import Callable
from typing import Self
from weakref import WeakKeyDictionary, ref

import torch
from torch import nn
from torch.nn import functional as F
from transformers.activations import SiLUActivation

from streamingvlm.model.cpu_kernels import onednn

# Multiplications above which oneDNN is faster when the weights are not in the CPU's cache, measured with the embedded
# model.
_MIN_MULTIPLICATIONS = 5_000_000
# oneDNN compiles a kernel for each number of rows, in .3 ms, and keeps .6 MB for it. Padding keeps these numbers few.
_ROW_STEP = 32
_MAX_ROWS = 256
_MIN_PADDED_ROWS = 16
# A weight that fits in the last-level cache is worth a second copy in oneDNN's layout. With it, an MLP takes
# 60 µs instead of 97 for four rows, but 60 µs instead of 38 for one row.
_MIN_MLP_ROWS = 2
_COPIED_BYTES = range(2**19, 2**22 + 1)


def supports_onednn(device: torch.device, dtype: torch.dtype) -> bool:
    """Return True if oneDNN supports this device and dtype and has AVX-512, where it is measured to beat MKL."""
    return (
        device.type == "cpu"
        and dtype == torch.float32
        and torch.backends.cpu.get_cpu_capability() == "AVX512"
        and onednn.is_usable()
    )


def replace_linears_(model: nn.Module):
    """Replace a model's linear layers and gated MLPs by the layers of this module, which share the weights."""
    _replace_(model, lambda layer: type(layer) is nn.Linear and _is_plain(layer.weight), OneDnnLinear.of)
    _replace_(model, GatedMLP.is_like, GatedMLP)


class OneDnnLinear(nn.Linear):
    """A linear layer that computes large products [T, features] by oneDNN when no gradient is needed."""

    min_rows = 1

    @classmethod
    def of(cls, linear: nn.Linear) -> Self:
        """Return this layer with the weights, and the weight names, of ``linear``."""
        layer = cls(linear.in_features, linear.out_features, bias=linear.bias is not None, device="meta")
        layer.weight, layer.bias = linear.weight, linear.bias
        layer.min_rows = -(-_MIN_MULTIPLICATIONS // linear.weight.numel())
        return layer

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Map [..., in features] to [..., out features]."""
        if x.size(0) >= self.min_rows and self.accepts(x):
            return in_blocks(self.product, x)
        return F.linear(x, self.weight, self.bias)

    def accepts(self, x: torch.Tensor) -> bool:
        """Return True for a 2-D x of the weight's dtype, an ordinary weight, and gradients off."""
        weight = self.weight
        return x.ndim == 2 and _is_plain(weight) and x.dtype == weight.dtype and not torch.is_grad_enabled()

    def product(self, x: torch.Tensor, *, post_op: str = "none") -> torch.Tensor:
        """Compute the layer by oneDNN, followed by ``post_op`` ("swish" for SiLU)."""
        return onednn.linear(x, self._matrix, self.bias, post_op=post_op)

    def product_mul(self, x: torch.Tensor, factors: torch.Tensor) -> torch.Tensor:
        """Compute the layer by oneDNN, multiplied by ``factors``."""
        return onednn.linear_mul(x, factors, self._matrix, self.bias)

    @property
    def uses_copy(self) -> bool:
        """Whether products use a reordered copy, made on first use: only if a version counter shows changes."""
        weight = self.weight
        is_versioned = torch.is_inference_mode_enabled() and not weight.is_inference()
        return is_versioned and weight.nbytes in _COPIED_BYTES

    @property
    def _matrix(self) -> torch.Tensor:
        """The weight, or its reordered copy."""
        if not self.uses_copy:
            return self.weight
        copy = _COPIES.get(self)
        if copy is None or not copy.is_of(self.weight):
            copy = _COPIES[self] = _ReorderedCopy(self.weight)
        return copy.reordered


def forget_copies():
    """Drop all reordered copies of weights, as changes through ``weight.data`` (merged adapters) go unnoticed."""
    _COPIES.clear()


class _ReorderedCopy:
    """A weight in oneDNN's layout, valid while the weight is the same tensor at the same version."""

    def __init__(self, weight: nn.Parameter):
        self._weight, self._address, self._version = ref(weight), weight.data_ptr(), weight._version
        self.reordered = onednn.reorder_weight(weight.detach(), num_rows=_ROW_STEP)

    def is_of(self, weight: nn.Parameter) -> bool:
        return self._weight() is weight and self._address == weight.data_ptr() and self._version == weight._version


# Keyed by layer instead of stored in the layers, so that copying or saving a layer leaves them out.
_COPIES: WeakKeyDictionary[OneDnnLinear, _ReorderedCopy] = WeakKeyDictionary()


class GatedMLP(nn.Module):
    """down(silu(gate(x)) * up(x)), the SwiGLU of arXiv 2002.05202, with the activation and product fused by oneDNN."""

    def __init__(self, mlp: nn.Module):
        super().__init__()
        self.gate_proj, self.up_proj, self.down_proj = mlp.gate_proj, mlp.up_proj, mlp.down_proj
        self.act_fn = mlp.act_fn

    @staticmethod
    def is_like(layer: nn.Module) -> bool:
        """Return True if a layer of transformers is a gated MLP with SiLU, judged by its submodules."""
        parts = dict(layer.named_children())
        is_gated = parts.keys() == {"gate_proj", "up_proj", "down_proj", "act_fn"}
        return is_gated and isinstance(parts["act_fn"], nn.SiLU | SiLUActivation)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Map [..., hidden size] to [..., hidden size]."""
        if x.size(0) >= _MIN_MLP_ROWS and self._uses_onednn(x):
            return in_blocks(self._fused, x)
        return self.down_proj(self.act_fn(self.gate_proj(x)) * self.up_proj(x))

    def _uses_onednn(self, x: torch.Tensor) -> bool:
        gate = self.gate_proj
        has_no_adapter = type(gate) is type(self.up_proj) is type(self.down_proj) is OneDnnLinear
        return has_no_adapter and (gate.uses_copy or x.size(0) >= gate.min_rows) and gate.accepts(x)

    def _fused(self, x: torch.Tensor) -> torch.Tensor:
        return self.down_proj.product(self.up_proj.product_mul(x, self.gate_proj.product(x, post_op="swish")))


def in_blocks(work: Callable[[torch.Tensor], torch.Tensor], x: torch.Tensor) -> torch.Tensor:
    """Apply a row-wise function to ``x`` [T, features] in padded blocks, so that few numbers of rows occur."""
    done = [work(_padded(rows))[: len(rows)] for rows in x.split(_MAX_ROWS)]
    return done[0] if len(done) == 1 else torch.cat(done)


def _padded(x: torch.Tensor) -> torch.Tensor:
    num_missing = -len(x) % _ROW_STEP if len(x) >= _MIN_PADDED_ROWS else 0
    return F.pad(x, (0, 0, 0, num_missing)) if num_missing else x


def _is_plain(weight: torch.Tensor) -> bool:
    """Return True for an ordinary parameter; a quantised weight has a class of its own."""
    return type(weight) is nn.Parameter


def _replace_(
    model: nn.Module, is_replaced: Callable[[nn.Module], bool], replacement: Callable[[nn.Module], nn.Module]
):
    for parent in list(model.modules()):
        for name, layer in list(parent.named_children()):
            if is_replaced(layer):
                setattr(parent, name, replacement(layer))
