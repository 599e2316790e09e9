"""Train: ``python scripts/train.py data=prepared model=FOLDER experiment=stage1``, ``--help`` for more."""

import logging
import os
from collections.abc import Callable
from dataclasses import fields
from functools import partial
from pathlib import Path
from typing import Any

from command_line import CommandLine, run

from streamingvlm.errors import ConfigError

COMMAND_LINE = CommandLine("train", plain="data", text=("folder", "target", "video_root", "vision.cache_folder"))


def main(options: dict[str, Any]):
    """Follow the recipe of an experiment that has one; else fine-tune a checkpoint on prepared data.

    An experiment may also bring a ``restyling`` of the embedded model.
    """
    import datasets
    import torch

    datasets.disable_progress_bars()
    logging.basicConfig(level=_log_level(), format="%(asctime)s %(message)s", datefmt="%H:%M:%S")
    if options["num_threads"]:
        torch.set_num_threads(options["num_threads"])
    if options["recipe"]:
        follow_recipe(options)
    elif options["restyling"]:
        follow_restyling(options)
    else:
        fine_tune(options)


def _log_level() -> int:
    """Of many processes, the first speaks."""
    return logging.INFO if int(os.environ.get("RANK", 0)) == 0 else logging.WARNING


def follow_recipe(options: dict[str, Any]):
    """Train the embedded model, then write it and the picture of how it learned."""
    from streamingvlm.model.loading import device_named
    from streamingvlm.training.pitch.recipe import Run, publish, recipe_from
    from streamingvlm.training.pitch.report import write_loss_curves

    device = str(device_named(options["device"]))
    training = Run(recipe_from(options["recipe"]), options["folder"], device=device)
    training.follow()
    target = Path(options["target"] or training.folder / "model")
    publish(training, target)
    write_loss_curves(training, training.folder / "loss_curves.json")
    logging.info("the model is in %s", target)


def follow_restyling(options: dict[str, Any]):
    """Tune adapters on the embedded model to another style, and merge them."""
    from rich.console import Console

    from streamingvlm.model.loading import device_named
    from streamingvlm.training.adapters import merge
    from streamingvlm.training.pitch.restyling import restyle, restyling_from
    from streamingvlm.training.progress import ProgressLine

    folder = Path(options["folder"])
    adapter = folder / "adapter"
    device = str(device_named(options["device"]))
    restyle(restyling_from(options["restyling"]), adapter, device=device, callbacks=[ProgressLine(Console())])
    logging.info("the model is in %s", merge(adapter, options["target"] or folder / "model"))


def fine_tune(options: dict[str, Any]):
    """Fine-tune a checkpoint, or adapters of it, on prepared data."""
    import torch
    from run_log import check_logger, open_run_log
    from tuning_run import callbacks_for, check_held_out_stream, lora_from, record_adapters

    check_logger(options["logger"])
    tuning = fine_tuning_from(options, **lora_from(options["lora"]))
    check_held_out_stream(tuning, options)
    with open_run_log(options["logger"], folder=tuning.folder, description=options) as run_logs:
        meter, callbacks = callbacks_for(tuning, options, run_logs)
        tuning.fit_(callbacks=callbacks, meter=meter)
    record_adapters(tuning)
    if torch.distributed.is_initialized():
        torch.distributed.destroy_process_group()
    logging.info("the model is in %s", tuning.target)


def fine_tuning_from(options: dict[str, Any], load: Callable | None = None, **how):
    """The run that the options describe, checked."""
    from streamingvlm.model.loading import load_model
    from streamingvlm.training.fine_tuning import FineTuning, FineTuningSettings, VisionSettings
    from streamingvlm.training.settings import FitSettings

    if options["model"]["quantization"]:
        raise ConfigError("model.quantization is for streams; to train beside weights in 4 bits, choose lora=qlora")
    parts = {
        "fit": FitSettings(**options["fit"]),
        "vision": VisionSettings(**options["vision"]),
        "model": options["model"]["name"],
        "weights_dtype": options["model"]["dtype"],
        "device": options["device"] or options["model"]["device"],
    }
    names = {field.name for field in fields(FineTuningSettings)} - set(parts)
    how["load"] = partial(load or load_model, cpu_kernels=options["model"]["cpu_kernels"])
    return FineTuning(FineTuningSettings(**parts, **{name: options[name] for name in names}), **how)


if __name__ == "__main__":
    run(main, COMMAND_LINE)
