"""Weights in 8 or 4 bits, by torchao and bitsandbytes through transformers, and checkpoints that are stored so.

Only the matrices of the language model are quantised, because every decode step reads all of them. The vision tower and
the LM head are not.
"""

from collections.abc import Callable, Mapping
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from streamingvlm.errors import CheckpointError, ConfigError

if TYPE_CHECKING:
    from transformers.utils.quantization_config import QuantizationConfigMixin

_NOT_QUANTISED = ["model.visual", "lm_head"]


def quantization_named(name: str, dtype: torch.dtype) -> "QuantizationConfigMixin":
    """Return the transformers configuration for a name in `QUANTIZATIONS`; ``dtype`` is the dtype of products.

    Raises ConfigError for another name, or if the required package is not installed.
    """
    if name not in QUANTIZATIONS:
        raise ConfigError(f"model.quantization={name} is unknown; choose one of {', '.join(QUANTIZATIONS)}")
    package, build = QUANTIZATIONS[name]
    if find_spec(package) is None:
        raise ConfigError(
            f'model.quantization={name} needs {package}, which is not installed; pip install "streamingvlm[quant]"'
        )
    return build(dtype)


def quantize_(text_model: torch.nn.Module, quantization: "QuantizationConfigMixin"):
    """Quantise a model with random weights in place. Raises ConfigError for a method that works only while loading."""
    if not hasattr(quantization, "get_apply_tensor_subclass"):
        raise ConfigError(
            f"random weights cannot be quantised by {quantization.quant_method}; choose one of {', '.join(_BY_TORCHAO)}"
        )
    from torchao.quantization import quantize_ as quantize_by_torchao_

    quantize_by_torchao_(text_model, quantization.get_apply_tensor_subclass())


def check_quantised(text_model: torch.nn.Module, method: str):
    """Raise ConfigError if a quantised matrix has NaN: torchao's fp8 makes them of a row of zeros."""
    for name, module in text_model.named_modules():
        weight = getattr(module, "weight", None)
        if hasattr(weight, "__tensor_flatten__") and not weight.dequantize().isfinite().all():
            raise ConfigError(
                f"model.quantization={method} produced NaN weights in {name}; choose another, such as int8"
            )


def stored_quantization(config_json: Mapping[str, Any], folder: Path) -> str | None:
    """Return the method by which a checkpoint's weights are stored, such as ``awq``; None if they are not quantised.

    Raises CheckpointError for a method that transformers does not have.
    """
    from transformers.quantizers.auto import AUTO_QUANTIZATION_CONFIG_MAPPING

    stored = config_json.get("quantization_config")
    if stored is None:
        return None
    method = stored.get("quant_method") if isinstance(stored, dict) else None
    if isinstance(stored, dict) and (stored.get("load_in_4bit") or stored.get("load_in_8bit")):
        return "bitsandbytes"
    if method not in AUTO_QUANTIZATION_CONFIG_MAPPING:
        raise CheckpointError(
            f"{folder} is quantised by {method!r}, which transformers cannot load; give one that is not quantised"
        )
    return method


def check_products_(hf: nn.Module, dtype: torch.dtype):
    """Bring what a stored quantisation left in another dtype to ``dtype``, and try each kind of quantised layer once.

    Raises the errors of their kernels, which would else come with the first second of a stream.
    """
    if not getattr(hf, "is_quantized", False):
        # Else transformers quantises the weights again when it saves them, and config.json does not say so.
        conversions = getattr(hf, "_weight_conversions", None) or []
        hf._weight_conversions = [each for each in conversions if not hasattr(each, "operations")]
    kinds: dict[type, nn.Module] = {}
    for module in hf.modules():
        if _is_plain(module):
            for weight in module.parameters(recurse=False):
                weight.data = weight.data.to(dtype)
        elif hasattr(module, "in_features"):
            kinds.setdefault(type(module), module)
    device = next(hf.parameters()).device
    with torch.inference_mode():
        for module in kinds.values():
            product = module(torch.ones(2, module.in_features, dtype=dtype, device=device))
            if product.dtype != dtype or not product.isfinite().all():
                raise RuntimeError(f"{type(module).__name__} gives {product.dtype} that is not finite, or not {dtype}")


def _is_plain(module: nn.Module) -> bool:
    """Return True for layers of torch and of the model's own file that no quantisation has changed."""
    owner = type(module).__module__
    is_quantised = hasattr(module, "quantization_scheme") or any(
        not weight.dtype.is_floating_point or weight.dtype.itemsize < 2 for weight in module.parameters(recurse=False)
    )
    return owner.startswith(("torch.nn.", "transformers.models.")) and not is_quantised


def _by_torchao(config_name: str) -> Callable[[torch.dtype], "QuantizationConfigMixin"]:
    def build(_dtype: torch.dtype) -> "QuantizationConfigMixin":
        import torchao.quantization
        from transformers import TorchAoConfig

        return TorchAoConfig(getattr(torchao.quantization, config_name)(), modules_to_not_convert=_NOT_QUANTISED)

    return build


def _in_int8_by_bitsandbytes(_dtype: torch.dtype) -> "QuantizationConfigMixin":
    from transformers import BitsAndBytesConfig

    return BitsAndBytesConfig(load_in_8bit=True, llm_int8_skip_modules=_NOT_QUANTISED)


def nf4(dtype: torch.dtype) -> "QuantizationConfigMixin":
    """4-bit NormalFloat with quantised scales (Dettmers et al., QLoRA, arXiv 2305.14314)."""
    from transformers import BitsAndBytesConfig

    return BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type="nf4",
        bnb_4bit_use_double_quant=True,
        bnb_4bit_compute_dtype=dtype,
        llm_int8_skip_modules=_NOT_QUANTISED,
    )


_BY_TORCHAO = {
    "int8": "Int8WeightOnlyConfig",
    "int8_dynamic": "Int8DynamicActivationInt8WeightConfig",
    "fp8": "Float8WeightOnlyConfig",
    "fp8_dynamic": "Float8DynamicActivationFloat8WeightConfig",
}
QUANTIZATIONS: dict[str, tuple[str, Callable[[torch.dtype], "QuantizationConfigMixin"]]] = {
    **{name: ("torchao", _by_torchao(config_name)) for name, config_name in _BY_TORCHAO.items()},
    "int8_bnb": ("bitsandbytes", _in_int8_by_bitsandbytes),
    "nf4": ("bitsandbytes", nf4),
}
"""Name of a quantisation -> the package that it needs, and a function from a dtype to its configuration.

The ``dynamic`` ones quantise activations as well, so that products run in 8 bits, which should speed up prefill.
fp8_dynamic needs a GPU with 8-bit float products.
"""
