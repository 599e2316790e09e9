"""The loss of a step is one weighted mean, checkpoints are complete, and a loss that is not finite ends the run."""

import logging
from pathlib import Path

import pytest
import torch
from accelerate.utils.deepspeed import HfDeepSpeedConfig
from tiny_run import DEFAULTS, TinyChunks, train
from torch import nn
from transformers import TrainerCallback

from streamingvlm import StreamingSession
from streamingvlm.errors import CheckpointError, ConfigError, NonFiniteLossError
from streamingvlm.model.loading import load_model
from streamingvlm.training.batch_plan import BatchPlan
from streamingvlm.training.checkpoints import checkpoints, is_complete
from streamingvlm.training.collate import Collate, model_inputs
from streamingvlm.training.settings import FitSettings
from streamingvlm.training.sft_model import SFTModel
from streamingvlm.training.trainer import fit_

ZERO3 = Path(__file__).parents[2] / "configs" / "deepspeed" / "zero3.json"
SHORT = {"num_steps": 4, "warmup_steps": 0}


@pytest.fixture(scope="module")
def plain(tiny_checkpoint, tmp_path_factory):
    """The reference run: one process, one padded batch per step."""
    return train(tiny_checkpoint(), tmp_path_factory.mktemp("plain"), {})[0]


@pytest.mark.parametrize(
    "settings",
    [{"accumulation_steps": 8}, {"accumulation_steps": 3, "gradient_checkpointing": True}, {"pack_tokens": 400}],
    ids=str,
)
def test_twenty_losses_do_not_depend_on_how_a_step_is_split(plain, tiny_checkpoint, tmp_path, settings):
    losses, _ = train(tiny_checkpoint(), tmp_path, settings)
    assert len(losses) == 20
    assert losses[-1] < 0.7 * losses[0]
    torch.testing.assert_close(losses, plain, atol=1e-4, rtol=0)


def test_a_step_is_the_gradient_of_the_weighted_mean_clipped_as_a_whole(tiny_checkpoint, tmp_path):
    """Three micro-batches of unequal weight against the same arithmetic by hand."""
    settings = {**SHORT, "num_steps": 1, "batch_size": 5, "accumulation_steps": 3, "max_grad_norm": 0.1}
    _, trained = train(tiny_checkpoint(), tmp_path, settings)
    model = load_model(tiny_checkpoint(), device="cpu")
    module = SFTModel(model.hf)
    dataset = TinyChunks(model)
    examples = [dataset[index] for index in BatchPlan(len(dataset), 5, 1, seed=7).examples(0)]
    batch = Collate(0, silence_weight=DEFAULTS["silence_weight"])(examples)
    losses = module(**model_inputs(batch))["losses"]
    ((losses * batch["weights"]).sum() / batch["weights"].sum()).backward()
    nn.utils.clip_grad_norm_(module.parameters(), 0.1)
    named = list(module.named_parameters())
    decayed = [w for name, w in named if w.ndim > 1]
    rest = [w for name, w in named if w.ndim == 1]
    groups = [{"params": decayed, "weight_decay": 0.01}, {"params": rest, "weight_decay": 0.0}]
    torch.optim.AdamW(groups, lr=DEFAULTS["learning_rate"], betas=(0.9, 0.98)).step()
    for (name, mine), theirs in zip(named, trained.parameters(), strict=True):
        torch.testing.assert_close(mine, theirs, atol=2e-5, rtol=1e-4, msg=name)


def test_the_tower_stays_frozen_and_the_saved_model_streams(tiny_checkpoint, tmp_path):
    train(tiny_checkpoint(), tmp_path, SHORT, model_folder=tmp_path / "model")
    before, after = (load_model(folder, device="cpu").hf for folder in (tiny_checkpoint(), tmp_path / "model"))
    changed = {
        name for name, weights in before.named_parameters() if not torch.equal(weights, after.get_parameter(name))
    }
    assert {name for name, _ in before.model.visual.named_parameters(prefix="model.visual")}.isdisjoint(changed)
    assert {name for name, _ in before.model.language_model.named_parameters(prefix="model.language_model")} <= changed
    session = StreamingSession.from_pretrained(tmp_path / "model", device="cpu", video={"max_pixels": 100 * 28 * 28})
    assert session.step(torch.zeros(2, 3, 56, 56, dtype=torch.uint8)).num_tokens > 0


class OneBad(TinyChunks):
    """The vision of chunk 11 is NaN."""

    def make(self, index):
        example = super().make(index)
        if index == 11:
            example.vision.fill_(float("nan"))
        return example


def test_a_loss_that_is_not_finite_ends_the_run_with_the_name(tiny_checkpoint, tmp_path):
    dataset = OneBad(load_model(tiny_checkpoint(), device="cpu"))
    with pytest.raises(NonFiniteLossError, match=r"loss of step \d+ is not finite; it comes from chunk 11:") as error:
        train(tiny_checkpoint(), tmp_path, {}, dataset=dataset)
    assert "\n" not in str(error.value)


