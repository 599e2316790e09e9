"""Crash-safe checkpoints: a checkpoint is complete if its marker file says so, and is ignored otherwise.

The marker is written last, after every other file has been flushed to disk, under a temporary name and then renamed. It
lists all files with their sizes, so truncated and missing files are detected.
"""

import json
import logging
import os
import re
import shutil
from collections.abc import Mapping
from itertools import filterfalse
from pathlib import Path
from types import MappingProxyType
from typing import Any

from streamingvlm.errors import ConfigError

_LOG = logging.getLogger(__name__)
_MARKER = "complete.json"
_FOLDER = re.compile(r"checkpoint-(\d+)")


def check_run_folder(folder: str | Path, *, resume: bool):
    """Raise ConfigError unless a run can be written to the folder: an empty or a new one, or a run to resume."""
    folder = Path(folder)
    if folder.exists() and not folder.is_dir():
        raise ConfigError(f"folder={folder} is a file; give a folder")
    if not resume and folder.is_dir() and any(folder.iterdir()):
        raise ConfigError(f"folder={folder} is not empty; give resume=true to resume the run in it, or another folder")


def checkpoint_folder(folder: str | Path, step: int) -> Path:
    """Return the folder of the checkpoint of a step."""
    return Path(folder) / f"checkpoint-{step}"


def commit_checkpoint(
    checkpoint: Path, resume_invariants: Mapping[str, Any], changeable: Mapping[str, Any] = MappingProxyType({})
):
    """Flush all files of a checkpoint to disk, then write its marker.

    resume_invariants: values that a resumed run must share; changeable: values that it may change. Both as JSON allows.
    """
    files = sorted(path for path in checkpoint.rglob("*") if path.is_file() and path.name != _MARKER)
    for path in files:
        _flush(path)
    sizes = {str(path.relative_to(checkpoint)): path.stat().st_size for path in files}
    partial = checkpoint / f"{_MARKER}.part"
    marker = {"run": dict(resume_invariants), "changeable": dict(changeable), "files": sizes}
    partial.write_text(json.dumps(marker, indent=1), encoding="utf-8")
    _flush(partial)
    partial.rename(checkpoint / _MARKER)
    for folder in (checkpoint, checkpoint.parent):
        _flush(folder)


def is_complete(checkpoint: Path) -> bool:
    """Return True if a checkpoint has its marker and every listed file has its size."""
    try:
        files = _read_marker(checkpoint)["files"]
        return all((checkpoint / name).stat().st_size == size for name, size in files.items())
    except (FileNotFoundError, NotADirectoryError, ValueError, KeyError):
        return False


def checkpoints(folder: str | Path) -> list[Path]:
    """List all checkpoints of a run, complete or not, oldest first."""
    found = [(match, path) for path in Path(folder).glob("checkpoint-*") if (match := _FOLDER.fullmatch(path.name))]
    return [path for _, path in sorted(found, key=lambda pair: int(pair[0][1]))]


def latest_complete_checkpoint(folder: str | Path) -> Path | None:
    """Return the newest complete checkpoint, or None."""
    return next((path for path in reversed(checkpoints(folder)) if is_complete(path)), None)


def remove_incomplete(folder: str | Path):
    """Remove incomplete checkpoints and log each one."""
    for checkpoint in filterfalse(is_complete, checkpoints(folder)):
        _LOG.warning("%s is incomplete and is removed", checkpoint)
        shutil.rmtree(checkpoint)


def keep_newest(folder: str | Path, num_kept: int):
    """Remove all but the newest ``num_kept`` complete checkpoints."""
    complete = [path for path in checkpoints(folder) if is_complete(path)]
    for checkpoint in complete[:-num_kept]:
        # The marker goes first: if the process is killed here, the rest does not pass for a complete checkpoint.
        (checkpoint / _MARKER).unlink()
        shutil.rmtree(checkpoint)


def check_resume_invariants(checkpoint: Path, resume_invariants: Mapping[str, Any]):
    """Raise ConfigError if the run that wrote a checkpoint had other values than this one.

    Values that an older version did not write are not compared.
    """
    saved = _read_marker(checkpoint)["run"]
    for name, value in _as_json(resume_invariants).items():
        if name in saved and saved[name] != value:
            raise ConfigError(
                f"{checkpoint} was written with {name}={saved[name]}, not {value}; give {name}={saved[name]} "
                "to resume, or another folder to start a new run"
            )


def changes_since(checkpoint: Path, changeable: Mapping[str, Any]) -> list[str]:
    """Describe each changeable value that differs from that of the run that wrote a checkpoint."""
    saved = _read_marker(checkpoint).get("changeable", {})
    now = _as_json(changeable)
    return [f"{name}={now[name]} (was {saved[name]})" for name in now if name in saved and saved[name] != now[name]]


def check_free_space(folder: str | Path, num_bytes: int):
    """Raise ConfigError unless the disk of a folder, which need not exist yet, has ``num_bytes`` free."""
    existing = next(path for path in (Path(folder).absolute(), *Path(folder).absolute().parents) if path.exists())
    free = shutil.disk_usage(existing).free
    if free < num_bytes:
        raise ConfigError(
            f"the disk of {folder} has {free / 1e9:,.1f} GB free, and the checkpoints need {num_bytes / 1e9:,.1f} GB; "
            "free some space, give another folder, or lower keep_checkpoints"
        )


def _read_marker(checkpoint: Path) -> dict[str, Any]:
    return json.loads((checkpoint / _MARKER).read_text(encoding="utf-8"))


def _as_json(values: Mapping[str, Any]) -> dict[str, Any]:
    """Return the values as they are read back from a marker: a tuple becomes a list."""
    return json.loads(json.dumps(dict(values)))


def _flush(path: Path):
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
