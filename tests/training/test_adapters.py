"""LoRA: only adapters are trained, they are saved in peft's format, and merging does not change the output."""

import importlib.util
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from streamingvlm.errors import CheckpointError, ConfigError
from streamingvlm.inference.session import StreamingSession
from streamingvlm.model.loading import load_model
from streamingvlm.training import adapters
from streamingvlm.training.adapters import (
    LoraSettings,
    base_fingerprint,
    load_adapter_,
    merge,
    qlora_quantization,
    save_adapter,
    with_lora_,
)
from streamingvlm.training.collate import Collate
from streamingvlm.training.examples import example_from
from streamingvlm.training.sft_model import SFTModel
from streamingvlm.turns import Turn, TurnFormat

ROOT = Path(__file__).parents[2]
FAMILIES = ("qwen2_vl", "qwen2_5_vl", "qwen3_vl")
STREAM = {"fps": 4.0, "min_pixels": 3136, "max_pixels": 3136, "vision_window_s": 3.0}


def load(folder, dtype="float32"):
    return load_model(folder, device="cpu", dtype=dtype)


def batch_for(model):
    """A chunk of three seconds with words to say."""
    turns = TurnFormat(model.tokenizer, temporal_step=1.0)
    seconds = [Turn(n, n, n + 1, (1, 2, 2)) for n in range(3)]
    tokens = turns.prologue("before")
    for second, words in zip(seconds, ("the ball is in", "", "says"), strict=True):
        tokens += turns.open_turn(second) + turns.reply(second, words)
    width = model.hf.config.text_config.hidden_size
    vision = torch.randn(12, width, generator=torch.Generator().manual_seed(0))
    return Collate(0)([example_from("chunk", tokens, vision)])


def hidden_of(model):
    """Return the logits of a text."""
    ids = torch.tensor([model.tokenizer.encode("the assistant says the ball is in")])
    with torch.no_grad():
        return model.lm_head(model.text_model(input_ids=ids, use_cache=False).last_hidden_state)