def test_held_out_loss_counts_every_token_once(tiny_checkpoint, tmp_path):
    model = load_model(tiny_checkpoint(), device="cpu")
    held_out = TinyChunks(model, num_examples=11)
    seen = []
    watch = [_On(on_evaluate=lambda *_, metrics, **__: seen.append(metrics["eval_loss"]))]
    settings = {**SHORT, "learning_rate": 1e-30, "evaluate_every_steps": 2, "batch_size": 4, "pack_tokens": 300}
    train(tiny_checkpoint(), tmp_path, settings, held_out=held_out, callbacks=watch)
    batch = Collate(0, silence_weight=DEFAULTS["silence_weight"])([held_out[index] for index in range(11)])
    with torch.no_grad():
        losses = SFTModel(model.hf)(**model_inputs(batch))["losses"]
    expected = float((losses * batch["weights"]).sum() / batch["weights"].sum())
    assert seen == pytest.approx([expected, expected], abs=1e-5)


def _On(**methods):
    return type("On", (TrainerCallback,), {name: staticmethod(method) for name, method in methods.items()})()


def test_checkpoints_are_complete_and_few_and_a_run_resumes_from_them(tiny_checkpoint, tmp_path):
    settings = {"num_steps": 8, "save_every_steps": 2, "keep_checkpoints": 2, "log_every_steps": 3, "dropout": 0.2}
    through, _ = train(tiny_checkpoint(), tmp_path / "through", settings)
    left = checkpoints(tmp_path / "through")
    assert [path.name for path in left] == ["checkpoint-6", "checkpoint-8"]
    assert all(is_complete(path) for path in left)
    assert load_model(left[0], device="cpu").tokenizer.eos_token == "<|im_end|>"
    (left[1] / "complete.json").unlink()
    resumed, _ = train(tiny_checkpoint(), tmp_path / "through", settings, resume=True)
    assert resumed == through
    with pytest.raises(ConfigError, match="resume=true"):
        train(tiny_checkpoint(), tmp_path / "through", settings)
    with pytest.raises(ConfigError, match="num_steps=8, not 9"):
        train(tiny_checkpoint(), tmp_path / "through", settings | {"num_steps": 9}, resume=True)


def test_resuming_without_a_checkpoint_starts_at_the_first_step(tiny_checkpoint, tmp_path, caplog):
    with caplog.at_level(logging.INFO):
        train(tiny_checkpoint(), tmp_path, SHORT, resume=True)
    assert "starts at its first step" in caplog.text


def test_a_full_disk_is_reported_in_one_line(tiny_checkpoint, tmp_path, monkeypatch):
    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("streamingvlm.training.trainer.commit_checkpoint", full)
    with pytest.raises(CheckpointError, match=r"checkpoint-2 cannot be written .*No space left.*resume=true"):
        train(tiny_checkpoint(), tmp_path, SHORT | {"save_every_steps": 2})


def test_data_and_settings_that_do_not_fit_are_refused(tiny_checkpoint, tmp_path):
    with pytest.raises(ConfigError, match="has no examples"):
        train(tiny_checkpoint(), tmp_path, SHORT, dataset=TinyChunks(load_model(tiny_checkpoint(), device="cpu"), 0))
    with pytest.raises(ConfigError, match="needs a dataset with a method length"):
        fit_(None, [1, 2], None, FitSettings(**DEFAULTS | {"pack_tokens": 10}), seed=0, folder=tmp_path)
    with pytest.raises(ConfigError, match="two or more processes"):
        train(tiny_checkpoint(), tmp_path, SHORT | {"fsdp": "full_shard"})


def test_positions_beyond_256_survive_bfloat16(tiny_checkpoint, tmp_path):
    """Rotary positions are floats, and a batch of floats is easily teams; autocast must not reach them."""
    exact, _ = train(tiny_checkpoint(), tmp_path / "exact", SHORT)
    rounded, _ = train(tiny_checkpoint(), tmp_path / "rounded", SHORT | {"bf16": True})
    torch.testing.assert_close(exact, rounded, atol=0.03, rtol=0)


def test_a_module_with_one_loss_per_batch_weighs_each_batch_equally(tmp_path):
    class Line(nn.Module):
        def __init__(self):
            super().__init__()
            self.weight = nn.Parameter(torch.zeros(1))

        def forward(self, values):
            return {"loss": ((self.weight - values) ** 2).mean()}

    settings = FitSettings(**DEFAULTS | {"num_steps": 1, "batch_size": 4, "accumulation_steps": 2, "bf16": False})
    curve = fit_(
        Line(),
        [1.0, 2.0, 3.0, 4.0],
        lambda values: {"values": torch.tensor(values)},
        settings,
        seed=0,
        folder=tmp_path,
    )
    assert curve[0]["loss"] == pytest.approx((1 + 4 + 9 + 16) / 4)


def test_the_deepspeed_configuration_leaves_open_only_what_trainer_fills():
    """Checked without DeepSpeed: ZeRO-3, full weights are saved, nothing depends on a model's config."""
    config = HfDeepSpeedConfig(str(ZERO3))
    assert config.is_zero3()
    assert config.is_true("zero_optimization.stage3_gather_16bit_weights_on_model_save")
    assert [name for name, value in config.config["zero_optimization"].items() if value == "auto"] == []
    left = {name for name, value in config.config.items() if value == "auto"}
    assert left == {
        "gradient_accumulation_steps",
        "gradient_clipping",
        "train_batch_size",
        "train_micro_batch_size_per_gpu",
    }


def test_missing_deepspeed_is_reported(tiny_checkpoint, tmp_path, monkeypatch):
    monkeypatch.setattr("streamingvlm.training.sharding.is_deepspeed_available", lambda: False)
    with pytest.raises(ConfigError, match="needs DeepSpeed, which is not installed"):
        train(tiny_checkpoint(), tmp_path, SHORT | {"deepspeed": str(ZERO3)})
