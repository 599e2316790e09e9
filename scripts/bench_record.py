"""What every benchmark's record says beside its figures: when, on what, by which code; and the file that keeps it."""

import json
import os
import platform
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from checkout import commit


def record_of(benchmark: str, device, **figures: Any) -> dict[str, Any]:
    """A record of figures that were measured just now."""
    return {
        "benchmark": benchmark,
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "machine": machine(device),
        "commit": commit(),
        **figures,
    }


def machine(device) -> dict[str, Any]:
    """What the figures were measured on."""
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


def keep(record: dict[str, Any], folder: Path, name: str = "") -> Path:
    """Write the record to a file of its own, and return its path; ``name``: of what was measured."""
    from streamingvlm.atomic import write_text

    device = "-".join(record["machine"]["device"].lower().split())
    stamp = record["date"].replace(":", "").replace("+0000", "Z")
    parts = (record["benchmark"], name, device, stamp)
    path = folder / f"{'-'.join(part for part in parts if part)}.json"
    write_text(path, json.dumps(record, indent=1) + "\n")
    return path
