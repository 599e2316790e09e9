"""Packed examples give the loss and the gradients of padded ones, in every family."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from tiny_run import TinyChunks

from streamingvlm.errors import ConfigError
from streamingvlm.model.family import FAMILIES
from streamingvlm.model.loading import load_model
from streamingvlm.training.collate import Collate, model_inputs
from streamingvlm.training.packing import cumulative_lengths, pack, text_positions
from streamingvlm.training.sft_model import SFTModel


@given(lengths=st.lists(st.integers(1, 60), max_size=50), limit=st.integers(60, 200))
def test_bins_hold_every_item_once_and_are_few(lengths, limit):
    bins = pack(lengths, limit)
    assert sorted(item for items in bins for item in items) == list(range(len(lengths)))
    sums = [sum(lengths[item] for item in items) for items in bins]
    assert all(0 < total <= limit for total in sums)
    assert len(bins) <= 11 / 9 * -(-sum(lengths) // limit) + 1 or max(lengths) > limit / 3
    assert pack(lengths, limit) == bins


def test_an_example_that_fits_no_pack_is_refused():
    with pytest.raises(ConfigError, match="101 tokens is longer than pack_tokens=100"):
        pack([5, 101], 100)


def test_positions_restart_with_every_example():
    cu_seqlens = cumulative_lengths([3, 1, 2])
    assert cu_seqlens.tolist() == [0, 3, 4, 6]
    assert text_positions(cu_seqlens).tolist() == [0, 1, 2, 0, 0, 1]


def losses_and_gradients(module, batch):
    module.zero_grad()
    losses = module(**model_inputs(batch))["losses"]
    (losses * batch["weights"]).sum().backward()
    return losses.detach(), {name: weights.grad.clone() for name, weights in module.named_parameters()}


@pytest.mark.parametrize("model_type, attention", [*((name, "sdpa") for name in FAMILIES), ("qwen2_5_vl", "eager")])
def test_packed_equals_padded_equals_one_by_one(tiny_checkpoint, model_type, attention):
    model = load_model(tiny_checkpoint(model_type), device="cpu", attention=attention)
    module = SFTModel(model.hf)
    examples = [TinyChunks(model)[index] for index in range(4)]
    assert len({len(example.input_ids) for example in examples}) > 1
    packed, padded = (Collate(0, packed=packed, silence_weight=0.5) for packed in (True, False))
    losses, gradients = losses_and_gradients(module, packed(examples))
    other_losses, other_gradients = losses_and_gradients(module, padded(examples))
    alone = torch.cat([losses_and_gradients(module, padded([example]))[0] for example in examples])
    torch.testing.assert_close(losses, other_losses, atol=2e-5, rtol=1e-5)
    torch.testing.assert_close(losses, alone, atol=2e-5, rtol=1e-5)
    for name, gradient in gradients.items():
        torch.testing.assert_close(gradient, other_gradients[name], atol=1e-4, rtol=1e-4, msg=name)


def test_an_example_does_not_attend_to_its_neighbours(tiny_checkpoint):
    module = SFTModel(load_model(tiny_checkpoint(), device="cpu").hf)
    first, second, third = (TinyChunks(load_model(tiny_checkpoint(), device="cpu"))[index] for index in range(3))
    collate = Collate(0, packed=True)
    beside, alone = collate([first, second]), collate([third, second])
    num_supervised = beside["num_supervised"][1]
    losses = [losses_and_gradients(module, batch)[0][-num_supervised:] for batch in (beside, alone)]
    torch.testing.assert_close(*losses, atol=1e-5, rtol=1e-5)


def test_silent_turns_have_the_silence_weight(tiny_checkpoint):
    model = load_model(tiny_checkpoint(), device="cpu")
    example = next(example for example in TinyChunks(model) if example.is_silent.any())
    batch = Collate(0, silence_weight=0.25)([example])
    asked = example.labels[1:] >= 0
    assert torch.equal(batch["weights"] == 0.25, example.is_silent[1:][asked])
    said = example.input_ids[1:][asked][batch["weights"] == 0.25]
    assert set(model.tokenizer.decode(said).replace("<|im_end|>", "").split()) == {"..."}
