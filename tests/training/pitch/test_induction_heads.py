"""Induction heads work in an untrained model and are not trained."""

import pytest
import torch

from streamingvlm.pitch.tokenizer import build_tokenizer
from streamingvlm.training.pitch.architecture import build_model, tiny_config
from streamingvlm.training.pitch.induction_heads import freeze_induction_heads_, init_induction_heads_

TEXT = "Rovers home red, City away blue. pass by blue tackle by red goal for blue!"


def new_model(seed):
    torch.manual_seed(seed)
    model = build_model(tiny_config(build_tokenizer(), num_layers=2))
    init_induction_heads_(model)
    return model


@torch.no_grad()
def attentions(seed):
    """Return the attention weights of each layer, [heads, T, T]."""
    ids = torch.tensor([build_tokenizer().encode(TEXT)])
    text = new_model(seed).model.language_model
    text.config._attn_implementation = "eager"
    positions = torch.arange(ids.shape[1]).expand(3, 1, -1)
    output = text(inputs_embeds=text.embed_tokens(ids), position_ids=positions, output_attentions=True)
    return [layer[0] for layer in output.attentions]


@pytest.mark.parametrize("head, distance", [(0, 1), (1, 2)])
def test_the_first_layer_attends_one_and_two_tokens_back(head, distance):
    weights = attentions(1)[0][head]
    indices = torch.arange(distance, len(weights))
    assert (weights[indices, indices - distance] > 0.9).all()


def test_the_second_layer_attends_to_earlier_occurrences_of_the_word_before():
    words = build_tokenizer().tokenize(TEXT)
    weights = torch.stack([attentions(seed)[1][0, -1] for seed in range(8)]).mean(0)  # from "!", behind "blue"
    matched = torch.tensor([word == words[-2] for word in words])
    assert weights[matched].mean() > 3 * weights[~matched].mean()


def test_only_the_induction_heads_are_frozen():
    model = new_model(1)
    freeze_induction_heads_(model)
    frozen = {name for name, weights in model.model.language_model.named_parameters() if not weights.requires_grad}
    assert frozen == {
        name
        for name, _ in model.model.language_model.named_parameters()
        if name.startswith(("layers.0.self_attn", "layers.1.self_attn.q_proj", "layers.1.self_attn.k_proj"))
    }
