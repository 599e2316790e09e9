"""Thirty checkpoint folders, ten kinds in each family: loaded as transformers loads them, or refused in one line."""

import json
import shutil

import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file
from tiny_inputs import frames

from streamingvlm import StreamingSession
from streamingvlm.errors import CheckpointError
from streamingvlm.model.loading import load_model

FAMILIES = ["qwen2_vl", "qwen2_5_vl", "qwen3_vl"]


def leave(folder):
    pass


def write(name, **values):
    return lambda folder: (folder / name).write_text(json.dumps(values))


def state(**values):
    def spoil(folder):
        config = json.loads((folder / "config.json").read_text())
        (folder / "config.json").write_text(json.dumps(config | values))

    return spoil


def store_in_bfloat16(folder):
    weights = load_file(folder / "model.safetensors")
    halved = {name: tensor.bfloat16() for name, tensor in weights.items()}
    save_file(halved, folder / "model.safetensors", metadata={"format": "pt"})


def lose_a_weight(folder):
    weights = load_file(folder / "model.safetensors")
    weights.pop(next(name for name in weights if name.endswith("mlp.down_proj.weight")))
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})


def adapter_alone(folder):
    write("adapter_config.json", base_model_name_or_path="someone/base")(folder)
    (folder / "config.json").unlink()


LOADED = {
    "as released": leave,
    "16-bit weights": store_in_bfloat16,
    "processor files": write("preprocessor_config.json", image_mean=[0.5] * 3, image_std=[0.5] * 3, max_pixels=50176),
    "sampling": write("generation_config.json", temperature=0.3, top_p=0.9),
}
REFUSED = {
    "gptq": (state(quantization_config={"quant_method": "gptq", "bits": 4}), "is quantised by gptq"),
    "bitsandbytes": (state(quantization_config={"load_in_4bit": True}), "is quantised by bitsandbytes"),
    "adapter alone": (adapter_alone, "holds an adapter alone"),
    "adapter beside": (write("adapter_config.json"), "has an adapter (adapter_config.json) beside a whole model"),
    "lost weight": (lose_a_weight, "mlp.down_proj.weight"),
    "wrong patches": (write("preprocessor_config.json", patch_size=7), "has patch_size=7, but config.json says"),
}


@pytest.fixture
def folder(tiny_checkpoint, tmp_path, request):
    return shutil.copytree(tiny_checkpoint(request.param), tmp_path / "copy")


@pytest.mark.parametrize("folder", FAMILIES, indirect=True)
@pytest.mark.parametrize("change", LOADED.values(), ids=LOADED)
def test_a_whole_folder_is_loaded_as_transformers_loads_it_and_streams(folder, change):
    change(folder)
    stock = transformers.AutoModelForImageTextToText.from_pretrained(folder, dtype=torch.float32)
    model = load_model(folder, device="cpu", dtype="float32")
    loaded = dict(model.hf.named_parameters())
    assert all(torch.equal(weights, loaded[name]) for name, weights in stock.named_parameters())
    session = StreamingSession(model, video={"min_pixels": 3136, "max_pixels": 6272}, sampling={"max_new_tokens": 3})
    for turn in range(3):
        assert session.step(frames(turn)).num_tokens > 0


@pytest.mark.parametrize("folder", FAMILIES, indirect=True)
@pytest.mark.parametrize(("change", "message"), REFUSED.values(), ids=REFUSED)
def test_a_folder_that_cannot_be_used_is_refused_in_one_line(folder, change, message, capfd):
    change(folder)
    with pytest.raises(CheckpointError) as error:
        load_model(folder, device="cpu")
    assert message in str(error.value) and str(folder) in str(error.value)
    assert "\n" not in str(error.value)
    assert capfd.readouterr() == ("", "")
