"""torch's private oneDNN operators. This is the only module that calls them.

Shapes: T rows, I input and O output features.
"""

import torch


def is_usable() -> bool:
    """Return True if this build of torch has oneDNN and the operators with the signatures used here."""
    if not torch.backends.mkldnn.is_available():
        return False
    x = weight = torch.zeros(1, 1)
    try:
        linear_mul(linear(x, weight, None, post_op="swish"), x, reorder_weight(weight, num_rows=1), None)
    except (AttributeError, TypeError, RuntimeError):  # an operator is missing, or has another signature
        return False
    return True


def linear(x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None, *, post_op: str = "none") -> torch.Tensor:
    """Linear layer [T, I] to [T, O], followed by ``post_op``: "none", or "swish" for SiLU."""
    return torch.ops.mkldnn._linear_pointwise(x, weight, bias, post_op, [], "")


def linear_mul(x: torch.Tensor, factors: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None) -> torch.Tensor:
    """Linear layer [T, I] to [T, O], multiplied by ``factors`` [T, O]."""
    return torch.ops.mkldnn._linear_pointwise.binary(x, factors, weight, bias, "mul")


def reorder_weight(weight: torch.Tensor, *, num_rows: int) -> torch.Tensor:
    """Return a copy of a weight [O, I] in oneDNN's blocked layout, chosen for inputs of ``num_rows`` rows."""
    return torch.ops.mkldnn._reorder_linear_weight(weight, num_rows)
