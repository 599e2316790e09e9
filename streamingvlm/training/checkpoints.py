"""Checkpoints of a run that may die at any moment: one is whole once its marker says so, and else it is not there.

The marker is written last, to a name of its own and then renamed, after every other file has reached the disk. It lists
the files with their sizes, so that a file that was cut short or lost is noticed.
"""

import json
import logging
import os
import re
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from streamingvlm.errors import ConfigError

_LOG = logging.getLogger(__name__)
_MARKER = "complete.json"
_FOLDER = re.compile(r"checkpoint-(\d+)")


def checkpoint_folder(folder: str | Path, step: int) -> Path:
    """Where the checkpoint of a step lies."""
    return Path(folder) / f"checkpoint-{step}"


def mark_whole(checkpoint: Path, run: Mapping[str, Any]):
    """Declare a checkpoint whole, once all of it is on the disk; ``run`` is what a later run must agree with."""
    files = sorted(path for path in checkpoint.rglob("*") if path.is_file() and path.name != _MARKER)
    for path in files:
        _flush(path)
    sizes = {str(path.relative_to(checkpoint)): path.stat().st_size for path in files}
    unfinished = checkpoint / f"{_MARKER}.part"
    unfinished.write_text(json.dumps({"run": dict(run), "files": sizes}, indent=1), encoding="utf-8")
    _flush(unfinished)
    unfinished.rename(checkpoint / _MARKER)
    for place in (checkpoint, checkpoint.parent):
        _flush(place)


def is_whole(checkpoint: Path) -> bool:
    """Whether a checkpoint has its marker, and every file that the marker lists in its size."""
    try:
        files = json.loads((checkpoint / _MARKER).read_text(encoding="utf-8"))["files"]
        return all((checkpoint / name).stat().st_size == size for name, size in files.items())
    except (FileNotFoundError, NotADirectoryError, ValueError, KeyError):
        return False


def checkpoints(folder: str | Path) -> list[Path]:
    """All checkpoints of a run, whole or not, the oldest first."""
    found = [(match, path) for path in Path(folder).glob("checkpoint-*") if (match := _FOLDER.fullmatch(path.name))]
    return [path for _, path in sorted(found, key=lambda pair: int(pair[0][1]))]


def last_whole_checkpoint(folder: str | Path) -> Path | None:
    """The newest checkpoint that is whole; None where there is none."""
    return next((path for path in reversed(checkpoints(folder)) if is_whole(path)), None)


def remove_broken(folder: str | Path):
    """Remove checkpoints that were never finished or have lost files, with a line in the log for each."""
    for checkpoint in checkpoints(folder):
        if not is_whole(checkpoint):
            _LOG.warning("%s is not whole and is removed", checkpoint)
            shutil.rmtree(checkpoint)


def keep_newest(folder: str | Path, num_kept: int):
    """Remove all but the newest ``num_kept`` whole checkpoints."""
    whole = [path for path in checkpoints(folder) if is_whole(path)]
    for checkpoint in whole[:-num_kept]:
        # Without its marker first: what is left of it after a kill shall not be taken for whole.
        (checkpoint / _MARKER).unlink()
        shutil.rmtree(checkpoint)


def check_same_run(checkpoint: Path, run: Mapping[str, Any]):
    """Raise ConfigError where a checkpoint was made by a run that goes through its data in another order."""
    before = json.loads((checkpoint / _MARKER).read_text(encoding="utf-8"))["run"]
    for name, value in run.items():
        if before.get(name) != value:
            raise ConfigError(
                f"{checkpoint} was made with {name}={before.get(name)}, not {value}; give {name}={before.get(name)} to "
                "go on, or another folder to begin anew"
            )


def check_room(folder: str | Path, num_bytes: int):
    """Raise ConfigError unless the disk of a folder, which need not be there yet, has room for so many bytes."""
    place = next(place for place in (Path(folder).absolute(), *Path(folder).absolute().parents) if place.exists())
    free = shutil.disk_usage(place).free
    if free < num_bytes:
        raise ConfigError(
            f"{folder} has {free / 1e9:,.1f} GB left, but the checkpoints take {num_bytes / 1e9:,.1f} GB; make room, "
            "give another folder, or fewer with keep_checkpoints"
        )


def _flush(path: Path):
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
