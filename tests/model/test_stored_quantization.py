"""Checkpoints whose weights are stored in fewer bits: loaded as transformers does, or refused in one line at once."""

import importlib.util
import json
import re
import shutil

import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file
from transformers.quantizers import quantizer_compressed_tensors

from streamingvlm.errors import CheckpointError, ConfigError
from streamingvlm.model.checkpoint import save_checkpoint
from streamingvlm.model.loading import load_model

FP8 = {"quant_method": "fp8", "weight_block_size": [32, 32], "modules_to_not_convert": ["lm_head", "model.visual"]}
COMPRESSED = {
    "quant_method": "compressed-tensors",
    "format": "float-quantized",
    "config_groups": {
        "group_0": {
            "targets": ["Linear"],
            "weights": {"num_bits": 8, "type": "float", "strategy": "channel"},
            "input_activations": {"num_bits": 8, "type": "float", "strategy": "token", "dynamic": True},
        }
    },
    "ignore": ["lm_head", "re:.*visual.*"],
    "quantization_status": "compressed",
}
IN_BITSANDBYTES = {
    "nf4": {"load_in_4bit": True, "bnb_4bit_quant_type": "nf4"},
    "int8": {"load_in_8bit": True},
}


@pytest.fixture
def folder(tiny_checkpoint, tmp_path):
    return shutil.copytree(tiny_checkpoint("qwen2_5_vl"), tmp_path / "copy")


def state_quantization(folder, value):
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"quantization_config": value}))


def quantise(folder, block, suffix):
    """Store the language model's matrices as 8-bit floats, with a scale for each block; return what they stand for."""
    weights, exact = load_file(folder / "model.safetensors"), {}
    for name in [name for name in weights if "layers" in name and name.endswith("proj.weight")]:
        rows, columns = block[0], block[1] or weights[name].shape[1]
        blocks = weights[name].unflatten(0, (-1, rows)).unflatten(2, (-1, columns))
        scales = blocks.abs().amax((1, 3), keepdim=True) / 448
        stored = (blocks / scales).to(torch.float8_e4m3fn)
        exact[bare(name)] = (stored.float() * scales).flatten(2).flatten(0, 1)
        weights |= {name: stored.flatten(2).flatten(0, 1), name + suffix: scales[:, 0, :, 0].contiguous()}
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    return exact


def bare(key):
    """Cut the prefixes by which files and versions of transformers differ."""
    return re.sub(r"^(model\.)?((language_model|visual)\.)?", "", key)


def needs(package):
    return pytest.mark.skipif(
        importlib.util.find_spec(package) is None, reason=f"{package}, which is optional, is absent"
    )


def assert_streams(model):
    """Run the vision tower and the language model."""
    assert model.vision_encoder().features(torch.zeros(2, 3, 56, 56, dtype=torch.uint8)).embeddings.isfinite().all()
    with torch.inference_mode():
        assert model.text_model(input_ids=torch.arange(12)[None]).last_hidden_state.isfinite().all()


def test_blocks_of_8_bit_floats_are_dequantised_where_no_device_multiplies_them(folder, tmp_path):
    exact = quantise(folder, (32, 32), "_scale_inv")
    state_quantization(folder, FP8)
    model = load_model(folder, device="cpu")
    loaded = {bare(name): weights for name, weights in model.hf.state_dict().items()}
    assert {weights.dtype for weights in loaded.values()} == {torch.float32}
    assert exact and all(torch.equal(loaded[name], weights) for name, weights in exact.items())
    assert_streams(model)
    save_checkpoint(model.hf, tmp_path / "saved")
    saved = load_file(tmp_path / "saved" / "model.safetensors")
    assert all(torch.equal(saved[name], loaded[bare(name)]) for name in saved)


@needs("compressed_tensors")
def test_compressed_tensors_are_decompressed_on_a_cpu(folder):
    exact = quantise(folder, (1, None), "_scale")
    state_quantization(folder, COMPRESSED)
    model = load_model(folder, device="cpu")
    loaded = {bare(name): weights for name, weights in model.hf.state_dict().items()}
    assert exact and all(torch.allclose(loaded[name], weights, rtol=1e-2) for name, weights in exact.items())
    assert_streams(model)


@needs("bitsandbytes")
@pytest.mark.parametrize("options", IN_BITSANDBYTES.values(), ids=IN_BITSANDBYTES)
def test_what_bitsandbytes_has_stored_gives_transformers_own_states(tiny_checkpoint, tmp_path, options):
    config = transformers.BitsAndBytesConfig(**options, llm_int8_skip_modules=["model.visual", "lm_head"])
    stock = transformers.AutoModelForImageTextToText.from_pretrained(
        tiny_checkpoint("qwen2_5_vl"), quantization_config=config, device_map={"": "cpu"}, dtype=torch.float32
    )
    folder = shutil.copytree(tiny_checkpoint("qwen2_5_vl"), tmp_path / "stored")
    stock.save_pretrained(folder)
    model = load_model(folder, device="cpu")
    ids = torch.arange(12)[None]
    with torch.inference_mode():
        states = [text(input_ids=ids).last_hidden_state for text in (stock.model.language_model, model.text_model)]
    assert torch.equal(*states)
    assert_streams(model)


@pytest.mark.parametrize(
    ("stated", "message"),
    [
        ({"quant_method": "awq", "bits": 4}, "is quantised by awq, which does not work here on cpu ("),
        ({"quant_method": "gptq", "bits": 4}, "is quantised by gptq, which does not work here on cpu ("),
        ({"quant_method": "hqq", "quant_config": {}}, "is quantised by hqq, which does not work here on cpu ("),
        ({"quant_method": "quanto"}, "is quantised by quanto, which does not work here on cpu ("),
        ({"quant_method": "fbgemm_fp8"}, "is quantised by fbgemm_fp8, which does not work here on cpu ("),
        ({"load_in_4bit": True, "quant_method": "bitsandbytes"}, "is quantised by bitsandbytes, which does not work"),
        ({"load_in_8bit": True}, "is quantised by bitsandbytes, which does not work here on cpu ("),
        ({"quant_method": "zip"}, "is quantised by 'zip', which transformers cannot load; give one"),
        ([4], "is quantised by None, which transformers cannot load"),
    ],
)
def test_what_cannot_be_loaded_here_is_refused_in_one_line(folder, stated, message, capfd):
    """The weights beside them are whole: where a package is at hand, they are not what config.json says."""
    state_quantization(folder, stated)
    with pytest.raises(CheckpointError) as error:
        load_model(folder, device="cpu")
    assert message in str(error.value)
    assert "\n" not in str(error.value)
    assert capfd.readouterr() == ("", "")


def test_a_package_that_is_absent_is_named(folder, monkeypatch):
    monkeypatch.setattr(quantizer_compressed_tensors, "is_compressed_tensors_available", lambda: False)
    state_quantization(folder, COMPRESSED)
    with pytest.raises(CheckpointError, match=r"by compressed-tensors, which does not work .*pip install compressed-"):
        load_model(folder, device="cpu")


def test_weights_are_quantised_once(folder):
    state_quantization(folder, FP8)
    with pytest.raises(ConfigError, match=r"is quantised by fp8 already; leave model\.quantization=BitsAndBytesConfig"):
        load_model(folder, device="cpu", quantization=transformers.BitsAndBytesConfig(load_in_8bit=True))
