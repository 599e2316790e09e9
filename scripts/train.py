"""Train the embedded model: ``python scripts/train.py experiment=pitch``, ``--help`` for more."""

import logging
from pathlib import Path
from typing import Any

import torch
from command_line import CommandLine, run

from streamingvlm.training.pitch.recipe import Run, publish, recipe_from
from streamingvlm.training.pitch.report import write_loss_curves

COMMAND_LINE = CommandLine("train", plain="folder", text=("target",))


def main(options: dict[str, Any]):
    """Follow the recipe, then write the model and the picture of how it learned."""
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s", datefmt="%H:%M:%S")
    if options["num_threads"]:
        torch.set_num_threads(options["num_threads"])
    training = Run(recipe_from(options["recipe"]), options["folder"], device=options["device"])
    last = training.follow()
    target = Path(options["target"] or training.folder / "model")
    publish(training, last, target)
    write_loss_curves(training, training.folder / "loss_curves.json")
    logging.info("the model is in %s", target)


if __name__ == "__main__":
    run(main, COMMAND_LINE)
