"""Weights in fewer bits: by name, with the remedy where a package is absent, and near the whole model."""

import importlib.util

import pytest
import torch

from streamingvlm.benchmark.random_weights import random_model
from streamingvlm.benchmark.roofline import num_bytes
from streamingvlm.cli.architectures import architecture_named
from streamingvlm.errors import ConfigError
from streamingvlm.model import quantization
from streamingvlm.model.loading import load_model
from streamingvlm.model.quantization import QUANTIZATIONS, quantization_named, quantize_


def test_an_unknown_name_is_refused_with_the_known_ones():
    with pytest.raises(
        ConfigError, match=r"model\.quantization=int3 is unknown; choose one of int8, int8_dynamic, fp8"
    ):
        load_model("pitch", device="cpu", quantization="int3")


@pytest.mark.parametrize("name", QUANTIZATIONS)
def test_a_missing_package_is_named_with_the_remedy(name, monkeypatch):
    monkeypatch.setattr(quantization, "find_spec", lambda _package: None)
    package, _ = QUANTIZATIONS[name]
    with pytest.raises(ConfigError, match=rf'needs {package}, .*pip install "streamingvlm\[quant\]"'):
        quantization_named(name, torch.float32)


def needs(package):
    return pytest.mark.skipif(
        importlib.util.find_spec(package) is None, reason=f"{package}, of the extra quant, is absent"
    )


@pytest.mark.parametrize(
    "name, most",
    [
        pytest.param("int8", 0.3, marks=needs("torchao")),
        pytest.param("nf4", 0.2, marks=needs("bitsandbytes")),
    ],
)
def test_the_language_model_shrinks_and_stays_near(name, most):
    whole, light = (load_model("pitch", device="cpu", quantization=how) for how in (None, name))
    matrices = [model.text_model.layers[0].mlp.up_proj.weight for model in (whole, light)]
    assert num_bytes(matrices[1]) < most * num_bytes(matrices[0])
    for part in (light.hf.model.visual.blocks[0].attn.qkv, light.lm_head):
        assert type(part.weight) is torch.nn.Parameter and part.weight.dtype == torch.float32
    ids = torch.arange(20)[None]
    with torch.inference_mode():
        states = [model.text_model(input_ids=ids).last_hidden_state for model in (whole, light)]
    assert 0 < (states[1] - states[0]).norm() < 0.3 * states[0].norm()


@needs("torchao")
def test_nan_weights_are_reported():
    with pytest.raises(
        ConfigError,
        match=r"quantization=fp8 produced NaN weights in layers\.0\.self_attn\.q_proj; choose",
    ):
        load_model("pitch", device="cpu", quantization="fp8")


@needs("torchao")
def test_a_failed_conversion_is_reported_with_the_remedy():
    with pytest.raises(ConfigError, match=r"this model\.quantization does not work on cpu \(.*such as int8"):
        load_model("pitch", device="cpu", quantization="fp8_dynamic")


@needs("torchao")
@pytest.mark.parametrize("name", ["int8", "fp8"])
def test_random_weights_can_be_quantised_where_they_are(name):
    model = random_model(architecture_named("tiny"), device=torch.device("cpu"), dtype=torch.float32)
    before = num_bytes(model.text_model.layers[0].mlp.up_proj.weight)
    quantize_(model.text_model, quantization_named(name, torch.float32))
    assert num_bytes(model.text_model.layers[0].mlp.up_proj.weight) < 0.4 * before
    with torch.inference_mode():
        assert model.text_model(input_ids=torch.arange(9)[None]).last_hidden_state.isfinite().all()


def test_methods_that_work_only_while_loading_are_refused_for_random_weights():
    class ByLoading:
        quant_method = "bitsandbytes"

    with pytest.raises(ConfigError, match="cannot be quantised by bitsandbytes; choose one of int8"):
        quantize_(torch.nn.Linear(2, 2), ByLoading())
