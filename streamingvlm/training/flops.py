"""The arithmetic of a training step, by formula, and what a device could do in the same time.

Model FLOPs utilisation (MFU) is the arithmetic that the model asks for over the device's peak; work done twice, as by
activation checkpointing, does not count (Chowdhery et al., PaLM, arXiv 2204.02311, App. B). Their 6 N + 12 L H Q T a
token becomes here:

* 6 a trained weight of the matrices and 4 a frozen one: 2 forward, 2 for the gradient of what comes in, which has to
  pass through frozen layers to the adapters too, and 2 for the gradient of the weight (Kaplan et al., arXiv
  2001.08361, Sec. 2.1).
* 12 a layer, head and value of a head for each pair of a token and one that it sees, causally: half of what PaLM
  counts for a sequence, and nothing across the examples of a pack.
* the head at the tokens that are asked for alone, as `Commentator` runs it.

The vision tower is left out: where it is frozen its features are mostly read from the cache.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from torch import nn

_TRAINED, _FROZEN = 6, 4
_A_PAIR = 12

# Dense bfloat16, without sparsity, from NVIDIA's data sheets; the first name that a device's name contains.
_PEAK_TFLOPS = (
    ("B200", 2250.0),
    ("H200 NVL", 835.0),
    ("H200", 989.0),
    ("H100 PCIe", 756.0),
    ("H100 NVL", 835.0),
    ("H100", 989.0),
    ("A100", 312.0),
    ("L40S", 362.0),
    ("RTX 4090", 165.0),
    ("L4", 121.0),
)


@dataclass(frozen=True)
class StepFlops:
    """Floating-point operations of training, forward and backward: a token, a token asked for, a pair of tokens."""

    per_token: int
    per_asked_token: int
    per_pair: int

    def of(self, lengths: Sequence[int], num_asked: int) -> int:
        """For examples of ``lengths`` tokens, each seeing itself and what comes before it, ``num_asked`` asked for."""
        num_pairs = sum(length * (length + 1) // 2 for length in lengths)
        return self.per_token * sum(lengths) + self.per_asked_token * num_asked + self.per_pair * num_pairs


def step_flops(hf: nn.Module) -> StepFlops:
    """Read the counts off a model as it will be trained: frozen where it is frozen, with adapters where it has them."""
    language_model = hf.model.language_model
    text = language_model.config
    head_size = getattr(text, "head_dim", None) or text.hidden_size // text.num_attention_heads
    layers = (layer for layer in language_model.modules() if isinstance(layer, nn.Linear))
    return StepFlops(
        per_token=sum(_of_matrix(layer) for layer in layers),
        per_asked_token=_of_matrix(hf.lm_head),
        per_pair=_A_PAIR * text.num_hidden_layers * text.num_attention_heads * head_size,
    )


def known_peak_tflops(device_name: str) -> float | None:
    """Peak of a GPU in dense bfloat16 TFLOP/s, by its name; None for one that is not listed, and for a CPU."""
    return next((peak for name, peak in _PEAK_TFLOPS if name.lower() in device_name.lower()), None)


def _of_matrix(layer: nn.Linear) -> int:
    # Of the features, not of the tensor: a quantised one is packed.
    factor = _TRAINED if layer.weight.requires_grad else _FROZEN
    return factor * layer.in_features * layer.out_features