def randomize_(adapted, seed=1):
    """Randomize the adapters as if trained: the second matrix of LoRA is initialized to 0."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, weight in adapted.named_parameters():
            if "lora_" in name:
                weight.copy_(torch.randn(weight.shape, generator=generator) * 0.2)


@pytest.fixture
def trained(tiny_checkpoint, tmp_path):
    """A model of each family with a randomized adapter in place, and the folder where that is saved."""

    def make(family="qwen2_5_vl", name="adapter", **settings):
        model = load(tiny_checkpoint(family))
        adapted = with_lora_(model, LoraSettings(rank=4, **settings))
        randomize_(adapted)
        model.hf.config.streamingvlm = STREAM
        save_adapter(adapted, model.tokenizer, tmp_path / name)
        return model, tmp_path / name

    return make


@pytest.mark.parametrize("family", FAMILIES)
def test_every_linear_layer_of_the_language_model_and_no_other_gets_an_adapter(tiny_checkpoint, family):
    model = load(tiny_checkpoint(family))
    linear = [n for n, layer in model.hf.named_modules() if isinstance(layer, torch.nn.Linear)]
    adapted = with_lora_(model, LoraSettings(rank=4))
    got = {n.partition(".lora_A")[0] for n, _ in adapted.get_base_model().named_parameters() if "lora_A" in n}
    assert got == {name for name in linear if name.startswith("model.language_model.")}
    assert any("visual" in name for name in linear)


def test_chosen_layers_alone_and_unknown_ones_are_refused(tiny_checkpoint):
    adapted = with_lora_(load(tiny_checkpoint()), LoraSettings(target_modules=("q_proj", "v_proj")))
    assert {n.split(".")[-4] for n, _ in adapted.named_parameters() if "lora_A" in n} == {"q_proj", "v_proj"}
    with pytest.raises(ConfigError, match=r"qproj.*it has .*q_proj"):
        with_lora_(load(tiny_checkpoint()), LoraSettings(target_modules=("qproj",)))


def test_untrained_adapters_do_not_change_the_output(tiny_checkpoint):
    model = load(tiny_checkpoint())
    before = hidden_of(model)
    with_lora_(model, LoraSettings())
    assert torch.equal(hidden_of(model), before)


@pytest.mark.parametrize("family", ["qwen2_vl", "qwen2_5_vl"])
def test_the_loss_reaches_the_adapters_only(tiny_checkpoint, mean_loss, family):
    model = load(tiny_checkpoint(family))
    adapted = with_lora_(model, LoraSettings(rank=4))
    randomize_(adapted)
    mean_loss(SFTModel(model.hf), batch_for(model)).backward()
    moved = {name for name, weight in model.hf.named_parameters() if weight.grad is not None}
    assert moved == {name for name, _ in model.hf.named_parameters() if "lora_" in name}
    assert all(weight.grad.abs().sum() > 0 for name, weight in model.hf.named_parameters() if "lora_" in name)


def test_only_adapters_are_trained(tiny_checkpoint, mean_loss):
    torch.manual_seed(0)
    model = load(tiny_checkpoint())
    base = {name: weight.clone() for name, weight in model.hf.state_dict().items()}
    with_lora_(model, LoraSettings(rank=8))
    module, batch = SFTModel(model.hf), batch_for(model)
    optimizer = torch.optim.AdamW([w for w in module.parameters() if w.requires_grad], lr=2e-2)
    losses = []
    for _ in range(60):
        optimizer.zero_grad()
        losses.append(mean_loss(module, batch))
        losses[-1].backward()
        optimizer.step()
    assert losses[-1] < 0.9 * losses[0]
    after = {name.replace(".base_layer", ""): weight for name, weight in model.hf.state_dict().items()}
    assert all(torch.equal(weight, after[name]) for name, weight in base.items())


@pytest.mark.parametrize("family", FAMILIES)
def test_a_loaded_adapter_gives_the_output_of_the_saved_one(tiny_checkpoint, trained, family):
    model, folder = trained(family)
    again = load(tiny_checkpoint(family))
    plain = hidden_of(again)
    load_adapter_(again, folder)
    assert torch.equal(hidden_of(again), hidden_of(model))
    assert not torch.allclose(hidden_of(again), plain, atol=1e-2)
    assert {"adapter_config.json", "adapter_model.safetensors", "tokenizer.json"} <= {p.name for p in folder.iterdir()}
    assert not list(folder.glob("*.bin"))


def test_peft_alone_reads_the_folder(tiny_checkpoint, trained):
    from peft import PeftModel

    model, folder = trained()
    other = load(tiny_checkpoint())
    PeftModel.from_pretrained(other.hf, folder)
    assert torch.equal(hidden_of(other), hidden_of(model))


@pytest.mark.parametrize("family", FAMILIES)
def test_merged_equals_the_adapter_in_place(trained, tmp_path, family):
    model, folder = trained(family)
    merged = load(merge(folder, tmp_path / "merged", dtype="float32"))
    torch.testing.assert_close(hidden_of(merged), hidden_of(model), atol=1e-5, rtol=0)
    assert not [name for name, _ in merged.hf.named_parameters() if "lora" in name]


def test_a_merged_checkpoint_streams_as_it_was_trained(trained, tmp_path):
    _, folder = trained()
    session = StreamingSession.from_pretrained(merge(folder, tmp_path / "merged"), device="cpu")
    assert session.video_config.fps == 4.0
    assert session.cache_config.vision_window_s == 3.0
    frames = torch.zeros(4, 3, 56, 56, dtype=torch.uint8)
    assert [session.step(frames).num_tokens > 0 for _ in range(2)] == [True, True]


def test_a_model_with_its_adapter_in_place_streams(trained):
    model, _ = trained()
    session = StreamingSession(model, video={"min_pixels": 3136, "max_pixels": 3136})
    assert session.step(torch.zeros(2, 3, 56, 56, dtype=torch.uint8)).num_tokens > 0


def test_merging_keeps_the_type_of_the_base(tiny_checkpoint, tmp_path):
    base = tmp_path / "base"
    load(tiny_checkpoint(), "bfloat16").hf.save_pretrained(base)
    load(tiny_checkpoint()).tokenizer.save_pretrained(base)
    model = load(base)
    adapted = with_lora_(model, LoraSettings(rank=4))
    randomize_(adapted)
    save_adapter(adapted, model.tokenizer, tmp_path / "adapter")
    weights = load_file(merge(tmp_path / "adapter", tmp_path / "merged") / "model.safetensors")
    assert {weight.dtype for weight in weights.values()} == {torch.bfloat16}


def other_base(tiny_checkpoint, folder):
    """The same architecture, trained a little differently."""
    shutil.copytree(tiny_checkpoint(), folder)
    weights = load_file(folder / "model.safetensors")
    weights[next(name for name in weights if name.endswith("model.norm.weight"))] *= 1.1
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    return folder


def test_an_adapter_of_another_base_model_is_refused(tiny_checkpoint, trained, tmp_path):
    _, folder = trained()
    for other in (other_base(tiny_checkpoint, tmp_path / "other"), tiny_checkpoint("qwen2_vl")):
        with pytest.raises(CheckpointError, match=r"was trained on .* has other weights"):
            merge(folder, tmp_path / "merged", base=other)
    assert not (tmp_path / "merged").exists()


def test_the_fingerprint_does_not_depend_on_dtype_or_adapter(tiny_checkpoint, trained, tmp_path):
    model, _ = trained()
    plain = load(tiny_checkpoint())
    assert (
        base_fingerprint(plain.hf)
        == base_fingerprint(model.hf)
        == base_fingerprint(load(tiny_checkpoint(), "bfloat16").hf)
    )
    assert base_fingerprint(plain.hf) != base_fingerprint(load(other_base(tiny_checkpoint, tmp_path / "other")).hf)


def damaged(folder, name, content):
    (folder / name).unlink()
    if content is not None:
        (folder / name).write_bytes(content)


@pytest.mark.parametrize(
    "name, content, message",
    [
        ("adapter_config.json", None, "has no adapter_config"),
        ("adapter_model.safetensors", None, "no weights"),
        ("adapter_model.safetensors", b"cut", "cannot be loaded"),
        ("streamingvlm.json", None, "cannot be read"),
        ("streamingvlm.json", b"[]", "cannot be read"),
        ("streamingvlm.json", b'{"base": 3, "base_fingerprint": "", "stream_defaults": {}}', "base is 3"),
    ],
)
def test_a_damaged_adapter_is_named(trained, tmp_path, name, content, message):
    _, folder = trained()
    damaged(folder, name, content)
    with pytest.raises(CheckpointError, match=message) as error:
        merge(folder, tmp_path / "merged")
    assert "\n" not in str(error.value) and str(folder) in str(error.value)


def test_pickled_weights_are_never_read(trained, tmp_path):
    _, folder = trained()
    (folder / "adapter_model.safetensors").rename(folder / "adapter_model.bin")
    with pytest.raises(CheckpointError, match="can execute code"):
        merge(folder, tmp_path / "merged")


def test_an_adapter_that_lacks_a_layer_is_refused(trained, tmp_path):
    _, folder = trained()
    weights = load_file(folder / "adapter_model.safetensors")
    save_file(dict(list(weights.items())[1:]), folder / "adapter_model.safetensors")
    with pytest.raises(CheckpointError, match="do not match"):
        merge(folder, tmp_path / "merged")


def test_a_target_that_holds_files_is_left_alone(trained, tmp_path):
    _, folder = trained()
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "notes.txt").touch()
    with pytest.raises(ConfigError, match="not an empty folder"):
        merge(folder, tmp_path / "full")
    (tmp_path / "empty").mkdir()
    assert (merge(folder, tmp_path / "empty") / "model.safetensors").is_file()
    assert not list(tmp_path.glob(".*"))


@pytest.mark.parametrize("wrong", [{"rank": 0}, {"dropout": 1.0}])
def test_settings_out_of_range_are_refused(wrong):
    with pytest.raises(ConfigError):
        LoraSettings(**wrong)


def test_qlora_without_bitsandbytes_names_the_package(monkeypatch):
    monkeypatch.setattr("transformers.utils.is_bitsandbytes_available", lambda: False)
    with pytest.raises(ConfigError, match="qlora"):
        qlora_quantization()


def test_lora_without_peft_names_the_package(tiny_checkpoint, monkeypatch):
    monkeypatch.setitem(sys.modules, "peft", None)
    with pytest.raises(ConfigError, match="lora"):
        adapters.with_lora_(load(tiny_checkpoint()), LoraSettings())


@pytest.mark.skipif(not importlib.util.find_spec("bitsandbytes"), reason="bitsandbytes, of the extra qlora, is absent")
def test_qlora_trains_and_its_adapter_merges_into_the_full_base(tmp_path, mean_loss):
    # not a tiny model: bitsandbytes wants sizes that 64 divides
    model = load_model("pitch", device="cpu", quantization=qlora_quantization(torch.float32))
    assert model.text_model.layers[0].mlp.up_proj.weight.dtype == torch.uint8
    assert model.hf.model.visual.blocks[0].attn.qkv.weight.dtype == torch.float32
    adapted = with_lora_(model, LoraSettings(rank=4))
    mean_loss(SFTModel(model.hf), batch_for(model)).backward()
    assert {n.split(".")[-2] for n, w in model.hf.named_parameters() if w.grad is not None} == {"default"}
    randomize_(adapted)
    save_adapter(adapted, model.tokenizer, tmp_path / "adapter")
    merged = load(merge(tmp_path / "adapter", tmp_path / "merged"))
    difference = (hidden_of(merged) - hidden_of(model)).abs().max()
    assert difference < 0.2 * hidden_of(model).abs().max()


def test_one_command_merges(trained, tmp_path, monkeypatch):
    model, _ = trained(name="my adapter")
    result = subprocess.run(
        [sys.executable, "-m", "streamingvlm", "merge", "my adapter", "target=a model", "dtype=float32"],
        env={**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"},
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert result.returncode == 0, result.stderr
    torch.testing.assert_close(hidden_of(load(tmp_path / "a model")), hidden_of(model), atol=1e-5, rtol=0)
    assert json.loads((tmp_path / "a model" / "config.json").read_text())["streamingvlm"] == STREAM


@pytest.mark.parametrize("words, message", [([], "no adapter given"), (["my adapter", "target=."], "give another")])
def test_the_command_reports_bad_input_in_one_line(trained, run_command, words, message):
    trained(name="my adapter")
    code, output, error = run_command("merge", *words)
    assert (code, output) == (2, "")
    assert len(error.splitlines()) == 1 and message in error


def test_saving_asks_no_hub_and_what_is_merged_is_whole(tiny_checkpoint, tmp_path, monkeypatch, capfd):
    """The name of the embedded model is no name on the hub; others may read the weights, and load the processor."""
    base = shutil.copytree(tiny_checkpoint(), tmp_path / "base")
    for name in ("preprocessor_config.json", "video_preprocessor_config.json"):
        (base / name).write_text(json.dumps({"image_mean": [0.4, 0.5, 0.6], "max_pixels": 50176}))
    asked = []
    monkeypatch.setattr("peft.utils.save_and_load.check_file_exists_on_hf_hub", lambda *names: asked.append(names))
    model = load(base)
    adapted = with_lora_(model, LoraSettings(rank=2))
    adapted.peft_config["default"].base_model_name_or_path = "pitch"
    save_adapter(adapted, model.tokenizer, tmp_path / "adapter")
    SFTModel(adapted).save_pretrained(tmp_path / "adapter2")
    assert asked == []
    merged = merge(tmp_path / "adapter", tmp_path / "merged", base=base)
    assert capfd.readouterr() == ("", "")
    for path in (*merged.iterdir(), tmp_path / "adapter" / adapters.ADAPTER_WEIGHTS):
        assert path.stat().st_mode & 0o777 == (base / "config.json").stat().st_mode & 0o777, path.name
    again = load(merged)
    assert again.family == load(base).family
    assert again.family.image_mean == (0.4, 0.5, 0.6)
    assert again.stream_defaults["max_pixels"] == 50176
    whole = tmp_path / "whole"
    SFTModel(load(base).hf).save_pretrained(whole)
    assert (whole / "video_preprocessor_config.json").read_text() == (base / "preprocessor_config.json").read_text()
