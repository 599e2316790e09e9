"""The formula against what torch counts while the model runs, forward and backward."""

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from streamingvlm.model.loading import load_model
from streamingvlm.training.adapters import LoraSettings, with_lora_
from streamingvlm.training.collate import Collate
from streamingvlm.training.examples import example_from
from streamingvlm.training.flops import known_peak_tflops, step_flops
from streamingvlm.training.sft_model import SFTModel
from streamingvlm.turns import Turn, TurnFormat


def model_and_batch(folder):
    model = load_model(folder, device="cpu", attention="eager")
    model.hf.model.visual.requires_grad_(False)
    turns = TurnFormat(model.tokenizer, temporal_step=1.0)
    tokens = (
        turns.prologue("before")
        + turns.open_turn(Turn(0, 0, 1, (1, 2, 2)))
        + turns.reply(Turn(0, 0, 1, (1, 2, 2)), "in")
    )
    return model, Collate(0)([example_from("chunk", tokens, torch.randn(4, 64))])


def counted(model, batch, mean_loss):
    """Return torch's count without the rotary angles, which older transformers compute as a matrix product."""
    with FlopCounterMode(display=False) as counter:
        mean_loss(SFTModel(model.hf), batch).backward()
    rotary = model.text_model.rotary_emb
    with FlopCounterMode(display=False) as angles, torch.no_grad():
        rotary(torch.zeros(1), batch["position_ids"])
    return counter.get_total_flops() - angles.get_total_flops()


def by_formula(model, batch):
    """Eager attention also computes the pairs that the mask hides."""
    flops = step_flops(model.hf)
    num_tokens, num_supervised = batch["input_ids"].shape[1], int((batch["labels"] >= 0).sum())
    masked_pairs = num_tokens * (num_tokens - 1) // 2
    return flops.of([num_tokens], num_supervised) + flops.per_pair * masked_pairs


@pytest.mark.parametrize("family", ["qwen2_vl", "qwen2_5_vl", "qwen3_vl"])
def test_full_training_is_counted_to_the_last_operation(tiny_checkpoint, mean_loss, family):
    model, batch = model_and_batch(tiny_checkpoint(family))
    assert by_formula(model, batch) == counted(model, batch, mean_loss)


def test_with_adapters_only_the_first_layer_skips_gradients(tiny_checkpoint, mean_loss):
    model, batch = model_and_batch(tiny_checkpoint())
    with_lora_(model, LoraSettings(rank=4))
    # Nothing before the first layer is trained, so its projections compute no gradient of their input.
    attention = model.text_model.layers[0].self_attn
    skipped = sum(
        2 * layer.in_features * layer.out_features
        for projection in (attention.q_proj, attention.k_proj, attention.v_proj)
        for layer in (projection.base_layer, projection.lora_A["default"])
    )
    assert by_formula(model, batch) - counted(model, batch, mean_loss) == skipped * batch["input_ids"].shape[1]


def test_examples_of_a_pack_do_not_attend_to_each_other(tiny_checkpoint):
    flops = step_flops(load_model(tiny_checkpoint(), device="cpu").hf)
    apart = flops.of([10], 2) + flops.of([30], 3)
    assert flops.of([10, 30], 5) == apart < flops.of([40], 5)


@pytest.mark.parametrize(
    "name, peak",
    [
        ("NVIDIA H100 80GB HBM3", 989.0),
        ("NVIDIA H100 PCIe", 756.0),
        ("NVIDIA H200", 989.0),
        ("NVIDIA A100-SXM4-80GB", 312.0),
        ("NVIDIA L40S", 362.0),
        ("NVIDIA L4", 121.0),
        ("cpu", None),
    ],
)
def test_the_peak_of_a_device_by_its_name(name, peak):
    assert known_peak_tflops(name) == peak
