"""The tower's kernels for training give the output of transformers and are removed afterwards."""

import copy

import pytest
import torch

from streamingvlm.pitch.camera import Camera
from streamingvlm.pitch.tokenizer import build_tokenizer
from streamingvlm.training.pitch.architecture import build_model, tiny_config
from streamingvlm.training.pitch.pitch_footage import film_match, patches_of, render_match
from streamingvlm.training.pitch.tower import Tower
from streamingvlm.training.pitch.tower_distillation import FilmedSecondsDataset, TowerWithTeacher


def test_the_output_equals_that_of_transformers():
    torch.manual_seed(0)
    model = build_model(tiny_config(build_tokenizer(), vision_hidden_size=64, vision_depth=2))
    tower = Tower(model)
    pixels = patches_of(render_match(5, 3).frames, tower)
    projection, attention = model.model.visual.patch_embed.proj, model.model.visual.config._attn_implementation
    mine = tower(pixels)
    stock = model.model.visual(pixels, grid_thw=torch.tensor([[1, 8, 8]] * 3)).pooler_output
    torch.testing.assert_close(mine.flatten(0, 1), stock, atol=1e-5, rtol=1e-5)
    assert model.model.visual.patch_embed.proj is projection
    assert model.model.visual.config._attn_implementation == attention


def test_gradients_reach_the_weights_of_the_model():
    model = build_model(tiny_config(build_tokenizer(), vision_hidden_size=32, vision_depth=1))
    tower = Tower(model)
    tower(patches_of(render_match(5, 2).frames, tower)).square().sum().backward()
    assert all(weights.grad is not None for weights in model.model.visual.parameters())


def distillation_loss(module: TowerWithTeacher, footage) -> torch.Tensor:
    dataset = FilmedSecondsDataset([footage], num_examples=16, seed=1)
    with torch.no_grad():
        module.kind.weight.zero_(), module.colour.weight.zero_()
    output = module(**module.collate([dataset[index] for index in range(16)]))
    heads = module.classify(torch.zeros(16, module.tower.embedding_size), *labels(dataset))
    return output["loss"] - 0.3 * heads["loss"].detach()


def labels(dataset: FilmedSecondsDataset) -> tuple[torch.Tensor, torch.Tensor]:
    _, _, kinds, colours = zip(*(dataset[index] for index in range(len(dataset))), strict=True)
    return torch.tensor(kinds), torch.tensor(colours)


def test_distillation_moves_filmed_features_to_those_of_the_same_seconds_as_rendered():
    torch.manual_seed(0)
    model = build_model(tiny_config(build_tokenizer(), vision_hidden_size=32, vision_depth=1))
    module = TowerWithTeacher(Tower(model), Tower(copy.deepcopy(model)))
    filmed = film_match(5, 12, Camera(phase_ms=-200))
    before = {name: weights.clone() for name, weights in module.teacher.named_parameters()}
    assert distillation_loss(module, render_match(5, 12)).item() == pytest.approx(0, abs=1e-6)
    optimizer = torch.optim.AdamW(module.tower.parameters(), lr=3e-4)
    losses = []
    for _ in range(40):
        losses.append(distillation_loss(module, filmed))
        optimizer.zero_grad()
        losses[-1].backward()
        optimizer.step()
    assert losses[-1] < 0.7 * losses[0]
    assert all(torch.equal(weights, before[name]) for name, weights in module.teacher.named_parameters())
