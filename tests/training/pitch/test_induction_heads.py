"""The heads that look back do so from birth, and training leaves them alone."""

import pytest
import torch

from streamingvlm.pitch.tokenizer import build_tokenizer
from streamingvlm.training.pitch.architecture import build_model, tiny_config
from streamingvlm.training.pitch.induction_heads import freeze_induction_heads_, init_induction_heads_

TEXT = "Rovers home red, City away blue. pass by blue tackle by red goal for blue!"


def born(seed):
    torch.manual_seed(seed)
    model = build_model(tiny_config(build_tokenizer(), num_layers=2))
    init_induction_heads_(model)
    return model


@torch.no_grad()
def attentions(seed):
    """Of each layer, [heads, T, T]."""
    ids = torch.tensor([build_tokenizer().encode(TEXT)])
    text = born(seed).model.language_model
    text.config._attn_implementation = "eager"
    positions = torch.arange(ids.shape[1]).expand(3, 1, -1)
    output = text(inputs_embeds=text.embed_tokens(ids), position_ids=positions, output_attentions=True)
    return [layer[0] for layer in output.attentions]


@pytest.mark.parametrize("head, distance", [(0, 1), (1, 2)])
def test_the_first_layer_attends_one_and_two_tokens_back(head, distance):
    weights = attentions(1)[0][head]
    places = torch.arange(distance, len(weights))
    assert (weights[places, places - distance] > 0.9).all()


def test_the_second_layer_favours_where_the_word_before_stood():
    words = build_tokenizer().tokenize(TEXT)
    weights = torch.stack([attentions(seed)[1][0, -1] for seed in range(8)]).mean(0)  # from "!", behind "blue"
    matched = torch.tensor([word == words[-2] for word in words])
    assert weights[matched].mean() > 3 * weights[~matched].mean()


def test_held_heads_are_not_trained_and_all_else_is():
    model = born(1)
    freeze_induction_heads_(model)
    held = {name for name, weights in model.model.language_model.named_parameters() if not weights.requires_grad}
    assert held == {
        name
        for name, _ in model.model.language_model.named_parameters()
        if name.startswith(("layers.0.self_attn", "layers.1.self_attn.q_proj", "layers.1.self_attn.k_proj"))
    }
