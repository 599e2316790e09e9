"""How fast this machine trains: ``python scripts/bench_training.py``, ``--help`` for more."""

import json
import logging
import platform
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from checkout import commit
from command_line import CommandLine, run

COMMAND_LINE = CommandLine("bench_training", plain="case", text=("result_folder",))


def main(options: dict[str, Any]):
    """Measure the cases, print a table and, as the last line, the record, which is also kept as a file."""
    from streamingvlm.errors import ConfigError
    from streamingvlm.model.loading import device_named
    from streamingvlm.training.benchmark import table

    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s", datefmt="%H:%M:%S")
    cases = options["cases"]
    if options["case"] is not None and options["case"] not in cases:
        raise ConfigError(f"case={options['case']} is unknown; choose one of {', '.join(cases)}")
    chosen = [options["case"]] if options["case"] is not None else list(cases)
    device = device_named(options["device"])
    results = {name: measure(cases[name], options, device) for name in chosen}
    record = {
        "benchmark": "training",
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "machine": machine(device),
        "commit": commit(),
        "shape": options["shape"],
        "cases": {name: {"settings": cases[name], "figures": results[name]} for name in chosen},
    }
    print(table(results))
    if options["result_folder"]:
        keep(record, Path(options["result_folder"]))
    print(json.dumps(record))


def measure(case: dict[str, Any], options: dict[str, Any], device) -> dict[str, Any]:
    """The figures of one case, or why there are none."""
    import torch

    from streamingvlm.training.adapters import LoraSettings
    from streamingvlm.training.benchmark import ChunkShape, measure_training
    from streamingvlm.training.settings import FitSettings

    try:
        return measure_training(
            case["architecture"],
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


def machine(device) -> dict[str, Any]:
    """What the figures were measured on."""
    import os

    import torch
    import transformers

    name = torch.cuda.get_device_name(device) if device.type == "cuda" else platform.processor() or platform.machine()
    return {
        "device": name,
        "num_cpus": os.cpu_count(),
        "num_threads": torch.get_num_threads(),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "transformers": transformers.__version__,
    }


def keep(record: dict[str, Any], folder: Path):
    """Write the record to a file of its own."""
    folder.mkdir(parents=True, exist_ok=True)
    device = "-".join(record["machine"]["device"].lower().split())
    stamp = record["date"].replace(":", "").replace("+0000", "Z")
    path = folder / f"training-{device}-{stamp}.json"
    path.write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")
    logging.info("the record is in %s", path)


if __name__ == "__main__":
    run(main, COMMAND_LINE)
