"""``streamingvlm train``: fine-tune a checkpoint on prepared data, or train the embedded model."""

import logging
import os
from collections.abc import Callable
from dataclasses import fields
from functools import partial
from pathlib import Path
from typing import Any

from streamingvlm.errors import ConfigError


def train(options: dict[str, Any]):
    """Fine-tune a checkpoint on prepared data, or run the ``recipe`` or the ``restyling`` that an experiment sets."""
    import datasets
    import torch

    datasets.disable_progress_bars()
    logging.basicConfig(level=_log_level(), format="%(asctime)s %(message)s", datefmt="%H:%M:%S")
    if options["num_threads"]:
        torch.set_num_threads(options["num_threads"])
    if options["recipe"]:
        train_recipe(options)
    elif options["restyling"]:
        train_restyling(options)
    else:
        fine_tune(options)


def _log_level() -> int:
    """Log at level INFO in the first process only."""
    return logging.INFO if int(os.environ.get("RANK", 0)) == 0 else logging.WARNING


def train_recipe(options: dict[str, Any]):
    """Train the embedded model, then write it and its loss curves."""
    from rich.console import Console

    from streamingvlm.model.loading import device_named
    from streamingvlm.training.pitch.loss_curves import write_loss_curves
    from streamingvlm.training.pitch.recipe import RecipeRun, export_model, recipe_from
    from streamingvlm.training.progress import ProgressLine

    recipe, device = recipe_from(options["recipe"]), str(device_named(options["device"]))
    recipe_run = RecipeRun(recipe, options["folder"], device=device, callbacks=[ProgressLine(Console())])
    recipe_run.train()
    target = Path(options["target"] or recipe_run.folder / "model")
    export_model(recipe_run, target)
    write_loss_curves(recipe_run, recipe_run.folder / "loss_curves.json")
    logging.info("the model is in %s", target)


def train_restyling(options: dict[str, Any]):
    """Train adapters of the embedded model for another style, and merge them."""
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
    """Fine-tune a checkpoint on prepared data, with or without adapters."""
    import torch

    from streamingvlm.cli.run_log import check_logger, open_run_log
    from streamingvlm.cli.tuning_run import callbacks_for, check_held_out_stream, lora_from, write_adapter_record

    check_logger(options["logger"])
    tuning = fine_tuning_from(options, **lora_from(options["lora"]))
    check_held_out_stream(tuning, options)
    with open_run_log(options["logger"], folder=tuning.folder, description=options) as run_logs:
        meter, callbacks = callbacks_for(tuning, options, run_logs)
        tuning.fit(callbacks=callbacks, meter=meter)
    write_adapter_record(tuning)
    if torch.distributed.is_initialized():
        torch.distributed.destroy_process_group()
    logging.info("the model is in %s", tuning.target)


def fine_tuning_from(options: dict[str, Any], load: Callable | None = None, **arguments):
    """Make the `FineTuning` that the options describe, which checks them."""
    from streamingvlm.model.loading import load_model
    from streamingvlm.training.fine_tuning import FineTuning, FineTuningSettings, VisionSettings
    from streamingvlm.training.settings import FitSettings

    if options["model"]["quantization"]:
        raise ConfigError(
            "model.quantization is for inference only; to train adapters on 4-bit weights, give lora=qlora"
        )
    parts = {
        "fit": FitSettings(**options["fit"]),
        "vision": VisionSettings(**options["vision"]),
        "model": options["model"]["name"],
        "weights_dtype": options["model"]["dtype"],
        "device": options["device"] or options["model"]["device"],
    }
    names = {field.name for field in fields(FineTuningSettings)} - set(parts)
    arguments["load"] = partial(load or load_model, cpu_kernels=options["model"]["cpu_kernels"])
    return FineTuning(FineTuningSettings(**parts, **{name: options[name] for name in names}), **arguments)
