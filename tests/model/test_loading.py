import json
import re
import shutil

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import sdpa_mask

from streamingvlm.errors import CheckpointError, ConfigError
from streamingvlm.model.checkpoint import EMBEDDED
from streamingvlm.model.family import FAMILIES
from streamingvlm.model.loading import load_model


@pytest.fixture
def folder(tiny_checkpoint, tmp_path):
    """Give a copy of a tiny checkpoint, to be spoilt."""
    return shutil.copytree(tiny_checkpoint("qwen2_5_vl"), tmp_path / "copy")


def edit_config(folder, **values):
    path = folder / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **values}))


def edit_weights(folder, edit):
    weights = load_file(folder / "model.safetensors")
    edit(weights)
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})


def bare(key):
    """Cut the prefixes by which files and versions of transformers differ."""
    return re.sub(r"^(model\.)?((language_model|visual)\.)?", "", key)


@pytest.mark.parametrize("model_type", FAMILIES)
def test_every_family_loads_with_the_weights_of_its_file(tiny_checkpoint, model_type):
    folder = tiny_checkpoint(model_type)
    model = load_model(folder, device="cpu")
    loaded = {bare(key): value for key, value in model.hf.state_dict().items()}
    saved = {bare(key): value for key, value in load_file(folder / "model.safetensors").items()}
    assert loaded.keys() - saved.keys() == {"lm_head.weight"}
    assert all(torch.equal(loaded[key], value) for key, value in saved.items())
    assert torch.equal(loaded["lm_head.weight"], saved["embed_tokens.weight"])
    assert not model.hf.training
    assert model.family.model_type == model_type
    assert model.tokenizer.encode("<|video_pad|>") == [model.hf.config.video_token_id]


def test_defaults_are_float32_on_the_cpu_and_no_settings(tiny_checkpoint):
    model = load_model(str(tiny_checkpoint()), device="cpu")
    assert model.dtype == model.hf.dtype == torch.float32
    assert model.device == model.hf.device == torch.device("cpu")
    assert model.stream_defaults == {}


@pytest.mark.parametrize("dtype", ["bfloat16", torch.bfloat16])
def test_weights_take_the_dtype_asked_for(tiny_checkpoint, dtype):
    model = load_model(tiny_checkpoint(), device="cpu", dtype=dtype)
    assert {parameter.dtype for parameter in model.hf.parameters()} == {torch.bfloat16}
    assert (
        model.vision_encoder(min_pixels=1).features(torch.zeros(2, 3, 56, 56, dtype=torch.uint8))[0].dtype
        == torch.bfloat16
    )


def test_a_checkpoint_carries_its_own_settings(folder):
    edit_config(folder, streamingvlm={"fps": 4.0, "previous_text": "Red against Blue."})
    assert load_model(folder, device="cpu").stream_defaults == {"fps": 4.0, "previous_text": "Red against Blue."}


def test_the_flat_config_of_the_first_checkpoints_is_read(tiny_checkpoint, tmp_path):
    """Qwen2-VL, and with it LiveCC, was published before the text model's settings had an object of their own."""
    folder = shutil.copytree(tiny_checkpoint("qwen2_vl"), tmp_path / "flat")
    config = json.loads((folder / "config.json").read_text())
    text = config.pop("text_config")
    text["rope_scaling"] = {"type": "mrope", "mrope_section": text.pop("rope_parameters")["mrope_section"]}
    unsaid = ("model_type", "layer_types", "head_dim")
    config |= {key: value for key, value in text.items() if key not in unsaid} | {"rope_theta": 1e6}
    vision = {"in_chans": 3, "spatial_patch_size": 14} | config["vision_config"]
    config["vision_config"] = {key: vision[key] for key in vision if key not in ("model_type", "rope_parameters")}
    (folder / "config.json").write_text(json.dumps(config))
    flat, nested = (load_model(path, device="cpu") for path in (folder, tiny_checkpoint("qwen2_vl")))
    assert flat.family == nested.family
    ids, positions = torch.arange(12)[None], torch.arange(36).view(3, 1, 12)
    outputs = [m.text_model(input_ids=ids, position_ids=positions).last_hidden_state for m in (flat, nested)]
    assert torch.equal(*outputs)
    frames = torch.arange(2 * 3 * 56 * 56, dtype=torch.uint8).view(2, 3, 56, 56)
    assert torch.equal(
        flat.vision_encoder().features(frames).embeddings, nested.vision_encoder().features(frames).embeddings
    )


