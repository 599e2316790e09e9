"""FLOPs of a training step, by formula, and the peak FLOP rates of common GPUs.

Model FLOPs utilisation (MFU) is the FLOPs that the model needs over the device's peak; recomputation, such as
activation checkpointing, does not count (Chowdhery et al., PaLM, arXiv 2204.02311, App. B). Their 6 N + 12 L H Q T per
token becomes:

* 6 per trained matrix weight and token, and 4 per frozen one: 2 for the forward pass, 2 for the gradient of the input,
  which flows through frozen layers to the adapters, and 2 for the gradient of the weight (Kaplan et al., arXiv
  2001.08361, Sec. 2.1).
* 12 per layer, head and head dimension for each (query, key) pair inside an example, under the causal mask: half of
  PaLM's count for a sequence, and nothing across the examples of a pack.
* the head at supervised tokens only, as in `SFTModel`.

The vision tower is not counted: when frozen, most of its features come from the cache.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from torch import nn

_PER_TRAINED_WEIGHT, _PER_FROZEN_WEIGHT = 6, 4
_PER_PAIR = 12

# Dense bfloat16 without sparsity, from NVIDIA's data sheets; the first entry contained in a device's name applies.
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
    """Floating-point operations of forward and backward, per token, per supervised token and per attention pair."""

    per_token: int
    per_supervised_token: int
    per_pair: int

    def of(self, lengths: Sequence[int], num_supervised: int) -> int:
        """Return the FLOPs of examples of ``lengths`` tokens, of which ``num_supervised`` in total are supervised."""
        num_pairs = sum(length * (length + 1) // 2 for length in lengths)
        return self.per_token * sum(lengths) + self.per_supervised_token * num_supervised + self.per_pair * num_pairs


def step_flops(hf: nn.Module) -> StepFlops:
    """Derive the counts from a model in its training state, with frozen weights frozen and adapters in place."""
    language_model = hf.model.language_model
    text = language_model.config
    head_size = getattr(text, "head_dim", None) or text.hidden_size // text.num_attention_heads
    layers = (layer for layer in language_model.modules() if isinstance(layer, nn.Linear))
    return StepFlops(
        per_token=sum(_of_layer(layer) for layer in layers),
        per_supervised_token=_of_layer(hf.lm_head),
        per_pair=_PER_PAIR * text.num_hidden_layers * text.num_attention_heads * head_size,
    )


def known_peak_tflops(device_name: str) -> float | None:
    """Return the dense bfloat16 peak of a GPU in TFLOP/s by its name; None for a CPU and for an unlisted GPU."""
    return next((peak for name, peak in _PEAK_TFLOPS if name.lower() in device_name.lower()), None)


def _of_layer(layer: nn.Linear) -> int:
    # From the features, not from the shape of the weight, because quantised weights are packed.
    factor = _PER_TRAINED_WEIGHT if layer.weight.requires_grad else _PER_FROZEN_WEIGHT
    return factor * layer.in_features * layer.out_features
