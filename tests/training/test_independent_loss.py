"""Loss and gradient of a step against the stock model, with ids, labels, positions and weights computed here.

Nothing of the turn format, the collation or the trainer is used for the expected values: they follow the format of the
released checkpoint, one example at a time. As a program, this file writes the gradients of a run in two processes.
"""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from accelerate.state import AcceleratorState
from safetensors.torch import load_file, save_file
from tiny_inputs import frames
from torch.distributed.tensor import DTensor
from torch.utils.data import Dataset
from transformers import TrainerCallback

from streamingvlm.config import VideoConfig
from streamingvlm.data.chunks import chunk_tokens
from streamingvlm.model.family import FAMILIES
from streamingvlm.model.loading import load_model
from streamingvlm.model.vision import preprocess
from streamingvlm.training.collate import Collate
from streamingvlm.training.examples import example_from
from streamingvlm.training.settings import FitSettings
from streamingvlm.training.sft_model import SFTModel
from streamingvlm.training.trainer import fit_
from streamingvlm.turns import Turn, TurnFormat

ROOT = Path(__file__).parents[2]
PIXELS = {"min_pixels": 1, "max_pixels": 84 * 84}
SILENCE_WEIGHT = 0.25
QUERY = "Who has the ball?"
CHUNKS = [
    {"lines": ["the ball is in", "", "he says the ball"], "previous": "It begins.", "height": 56},
    {"lines": ["", "you are"], "previous": "", "height": 84},
    {"lines": ["and he says the ball is in and in"], "previous": "said before", "height": 56},
    {"lines": ["", "", "helpful", ""], "previous": "", "height": 56},
]
RUNS = {
    "padded": {},
    "packed": {"pack_tokens": 400},
    "accumulated": {"accumulation_steps": 3},
}
SHARDED = {"sharded": {"fsdp": "full_shard"}, "sharded and packed": {"fsdp": "full_shard", "pack_tokens": 400}}


def pictures_of(chunk):
    """Two frames a turn."""
    return [frames(number, 2, chunk["height"]) for number in range(len(chunk["lines"]))]


# ---- expected ----


def stock_inputs(model, chunk):
    """Return ids [L], positions [3, L], weights [L] of the targets, pixels and grids of a chunk."""
    is_qwen3 = model.family.model_type == "qwen3_vl"
    ids, positions, weights, patches, grids, next_position = [], [], [], [], [], 0

    def text(words, weight=0.0):
        nonlocal next_position
        new = model.tokenizer.encode(words, add_special_tokens=False) if words else []
        for token in new:
            ids.append(token)
            positions.append((next_position,) * 3)
            weights.append(weight)
            next_position += 1

    text("<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n")
    text("<|im_start|>previous text\n")
    text(chunk["previous"])
    text("<|im_end|>\n")
    for second, (line, picture) in enumerate(zip(chunk["lines"], pictures_of(chunk), strict=True)):
        pixels, grid = preprocess(picture, family=model.family, **PIXELS)
        patches.append(pixels)
        grids.append(grid)
        height, width = grid[1] // 2, grid[2] // 2
        text("\n" if second else "")
        text("<|im_start|>user\n")
        text(f"<{second + 0.25:.1f} seconds>" if is_qwen3 else f"Time={second:.1f}-{second + 1:.1f}s")
        text("<|vision_start|>")
        for row in range(height):
            for column in range(width):
                ids.append(model.hf.config.video_token_id)
                positions.append((next_position, next_position + row, next_position + column))
                weights.append(0.0)
        next_position += max(height, width)
        text("<|vision_end|>")
        text("" if second else QUERY)
        text("<|im_end|>\n")
        text("<|im_start|>assistant\n")
        weight = 1.0 if line else SILENCE_WEIGHT
        text(f" {line}" if line else "", weight)
        text(" ...", weight)
        text("<|im_end|>", weight)
    return torch.tensor(ids), torch.tensor(positions).T, torch.tensor(weights), torch.cat(patches), torch.tensor(grids)


def expected_step(checkpoint):
    """Return the loss of a step over all chunks, and the gradients of the language model and the head."""
    model = load_model(checkpoint, device="cpu", dtype="float32")
    model.hf.model.visual.requires_grad_(False)
    total, total_weight = 0.0, 0.0
    for chunk in CHUNKS:
        ids, positions, weights, pixels, grids = stock_inputs(model, chunk)
        logits = model.hf(
            input_ids=ids[None], position_ids=positions[:, None], pixel_values_videos=pixels, video_grid_thw=grids
        ).logits[0]
        log_probabilities = logits[:-1].float().log_softmax(-1).gather(1, ids[1:, None])[:, 0]
        total = total - (log_probabilities * weights[1:]).sum()
        total_weight += weights[1:].sum()
    loss = total / total_weight
    loss.backward()
    gradients = {id(weight): weight.grad for weight in model.hf.parameters() if weight.grad is not None}
    names = SFTModel(model.hf).named_parameters()
    return loss.item(), {name: gradients[id(weight)] for name, weight in names}


