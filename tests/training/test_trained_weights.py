"""Whatever has a gradient is saved, resumed and merged, for every combination of what can be trained."""

from itertools import product

import pytest
import torch

from streamingvlm.model.loading import load_model
from streamingvlm.training.adapters import LoraSettings, load_adapter_, merge, with_lora_, write_record
from streamingvlm.training.sft_model import SFTModel

FAMILIES = ("qwen2_5_vl", "qwen3_vl")
ADAPTERS = {"full": None, "lora": LoraSettings(rank=2, target_modules=("q_proj", "down_proj"))}


def module_of(model, adapters, train_vision):
    """The module that a run trains."""
    full_model = with_lora_(model, ADAPTERS[adapters]) if ADAPTERS[adapters] else model.hf
    return SFTModel(full_model, train_vision=train_vision)


def trained_weights(module):
    return {name: weight for name, weight in module.named_parameters() if weight.requires_grad}


@pytest.mark.parametrize(("family", "adapters", "train_vision"), [*product(FAMILIES, ADAPTERS, (False, True))])
def test_whatever_has_a_gradient_is_saved_resumed_and_merged(tiny_checkpoint, tmp_path, family, adapters, train_vision):
    def load(folder):
        return load_model(folder, device="cpu", dtype="float32")

    base = tiny_checkpoint(family)
    model = load(base)
    module = module_of(model, adapters, train_vision)
    torch.manual_seed(1)
    with torch.no_grad():
        for weight in trained_weights(module).values():
            weight.add_(torch.randn_like(weight) * 0.1)
    module.save_pretrained(tmp_path / "saved")

    resumed = module_of(load(base), adapters, train_vision)
    resumed.load_state_dict(resumed.saved_state(tmp_path / "saved"), strict=False)
    expected = trained_weights(module)
    assert expected.keys() == trained_weights(resumed).keys()
    assert any("visual" in name for name in expected) == train_vision
    for name, weight in trained_weights(resumed).items():
        assert torch.equal(weight, expected[name]), name

    final = tmp_path / "saved"
    model.tokenizer.save_pretrained(final)
    if ADAPTERS[adapters]:
        write_record(module.full_model, final)
        adapted = load_adapter_(load(base), final)
        assert all(torch.equal(a, b) for a, b in zip(adapted.parameters(), module.full_model.parameters(), strict=True))
        final = merge(final, tmp_path / "merged")
    merged = load(final).hf.state_dict()
    expected_hf = module.full_model.merge_and_unload() if ADAPTERS[adapters] else model.hf
    for name, weight in expected_hf.state_dict().items():
        assert torch.allclose(merged[name], weight, atol=1e-6), name
