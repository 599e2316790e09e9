"""SFTModel against transformers' full model: its own vision path, positions and loss, family by family."""

import pytest
import torch
from tiny_inputs import frames

from streamingvlm.config import VideoConfig
from streamingvlm.data.chunks import chunk_tokens
from streamingvlm.model.family import FAMILIES
from streamingvlm.model.loading import load_model
from streamingvlm.model.vision import preprocess
from streamingvlm.training.collate import Collate, model_inputs
from streamingvlm.training.examples import Example, example_from
from streamingvlm.training.sft_model import SFTModel
from streamingvlm.turns import Turn, TurnFormat

LINES = ["the ball is in", "", "a user says the ball is in"]
PIXELS = {"min_pixels": 1, "max_pixels": 84 * 84}


@pytest.fixture(params=FAMILIES)
def model(request, tiny_checkpoint):
    return load_model(tiny_checkpoint(request.param), device="cpu")


def loss_of(model, batch) -> torch.Tensor:
    return SFTModel(model.hf)(**model_inputs(batch))["losses"].mean()


def example_of(model, pictures: list[torch.Tensor], turn_s: float) -> Example:
    turns = TurnFormat.of(model.tokenizer, model.family, VideoConfig(turn_s=turn_s))
    seen = [model.vision_encoder(**PIXELS).features(picture) for picture in pictures]
    seconds = [Turn(i, i * turn_s, (i + 1) * turn_s, vision.grid) for i, vision in enumerate(seen)]
    tokens = chunk_tokens(turns, seconds, LINES, turns.encode_plain("It begins."), query="Who has the ball?")
    levels = zip(*(vision.deepstack for vision in seen), strict=True)
    vision = torch.cat([vision.embeddings for vision in seen])
    return example_from("chunk", tokens, vision, tuple(torch.cat(level) for level in levels))


def full_model(model, example: Example, pictures: list[torch.Tensor]):
    """transformers' own forward over the pixels, with the positions that it finds by itself."""
    patches, grids = zip(*(preprocess(picture, family=model.family, **PIXELS) for picture in pictures), strict=True)
    ids = example.input_ids[None]
    return model.hf(
        input_ids=ids,
        labels=example.labels[None],
        mm_token_type_ids=2 * (ids == model.hf.config.video_token_id),
        pixel_values_videos=torch.cat(patches),
        video_grid_thw=torch.tensor(grids),
        second_per_grid_ts=torch.ones(len(grids)),
    )


@pytest.mark.parametrize("turn_s", [1.0, 2.0], ids=["one patch", "two patches"])
def test_loss_and_gradient_equal_those_of_the_full_model(model, turn_s):
    pictures = [frames(turn, round(2 * turn_s)) for turn in range(len(LINES))]
    example = example_of(model, pictures, turn_s)
    expected = full_model(model, example, pictures).loss
    expected.backward()
    weights = dict(model.hf.model.language_model.named_parameters())
    gradients = {name: weight.grad.clone() for name, weight in weights.items()}
    model.hf.zero_grad()
    loss = loss_of(model, Collate(0)([example]))
    loss.backward()
    assert loss.item() == pytest.approx(expected.item(), abs=1e-5)
    for name, weight in weights.items():
        assert torch.allclose(weight.grad, gradients[name], atol=1e-5), name


def test_examples_of_a_batch_do_not_attend_to_each_other(model):
    """Unequal lengths, and deepstack features that each stay with their own row."""
    examples = [
        example_of(model, [frames(seed + turn, 2, height) for turn in range(len(LINES))], 1.0)
        for seed, height in ((0, 56), (10, 84))
    ]
    with torch.no_grad():
        alone = [loss_of(model, Collate(0)([example])) for example in examples]
        both = loss_of(model, Collate(0)(examples))
    num_supervised = torch.tensor([(example.labels != -100).sum() for example in examples])
    assert len(examples[0].input_ids) != len(examples[1].input_ids)
    assert both.item() == pytest.approx(
        ((torch.stack(alone) * num_supervised).sum() / num_supervised.sum()).item(), abs=1e-5
    )


def test_only_qwen3_has_deepstack_features(model):
    example = example_of(model, [frames(turn, 2) for turn in range(len(LINES))], 1.0)
    is_qwen3 = model.family.model_type == "qwen3_vl"
    assert len(example.deepstack) == (2 if is_qwen3 else 0)
    batch = Collate(0)([example])
    with torch.no_grad():
        seen, unseen = (loss_of(model, {**batch, "deepstack": d}) for d in (batch["deepstack"], ()))
    assert (seen != unseen).item() is is_qwen3