# ---- found ----


class Chunks(Dataset):
    """The chunks as the trainer sees them."""

    def __init__(self, model):
        self.model = model
        self.turns = TurnFormat.of(model.tokenizer, model.family, VideoConfig())

    def __len__(self):
        return len(CHUNKS)

    def __getitem__(self, index):
        chunk = CHUNKS[index]
        seen = [self.model.vision_encoder(**PIXELS).features(picture) for picture in pictures_of(chunk)]
        turns = [Turn(number, number, number + 1, vision.grid) for number, vision in enumerate(seen)]
        previous = self.turns.encode_plain(chunk["previous"])
        tokens = chunk_tokens(self.turns, turns, chunk["lines"], previous, query=QUERY)
        levels = tuple(torch.cat(level) for level in zip(*(vision.deepstack for vision in seen), strict=True))
        return example_from(f"chunk {index}", tokens, torch.cat([vision.embeddings for vision in seen]), levels)

    def length(self, index):
        return len(self[index].input_ids)


class Gradients(TrainerCallback):
    """Keeps the gradients of the step, gathered over processes."""

    def on_pre_optimizer_step(self, args, state, control, model, **_):
        self.num_sharded = sum(isinstance(weight, DTensor) for weight in model.parameters())
        self.by_name = {
            name.removeprefix("module."): (w.grad.full_tensor() if isinstance(w.grad, DTensor) else w.grad).clone()
            for name, w in model.named_parameters()
        }


def trained_step(checkpoint, folder, settings):
    """Return the loss and the gradients of one step of the trainer."""
    AcceleratorState._reset_state(reset_partial_state=True)  # it remembers the sharding of the previous run
    given = {"num_steps": 1, "batch_size": len(CHUNKS), "learning_rate": 1e-3, "bf16": False, "log_every_steps": 1}
    fit = FitSettings(**given | {"silence_weight": SILENCE_WEIGHT, "max_grad_norm": 1e9} | settings)
    model = load_model(checkpoint, device="cpu", dtype="float32")
    chunks, gradients = Chunks(model), Gradients()
    collate = Collate(0, packed=fit.pack_tokens > 0, silence_weight=SILENCE_WEIGHT)
    curve = fit_(SFTModel(model.hf), chunks, collate, fit, seed=0, folder=folder, callbacks=[gradients])
    assert (gradients.num_sharded > 10) == (fit.fsdp != "off")
    return curve[0]["loss"], gradients.by_name


def assert_equal(found, expected):
    loss, gradients = found
    assert loss == pytest.approx(expected[0], abs=1e-5)
    assert gradients.keys() == expected[1].keys()
    for name, gradient in gradients.items():
        torch.testing.assert_close(gradient, expected[1][name], atol=1e-5, rtol=0, msg=name)


@pytest.mark.parametrize("family", FAMILIES)
def test_a_step_has_the_loss_and_the_gradient_of_the_stock_model(tiny_checkpoint, tmp_path, family):
    expected = expected_step(tiny_checkpoint(family))
    assert max(gradient.abs().max() for gradient in expected[1].values()) > 1e-3
    for name, settings in RUNS.items():
        assert_equal(trained_step(tiny_checkpoint(family), tmp_path / name, settings), expected)


@pytest.mark.slow
def test_a_step_of_two_processes_sharded_by_fsdp2_has_them_too(tiny_checkpoint, tmp_path):
    folders = {family: tiny_checkpoint(family) for family in FAMILIES}
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2", __file__, tmp_path]
    paths = [str(ROOT), str(ROOT / "tests"), str(Path(__file__).parent)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": os.pathsep.join(paths)}
    words = [f"{family}={folder}" for family, folder in folders.items()]
    done = subprocess.run(map(str, [*command, *words]), env=environment, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stderr[-3000:]
    for family, folder in folders.items():
        expected = expected_step(folder)
        for name in SHARDED:
            gradients = load_file(tmp_path / f"{family} {name}.safetensors")
            assert_equal((gradients.pop("loss").item(), gradients), expected)


def main(target, *families):
    torch.set_num_threads(1)
    for word in families:
        family, _, checkpoint = word.partition("=")
        for name, settings in SHARDED.items():
            loss, gradients = trained_step(checkpoint, f"{target}/{family}-{name}", settings)
            if int(os.environ["RANK"]) == 0:
                tensors = {**gradients, "loss": torch.tensor(loss)}
                save_file(
                    {n: t.contiguous().clone() for n, t in tensors.items()}, f"{target}/{family} {name}.safetensors"
                )
    torch.distributed.destroy_process_group()


if __name__ == "__main__":
    main(*sys.argv[1:])
