"""The record of a benchmark: its results with date, machine and commit, saved as a JSON file."""

import json
import os
import platform
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from streamingvlm.cli.checkout import commit


def make_record(benchmark: str, device, **results: Any) -> dict[str, Any]:
    """Return a record with the current time, this machine and this commit."""
    return {
        "benchmark": benchmark,
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "machine": machine(device),
        "commit": commit(),
        **results,
    }


def machine(device) -> dict[str, Any]:
    """Return the hardware and the versions that results depend on."""
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


def save_record(record: dict[str, Any], folder: Path, name: str = "") -> Path:
    """Save a record as a new file and return its path. name: of the model, for the name of the file."""
    from streamingvlm.atomic import write_text

    device = "-".join(record["machine"]["device"].lower().split())
    stamp = record["date"].replace(":", "").replace("+0000", "Z")
    parts = (record["benchmark"], name, device, stamp)
    path = folder / f"{'-'.join(part for part in parts if part)}.json"
    write_text(path, json.dumps(record, indent=1) + "\n")
    return path