def test_vision_sizes_come_from_the_config(tiny_checkpoint):
    assert load_model(tiny_checkpoint("qwen2_5_vl"), device="cpu").family.tokens_per_second == 2
    assert load_model(tiny_checkpoint("qwen3_vl"), device="cpu").family.size_factor == 32


def test_the_text_attention_is_chosen_by_its_registered_name(tiny_checkpoint):
    calls = []

    def counted(module, *tensors, **options):
        calls.append(type(module).__name__)
        return sdpa_attention_forward(module, *tensors, **options)

    AttentionInterface.register("counted", counted)
    AttentionMaskInterface.register("counted", sdpa_mask)
    ids = torch.arange(12)[None]
    positions = torch.arange(12).expand(3, 1, 12)
    stock, chosen = (load_model(tiny_checkpoint(), device="cpu", attention=name) for name in (None, "counted"))
    expected, actual = (
        model.text_model(input_ids=ids, position_ids=positions).last_hidden_state for model in (stock, chosen)
    )
    assert len(calls) == chosen.hf.config.text_config.num_hidden_layers
    assert torch.equal(expected, actual)
    chosen.vision_encoder().features(torch.zeros(2, 3, 56, 56, dtype=torch.uint8))
    assert len(calls) == chosen.hf.config.text_config.num_hidden_layers


def test_loading_prints_nothing(tiny_checkpoint, capfd):
    load_model(tiny_checkpoint(), device="cpu")
    assert capfd.readouterr() == ("", "")


def test_shards_load_as_one_file(tiny_checkpoint, tmp_path):
    whole = load_model(tiny_checkpoint(), device="cpu")
    folder = shutil.copytree(tiny_checkpoint(), tmp_path / "sharded", ignore=shutil.ignore_patterns("*.safetensors"))
    whole.hf.save_pretrained(folder, max_shard_size="200KB")
    assert len(list(folder.glob("model-*.safetensors"))) > 1
    sharded = load_model(folder, device="cpu").hf.state_dict()
    assert all(torch.equal(value, sharded[key]) for key, value in whole.hf.state_dict().items())

    min(folder.glob("model-*.safetensors")).unlink()
    with pytest.raises(CheckpointError, match=r"lacks 1 of \d+ shards \(model-00001-of-.*\); copy them there"):
        load_model(folder)


@pytest.fixture
def offline_hub(monkeypatch, tmp_path):
    """Turn the hub off and give the folder of its local copies."""
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub"))
    return tmp_path / "hub"


def test_a_hub_name_loads_from_the_local_copies(tiny_checkpoint, offline_hub):
    copies = offline_hub / "models--someone--some-vlm"
    revision = "0" * 40
    shutil.copytree(tiny_checkpoint(), copies / "snapshots" / revision)
    (copies / "refs").mkdir()
    (copies / "refs" / "main").write_text(revision)
    model = load_model("someone/some-vlm", device="cpu")
    assert model.name == "someone/some-vlm"
    assert model.family.model_type == "qwen2_5_vl"


def test_a_failed_download_is_reported(offline_hub):
    with pytest.raises(CheckpointError) as error:
        load_model("someone/some-vlm")
    assert "someone/some-vlm is not a folder and cannot be downloaded from the hub (" in str(error.value)
    assert str(error.value).endswith("check the name and the network, or give the folder of a copy")


def without(*names):
    return lambda folder: [(folder / name).unlink() for name in names]


def pickled(folder):
    (folder / "model.safetensors").rename(folder / "pytorch_model.bin")


def cut_short(folder):
    content = (folder / "model.safetensors").read_bytes()
    (folder / "model.safetensors").write_bytes(content[: len(content) // 2])


def garbled_weights(folder):
    (folder / "model.safetensors").write_bytes(b"not a tensor" * 99)


def lost_weight(folder):
    edit_weights(folder, lambda weights: weights.pop("model.norm.weight"))


def extra_weight(folder):
    edit_weights(folder, lambda weights: weights.update({"model.extra.weight": torch.zeros(1)}))


def misshapen_weight(folder):
    edit_weights(folder, lambda weights: weights.update({"model.norm.weight": torch.zeros(5)}))


def nan_weight(folder):
    edit_weights(folder, lambda weights: weights["model.norm.weight"].fill_(torch.nan))


def integer_weights(folder):
    name = "model.layers.0.mlp.down_proj.weight"
    edit_weights(folder, lambda weights: weights.update({name: weights[name].to(torch.int8)}))


def shards_elsewhere(folder):
    (folder / "model.safetensors").rename(folder.parent / "model.safetensors")
    index = {"weight_map": {"model.norm.weight": "../model.safetensors"}}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))


