"""Weights in 8 or 4 bits, by the quantisation that transformers has for them; torchao and bitsandbytes do the work.

What is quantised are the matrices of the language model, which are read anew for every token. The vision tower and the
head stay as they are.
"""

from collections.abc import Callable
from importlib.util import find_spec
from typing import TYPE_CHECKING

import torch

from streamingvlm.errors import ConfigError

if TYPE_CHECKING:
    from transformers.utils.quantization_config import QuantizationConfigMixin

_LEFT_WHOLE = ["model.visual", "lm_head"]


def quantization_named(name: str, dtype: torch.dtype) -> "QuantizationConfigMixin":
    """The configuration of transformers for one of `QUANTIZATIONS`; ``dtype``: in which products are computed.

    Raises ConfigError for another name, and where the package that does it is not installed.
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
    """Quantise a language model that was not loaded but drawn. Raises ConfigError for what only loading can do."""
    if not hasattr(quantization, "get_apply_tensor_subclass"):
        raise ConfigError(
            f"random weights cannot be quantised by {quantization.quant_method}; choose one of {', '.join(_BY_TORCHAO)}"
        )
    from torchao.quantization import quantize_ as quantize_by_torchao_

    quantize_by_torchao_(text_model, quantization.get_apply_tensor_subclass())


def check_quantised(text_model: torch.nn.Module):
    """Raise ConfigError for a matrix that quantisation has spoilt: of a row of zeros torchao's fp8 makes no numbers."""
    for name, module in text_model.named_modules():
        weight = getattr(module, "weight", None)
        if hasattr(weight, "__tensor_flatten__") and not weight.dequantize().isfinite().all():
            raise ConfigError(f"model.quantization makes numbers that are none in {name}; choose another, such as int8")


def _by_torchao(config_name: str) -> Callable[[torch.dtype], "QuantizationConfigMixin"]:
    def build(_dtype: torch.dtype) -> "QuantizationConfigMixin":
        import torchao.quantization
        from transformers import TorchAoConfig

        return TorchAoConfig(getattr(torchao.quantization, config_name)(), modules_to_not_convert=_LEFT_WHOLE)

    return build


def _in_int8_by_bitsandbytes(_dtype: torch.dtype) -> "QuantizationConfigMixin":
    from transformers import BitsAndBytesConfig

    return BitsAndBytesConfig(load_in_8bit=True, llm_int8_skip_modules=_LEFT_WHOLE)


def nf4(dtype: torch.dtype) -> "QuantizationConfigMixin":
    """4-bit NormalFloat with quantised scales (Dettmers et al., QLoRA, arXiv 2305.14314)."""
    from transformers import BitsAndBytesConfig

    return BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type="nf4",
        bnb_4bit_use_double_quant=True,
        bnb_4bit_compute_dtype=dtype,
        llm_int8_skip_modules=_LEFT_WHOLE,
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
"""Name of a quantisation -> the package that does it, and what makes its configuration.

``dynamic`` quantises what comes in, too: the products themselves are of 8 bits, which should pay in prefill.
fp8_dynamic needs a GPU that has them.
"""
