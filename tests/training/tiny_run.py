"""A tiny training run, to be repeated with many settings and to be killed: a module and a program.

    python tests/training/tiny_run.py CHECKPOINT FOLDER '{"NAME": {"num_steps": 20, ...}, ...}' [resume] [stall=STEP]

Each run writes the loss of every step to FOLDER/NAME/losses.jsonl at once, so that a killed run leaves its losses, and
at the end its loss curve to result.json. ``stall`` never finishes the checkpoint of a step.
"""

import json
import os
import sys
import time
from pathlib import Path

import torch
from accelerate.state import AcceleratorState
from torch.distributed.tensor import DTensor
from torch.utils.data import Dataset
from transformers import Trainer, TrainerCallback

from streamingvlm.data.chunks import chunk_tokens
from streamingvlm.model.loading import load_model
from streamingvlm.training.collate import Collate
from streamingvlm.training.examples import example_from
from streamingvlm.training.settings import FitSettings
from streamingvlm.training.sft_model import SFTModel
from streamingvlm.training.trainer import fit_
from streamingvlm.turns import Turn, TurnFormat

GRID = (1, 2, 3)
WORDS = ["the", "ball", "is", "in", "and", "he", "says", "you", "are", "helpful"]
DEFAULTS = {
    "num_steps": 20,
    "batch_size": 8,
    "learning_rate": 3e-3,
    "warmup_steps": 3,
    "bf16": False,
    "log_every_steps": 1,
    "silence_weight": 0.25,
}


class TinyChunks(Dataset):
    """Chunks of 1 to 6 turns with random words, some silent turns, and random vision."""

    def __init__(self, model, num_examples=60):
        self.turn_format = TurnFormat(model.tokenizer, temporal_step=2.0)
        self.size = model.hf.config.text_config.hidden_size
        self.num_levels = len(getattr(model.hf.config.vision_config, "deepstack_visual_indexes", None) or ())
        self.num_examples = num_examples
        self.made = {}

    def __len__(self):
        return self.num_examples

    def __getitem__(self, index):
        if index not in self.made:
            self.made[index] = self.make(index)
        return self.made[index]

    def make(self, index):
        dice = torch.Generator().manual_seed(index)

        def below(limit):
            return int(torch.randint(limit, (), generator=dice))

        turns = [Turn(number, number, number + 1, GRID) for number in range(1 + below(6))]
        lines = [" ".join(WORDS[below(len(WORDS))] for _ in range(below(4))) for _ in turns]
        tokens = chunk_tokens(self.turn_format, turns, lines, self.turn_format.encode_plain("said before " * below(3)))
        vision = torch.randn(len(turns), 1 + self.num_levels, 6, self.size, generator=dice)
        embeddings, *deepstack = vision.transpose(0, 1).flatten(1, 2)
        return example_from(f"chunk {index}", tokens, embeddings, tuple(deepstack))

    def length(self, index):
        return len(self[index].input_ids)


class LossWriter(TrainerCallback):
    """Writes each loss to a file at once."""

    def __init__(self, path):
        self.path = path

    def on_log(self, args, state, control, logs, **_):
        if "loss" in logs and state.is_world_process_zero:
            with self.path.open("a") as file:
                file.write(json.dumps({"step": state.global_step, **logs}) + "\n")


def stall_at(step):
    """Leave the checkpoint of a step half written."""
    finish = Trainer._save_rng_state

    def stall(trainer, folder):
        if trainer.state.global_step == step:
            (Path(folder) / "stalled").touch()
            time.sleep(3600)
        finish(trainer, folder)

    Trainer._save_rng_state = stall


def train(checkpoint, folder, settings, *, resume=False, dataset=None, **more):
    """Train from a checkpoint and return the losses of the run and the module; ``dropout`` is of the attention."""
    torch.manual_seed(0)
    settings = DEFAULTS | settings
    dropout = settings.pop("dropout", 0.0)
    fit = FitSettings(**settings)
    model = load_model(checkpoint, device="cpu", attention=fit.attention)
    for layer in model.hf.model.language_model.layers:
        layer.self_attn.attention_dropout = dropout
    module = SFTModel(model.hf)
    collate = Collate(
        model.tokenizer.convert_tokens_to_ids("<|endoftext|>"),
        packed=fit.pack_tokens > 0,
        silence_weight=fit.silence_weight,
    )
    Path(folder).mkdir(parents=True, exist_ok=True)
    curve = fit_(
        module,
        TinyChunks(model) if dataset is None else dataset,
        collate,
        fit,
        seed=7,
        folder=folder,
        callbacks=[LossWriter(Path(folder) / "losses.jsonl"), *more.pop("callbacks", ())],
        resume=resume,
        tokenizer=model.tokenizer,
        **more,
    )
    return [point["loss"] for point in curve], module


def main(checkpoint, folder, runs, *options):
    """Do several runs in sequence."""
    torch.set_num_threads(1)
    for option in options:
        if option.startswith("stall="):
            stall_at(int(option.removeprefix("stall=")))
    for name, settings in json.loads(runs).items():
        AcceleratorState._reset_state(reset_partial_state=True)  # it remembers the sharding of the previous run
        place = Path(folder) / name
        losses, module = train(checkpoint, place, settings, resume="resume" in options, model_folder=place / "model")
        if int(os.environ.get("RANK", 0)) == 0:
            num_sharded = sum(isinstance(weights, DTensor) for weights in module.parameters())
            (place / "result.json").write_text(json.dumps({"losses": losses, "num_sharded": num_sharded}))
    if torch.distributed.is_initialized():
        torch.distributed.destroy_process_group()  # left to the interpreter's end, its threads may abort the process


if __name__ == "__main__":
    main(*sys.argv[1:])