def text_config(**values):
    def spoil(folder):
        config = json.loads((folder / "config.json").read_text())
        edit_config(folder, text_config={**config["text_config"], **values})

    return spoil


def yarn(folder):
    text_config(rope_parameters={"rope_type": "yarn", "factor": 4.0, "rope_theta": 1e6, "mrope_section": [2, 3, 3]})(
        folder
    )


def write(name, content):
    return lambda folder: (folder / name).write_text(content)


def rope(*section):
    return text_config(rope_parameters={"rope_type": "default", "rope_theta": 1e6, "mrope_section": list(section)})


def vision_config(**values):
    def spoil(folder):
        config = json.loads((folder / "config.json").read_text())
        edit_config(folder, vision_config={**config["vision_config"], **values})

    return spoil


def adapter_beside(folder):
    (folder / "adapter_config.json").write_text(json.dumps({"base_model_name_or_path": "someone/base"}))


def adapter_alone(folder):
    adapter_beside(folder)
    (folder / "config.json").unlink()


def adapter_of_ours(folder):
    adapter_alone(folder)
    (folder / "streamingvlm.json").write_text("{}")


SPOILT = {
    "sections above half a head": (rope(4, 3, 3), "mrope_section=[4, 3, 3], expected 3 numbers that add up to 8, half"),
    "sections below half a head": (rope(2, 3, 2), "mrope_section=[2, 3, 2], expected 3 numbers that add up to 8, half"),
    "two sections": (rope(4, 4), "mrope_section=[4, 4], expected 3 numbers that add up to 8, half of a head"),
    "no sections": (text_config(rope_parameters={"rope_type": "default", "rope_theta": 1e6}), "has mrope_section=None"),
    "heads that share no keys": (text_config(num_key_value_heads=3), "expected a multiple of num_key_value_heads=3"),
    "tower of another width": (vision_config(out_hidden_size=32), "out_hidden_size=32, expected the text model's 64"),
    "tower of odd heads": (vision_config(num_heads=3), "vision_config.num_heads=3, expected heads of a multiple of 4"),
    "tower of fewer layers": (vision_config(fullatt_block_indexes=[9]), "with 9, expected layers below depth=2"),
    "no positions a second": (vision_config(tokens_per_second=0), "tokens_per_second=0, expected a number above 0"),
    "adapter beside the model": (adapter_beside, "has an adapter (adapter_config.json) beside a whole model"),
    "adapter of another tool": (adapter_alone, "holds an adapter alone, and it was not trained here"),
    "adapter of ours": (adapter_of_ours, "holds an adapter alone; merge it first: streamingvlm merge"),
    "no config": (without("config.json"), "has no config.json; give a model folder in the layout of Hugging Face"),
    "config of no json": (write("config.json", "{"), "is not JSON (Expecting property name"),
    "config of a list": (write("config.json", "[]"), "holds no JSON object; copy it again"),
    "config of nonsense": (
        text_config(hidden_size="wide"),
        "cannot be used (Validation error for field 'hidden_size')",
    ),
    "llama": (
        lambda folder: edit_config(folder, model_type="llama"),
        "is a checkpoint of architecture 'llama', which cannot stream; give one of qwen2_vl, qwen2_5_vl, qwen3_vl",
    ),
    "yarn": (yarn, "has rotary positions of type 'yarn', expected 'default'"),
    "sliding window": (
        text_config(use_sliding_window=True, sliding_window=8, layer_types=["full_attention", "sliding_attention"]),
        "has sliding-window layers; set use_sliding_window to false in config.json",
    ),
    "settings of a list": (
        lambda folder: edit_config(folder, streamingvlm=[1]),
        "is [1], expected an object of settings",
    ),
    "turn format of another time": (
        lambda folder: edit_config(folder, streamingvlm={"turn_format": "time-range-9"}),
        "was trained with the turn format 'time-range-9', expected one of time-range-1, patch-seconds-1; use the",
    ),
    "setting by its old name": (
        lambda folder: edit_config(folder, streamingvlm={"fps": 2.0, "chunk_s": 1.0}),
        "was renamed to streamingvlm.turn_s; rename it there",
    ),
    "misspelt setting": (
        lambda folder: edit_config(folder, streamingvlm={"vision_windw_s": 8.0}),
        "has 'vision_windw_s', which is unknown; vision_window_s is meant",
    ),
    "setting of another type": (
        lambda folder: edit_config(folder, streamingvlm={"fps": "two"}),
        "cannot be used: video.fps='two' is not a number",
    ),
    "sampling out of range": (
        write("generation_config.json", '{"top_p": 2}'),
        "the settings in the processor files of",
    ),
    "weights of NaN": (nan_weight, "are not finite (model.language_model.norm.weight); the training that wrote them"),
    "8-bit weights": (
        integer_weights,
        "has weights of type I8 (model.layers.0.mlp.down_proj.weight), but config.json has no quantization_config",
    ),
    "shards elsewhere": (shards_elsewhere, "names ../model.safetensors, expected the name of a file beside it"),
    "no weights": (without("model.safetensors"), "has no weights; put model.safetensors"),
    "pickled weights": (pickled, "has only pytorch_model.bin, which can execute code when read; put model.safetensors"),
    "index of nonsense": (
        lambda folder: (without("model.safetensors")(folder), write("model.safetensors.index.json", "{}")(folder)),
        "is not an index of shards",
    ),
    "weights cut short": (cut_short, "cannot be read (Error while deserializing header"),
    "garbled weights": (garbled_weights, "cannot be read (Error while deserializing header"),
    "lost weight": (lost_weight, "are missing (model.language_model.norm.weight)"),
    "extra weight": (extra_weight, "are not of this architecture (model.language_model.extra.weight)"),
    "misshapen weight": (
        misshapen_weight,
        "have another shape than config.json says (model.language_model.norm.weight)",
    ),
    "no tokenizer": (without("tokenizer.json"), "has no tokenizer; put tokenizer.json, or vocab.json and merges.txt"),
    "garbled tokenizer": (write("tokenizer.json", "{"), "cannot be read ("),
    "short vocabulary": (
        text_config(vocab_size=300),
        "expected more than the video token's id 319 and at most the model's 300",
    ),
}


