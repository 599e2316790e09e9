"""A snapshot on disk: a folder that is complete at every moment, even if its writer is killed.

    snapshot.json           the content in JSON, with its checksum; replaced atomically, after all files that it names
    run-<hex>/<part>        tensors in safetensors, each with its checksum in snapshot.json
    output.json             how far the stream's output files had come, if it has any (output_files.py)

Each writer has its own run with a random name, and removes other runs only after its own first snapshot is published.
Nothing in a snapshot can be executed. A snapshot survives the death of the process, not of the machine: no file is
synced to the disk.
"""

import json
import re
import shutil
import zlib
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from uuid import uuid4

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from streamingvlm.atomic import write_json
from streamingvlm.errors import SnapshotError

FORMAT, VERSION = "streamingvlm snapshot", 2

OUTPUT_JOURNAL = "output.json"

_MANIFEST = "snapshot.json"
_RUN = re.compile(r"run-[0-9a-f]{32}")
_PART = re.compile(r"[a-z]+-\d+\.safetensors")


@dataclass(frozen=True)
class Part:
    """A file of tensors: its name in the run's folder, and the checksum of its content."""

    name: str
    checksum: int


class SnapshotFolder:
    """The writing side. Raises SnapshotError if the folder cannot be written or holds other files."""

    def __init__(self, path: str | Path):
        self.path = Path(path)
        self._run = f"run-{uuid4().hex}"
        self._run_before = self._published_run()

    def write_part(self, name: str, tensors: Mapping[str, torch.Tensor]) -> Part:
        """Write tensors of any device; they are part of the snapshot once `publish` names them."""
        tensors = {key: tensor.detach().cpu().contiguous() for key, tensor in tensors.items()}
        self._written(lambda: (self.path / self._run).mkdir(parents=True, exist_ok=True))
        self._written(lambda: save_file(tensors, self.path / self._run / name))
        return Part(name, _checksum(tensors))

    def publish(self, body: Mapping[str, Any], parts: Collection[Part]):
        """Make this the snapshot, and remove the files that only older snapshots named."""
        if self._published_run() != self._run_before:
            raise SnapshotError(f"another stream writes to {self.path}, too; give each stream its own folder")
        body = {**body, "run": self._run}
        document = {"format": FORMAT, "version": VERSION, "checksum": _checksum_of_json(body), "body": body}
        self._written(lambda: write_json(self.path / _MANIFEST, document))
        if self._run_before != self._run:
            self._remove_other_runs()
        self._run_before = self._run
        for file in (self.path / self._run).iterdir():
            if file.name not in {part.name for part in parts}:
                file.unlink()

    def _published_run(self) -> str | None:
        """Return the published run, None without a snapshot. Raises SnapshotError for a folder of other files."""
        try:
            return json.loads((self.path / _MANIFEST).read_bytes())["body"]["run"]
        except FileNotFoundError:
            if self.path.is_dir() and any(not _is_ours(file) for file in self.path.iterdir()):
                raise SnapshotError(f"{self.path} holds other files; name a new folder, or an empty one") from None
            return None
        except NotADirectoryError as error:
            raise SnapshotError(f"{self.path} is a file, expected a folder; name a new one") from error
        except (ValueError, KeyError, TypeError):
            return ""  # a damaged snapshot may be replaced
        except OSError as error:
            raise SnapshotError(f"{self.path} cannot be read ({error.strerror}); check its permissions") from error

    def _remove_other_runs(self):
        for file in self.path.iterdir():
            if _is_ours(file) and file.name not in (self._run, _MANIFEST, OUTPUT_JOURNAL):
                shutil.rmtree(file) if file.is_dir() else file.unlink()

    def _written(self, write):
        try:
            write()
        except (OSError, SafetensorError) as error:
            reason = getattr(error, "strerror", None) or error
            raise SnapshotError(
                f"{self.path}: the snapshot cannot be written ({reason}), the previous one is intact; free some "
                "space, or name another folder"
            ) from error


def has_snapshot(path: str | Path) -> bool:
    """Return True if there is a snapshot, damaged or not."""
    return (Path(path) / _MANIFEST).is_file()


def last_published(path: str | Path) -> float:
    """Return the time.time() at which a snapshot was last published. Raises OSError if there is none."""
    return (Path(path) / _MANIFEST).stat().st_mtime


def read_manifest(path: str | Path) -> dict[str, Any]:
    """Read the body that `publish` wrote. Raises SnapshotError if it is absent, damaged or of another version."""
    path = Path(path)
    try:
        document = json.loads((path / _MANIFEST).read_bytes())
    except OSError as error:
        raise SnapshotError(
            f"{path} has no snapshot ({error.strerror}); name a folder that session.save wrote"
        ) from error
    except ValueError as error:
        raise damaged(path, f"{_MANIFEST} is not JSON") from error
    if not isinstance(document, dict) or document.get("format") != FORMAT:
        raise SnapshotError(f"{path / _MANIFEST} is not a snapshot of a stream; name a folder that session.save wrote")
    if document.get("version") != VERSION:
        raise SnapshotError(
            f"{path} is a snapshot of version {document.get('version')}, expected {VERSION}; load it with the "
            "streamingvlm that wrote it"
        )
    body = document.get("body")
    if not isinstance(body, dict) or document.get("checksum") != _checksum_of_json(body):
        raise damaged(path, f"the checksum of {_MANIFEST} differs")
    return body


def read_part(path: str | Path, run: str, part: Part) -> dict[str, torch.Tensor]:
    """Read the tensors of a part onto the CPU. Raises SnapshotError if they are not those that were written."""
    path = Path(path)
    if not (_RUN.fullmatch(run) and _PART.fullmatch(part.name)):
        raise damaged(path, f"it names a file {run}/{part.name}")
    try:
        tensors = load_file(path / run / part.name)
    except (OSError, SafetensorError) as error:
        raise damaged(path, f"{part.name} cannot be read") from error
    if _checksum(tensors) != part.checksum:
        raise damaged(path, f"the checksum of {part.name} differs")
    return tensors


def damaged(path: str | Path, what: str) -> SnapshotError:
    """Return the error for a damaged snapshot."""
    return SnapshotError(f"the snapshot {path} is damaged ({what}); use another copy, or start the stream again")


def _is_ours(file: Path) -> bool:
    names = (_MANIFEST, OUTPUT_JOURNAL)
    partial = tuple(f".{name}." for name in names)
    return bool(_RUN.fullmatch(file.name)) or file.name in names or file.name.startswith(partial)


def _checksum(tensors: Mapping[str, torch.Tensor]) -> int:
    total = 0
    for name in sorted(tensors):
        total = zlib.crc32(f"{name} {tensors[name].dtype} {tuple(tensors[name].shape)}".encode(), total)
        total = zlib.crc32(tensors[name].reshape(-1).view(torch.uint8).numpy(), total)
    return total


def _checksum_of_json(body: Mapping[str, Any]) -> int:
    return zlib.crc32(json.dumps(body, sort_keys=True).encode())
