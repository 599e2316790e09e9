"""Measure the throughput of training on this machine: ``python dev/bench_training.py``, ``--help`` for more."""

import json
import logging
import sys
from pathlib import Path
from typing import Any

from streamingvlm.cli.architectures import architecture_named
from streamingvlm.cli.bench_record import make_record, save_record
from streamingvlm.cli.command_line import Command
from streamingvlm.cli.main import run


def main(options: dict[str, Any]):
    """Measure the cases, print a table and, as the last line, the record, which is saved as well."""
    from streamingvlm.benchmark.training_throughput import results_table
    from streamingvlm.errors import ConfigError
    from streamingvlm.model.loading import device_named

    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s", datefmt="%H:%M:%S")
    cases = options["cases"]
    if options["case"] is not None and options["case"] not in cases:
        raise ConfigError(f"case={options['case']} is unknown; choose one of {', '.join(cases)}")
    chosen = [options["case"]] if options["case"] is not None else list(cases)
    device = device_named(options["device"])
    results = {name: measure(cases[name], options, device) for name in chosen}
    record = make_record(
        "training",
        device,
        shape=options["shape"],
        cases={name: {"settings": cases[name], "figures": results[name]} for name in chosen},
    )
    print(results_table(results))
    if options["result_folder"]:
        logging.info("the record is in %s", save_record(record, Path(options["result_folder"])))
    print(json.dumps(record))


def measure(case: dict[str, Any], options: dict[str, Any], device) -> dict[str, Any]:
    """Return the results of one case, or an ``error`` if it does not fit into memory."""
    import torch

    from streamingvlm.benchmark.training_throughput import ChunkShape, measure_training
    from streamingvlm.training.adapters import LoraSettings
    from streamingvlm.training.settings import FitSettings

    try:
        return measure_training(
            architecture_named(case["architecture"]),
            FitSettings(**case["fit"]),
            lora=LoraSettings(**case["lora"]) if case["lora"] else None,
            shape=ChunkShape(**options["shape"]),
            weights_dtype=case["weights_dtype"],
            num_warmup_steps=options["num_warmup_steps"],
            device=str(device),
            peak_tflops=options["peak_tflops"],
        )
    except torch.OutOfMemoryError as error:
        return {"error": f"out of memory: {str(error).splitlines()[0]}"}
    finally:
        if device.type == "cuda":
            torch.cuda.empty_cache()


COMMAND = Command("python dev/bench_training.py", "bench_training", plain="case", text=("result_folder",), task=main)

if __name__ == "__main__":
    run(COMMAND, sys.argv[1:])