@pytest.mark.parametrize(("spoil", "message"), SPOILT.values(), ids=SPOILT.keys())
def test_a_defect_of_a_checkpoint_is_reported_in_one_line(folder, spoil, message, capfd):
    spoil(folder)
    with pytest.raises(CheckpointError) as error:
        load_model(folder, device="cpu")
    found = str(error.value)
    assert message in found
    assert str(folder) in found
    assert "\n" not in found
    assert capfd.readouterr() == ("", "")


def test_names_without_a_checkpoint_are_reported(tmp_path):
    (tmp_path / "model.txt").write_text("no folder")
    with pytest.raises(
        CheckpointError, match=r"is a file, expected a model folder; give the folder that holds config\.json"
    ):
        load_model(tmp_path / "model.txt")
    with pytest.raises(
        CheckpointError, match=r"there is no model folder .*nowhere; give a folder, one of pitch, or a hub"
    ):
        load_model(tmp_path / "nowhere")
    with pytest.raises(CheckpointError, match=r"there is no model folder \./a; give a folder"):
        load_model("./a")


def test_a_missing_embedded_model_is_reported(monkeypatch, tmp_path):
    monkeypatch.setitem(EMBEDDED, "pitch", tmp_path / "absent")
    with pytest.raises(CheckpointError, match="the embedded model 'pitch' is missing from this installation"):
        load_model("pitch")


def test_the_embedded_name_wins_over_a_folder_of_that_name(monkeypatch, tmp_path, tiny_checkpoint):
    (tmp_path / "pitch").mkdir()
    monkeypatch.chdir(tmp_path)
    monkeypatch.setitem(EMBEDDED, "pitch", tiny_checkpoint())
    assert load_model("pitch", device="cpu").name == "pitch"


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"dtype": "float8"}, "dtype=float8 is unknown; choose one of float32, bfloat16, float16"),
        ({"dtype": torch.int64}, "dtype=torch.int64 is unknown; choose one of float32, bfloat16, float16"),
        ({"device": "gpu"}, "device=gpu is unknown; choose cpu, cuda or cuda:N"),
        ({"device": "cuda:99"}, r"device=cuda:99, but this machine has \d+ CUDA devices; choose cpu"),
    ],
)
def test_unknown_devices_and_dtypes_are_reported(tiny_checkpoint, options, message):
    with pytest.raises(ConfigError, match=message):
        load_model(tiny_checkpoint(), **options)
