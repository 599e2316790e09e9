"""The tower's kernels for training give the output of transformers and are removed afterwards."""

import torch

from streamingvlm.pitch.tokenizer import build_tokenizer
from streamingvlm.training.pitch.architecture import build_model, tiny_config
from streamingvlm.training.pitch.pitch_footage import patches_of, render_match
from streamingvlm.training.pitch.tower import Tower


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
