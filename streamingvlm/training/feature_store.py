"""Vision features on disk: content-addressed, bounded in bytes, shared by any number of runs and processes.

One safetensors file an entry, named by its key, written aside and renamed, so that a reader meets a whole entry or none
and no lock is needed. Whoever writes past the bound takes out what was used longest ago; a hit renews its file's time.
An entry that cannot be read, or whose checksum is not its own, is taken out and counted, and its features made anew.
A disk that cannot be written to costs the reuse, not the run.
"""

import json
import logging
import os
import time
import uuid
import zlib
from collections import OrderedDict
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load, save

from streamingvlm.errors import ConfigError
from streamingvlm.model.vision import VisionFeatures

_LOG = logging.getLogger(__name__)
_SUFFIX, _UNFINISHED = ".safetensors", ".part"
# What is left after an eviction, so that it is not called for again at the next entry; and how much this process may
# write before it looks at what others have written.
_KEPT_SHARE, _UNSEEN_SHARE = 0.9, 0.05
_ABANDONED_S = 3600.0
_STACK_NAME = "deepstack.{}"
_LENGTH_BYTES = 8  # a safetensors file opens with the length of its header


@dataclass
class StoreCounts:
    """What became of a store's entries in this process; it grows."""

    num_corrupt: int = 0
    num_evicted: int = 0
    num_unwritten: int = 0


class FeatureStore:
    """Keeps `VisionFeatures` by key: the newest ones in memory, and in ``folder``, where one is given.

    folder: made where it is not there; None keeps memory alone.
    max_bytes, max_memory_bytes: bounds of the files and of the tensors in memory. With P processes writing at once the
        folder may stand above its bound by P twentieths of it.

    Raises ConfigError for a bound below 0 and for a folder that cannot be made.
    """

    def __init__(self, folder: str | Path | None, *, max_bytes: int, max_memory_bytes: int = 0):
        if max_bytes < 0 or max_memory_bytes < 0:
            raise ConfigError(f"a store of {min(max_bytes, max_memory_bytes)} bytes cannot be; give 0 or more")
        self.folder = None if folder is None else _made(Path(folder))
        self.max_bytes = max_bytes
        self.max_memory_bytes = max_memory_bytes
        self.counts = StoreCounts()
        self._memory: OrderedDict[str, VisionFeatures] = OrderedDict()
        self._memory_bytes = 0
        self._disk_bytes: int | None = None
        self._unseen_bytes = 0  # written since the last look

    @property
    def num_disk_bytes(self) -> int:
        """Bytes of the files, as last looked at, and of what this process has written since."""
        if self._disk_bytes is None:
            self._disk_bytes = sum(size for _, size, _ in self._entries())
        return self._disk_bytes

    def get(self, key: str) -> VisionFeatures | None:
        """Return the features of a key, on the CPU, or None where there are none that can be read."""
        if key in self._memory:
            self._memory.move_to_end(key)
            return self._memory[key]
        features = None if self.folder is None else self._read(self._path(key))
        if features is not None:
            self._remember_(key, features)
        return features

    def put(self, key: str, features: VisionFeatures) -> VisionFeatures:
        """Keep the features of a key and return them, on the CPU; they must not change afterwards."""
        features = _on_cpu(features)
        self._remember_(key, features)
        if self.folder is not None:
            self._keep_on_disk_(key, _to_bytes(features))
        return features

    def _keep_on_disk_(self, key: str, content: bytes):
        if len(content) > self.max_bytes:
            return
        try:
            self._make_room_(len(content))
            _write(self._path(key), content)
        except OSError as error:
            self._note_unwritten_(error)

    def _path(self, key: str) -> Path:
        return self.folder / key[:2] / f"{key}{_SUFFIX}"

    def _read(self, path: Path) -> VisionFeatures | None:
        try:
            # Read at once: the path may be gone, or another process's file, at a second look.
            content = path.read_bytes()
            os.utime(path)
        except FileNotFoundError:  # never written, or evicted by another process
            return None
        try:
            return _from_bytes(content)
        except (SafetensorError, ValueError, KeyError) as error:
            self.counts.num_corrupt += 1
            _LOG.warning("%s cannot be read (%s) and is made anew", path, str(error).partition("\n")[0])
            path.unlink(missing_ok=True)
            return None

    def _remember_(self, key: str, features: VisionFeatures):
        if key in self._memory:
            return
        size = _num_bytes(features)
        while self._memory and self._memory_bytes + size > self.max_memory_bytes:
            self._memory_bytes -= _num_bytes(self._memory.popitem(last=False)[1])
        if size <= self.max_memory_bytes:
            self._memory[key] = features
            self._memory_bytes += size

    def _make_room_(self, num_bytes: int):
        """Count ``num_bytes`` in, after evicting what they leave no room for."""
        self._unseen_bytes += num_bytes
        is_stale = self._unseen_bytes > _UNSEEN_SHARE * self.max_bytes
        if is_stale or self.num_disk_bytes + num_bytes > self.max_bytes:
            self._disk_bytes = self._evict_(num_bytes)
            self._unseen_bytes = 0
        self._disk_bytes += num_bytes

    def _evict_(self, num_bytes: int) -> int:
        """Make room for ``num_bytes`` where there is none; return the bytes that are left."""
        entries = sorted(self._entries())
        total = sum(size for _, size, _ in entries)
        if total + num_bytes <= self.max_bytes:
            return total
        for _, size, path in entries:
            if total + num_bytes <= _KEPT_SHARE * self.max_bytes:
                break
            path.unlink(missing_ok=True)
            total -= size
            self.counts.num_evicted += 1
        return total

    def _entries(self) -> Iterator[tuple[int, int, Path]]:
        """(time of last use in ns, size, path) of every entry; what a killed process left half written is removed."""
        if self.folder is None:
            return
        for shelf in self.folder.iterdir():
            for file in os.scandir(shelf) if shelf.is_dir() else ():
                try:
                    status = file.stat()
                except FileNotFoundError:  # another process was faster
                    continue
                if file.name.endswith(_SUFFIX):
                    yield status.st_mtime_ns, status.st_size, Path(file.path)
                elif file.name.endswith(_UNFINISHED) and time.time() - status.st_mtime > _ABANDONED_S:
                    Path(file.path).unlink(missing_ok=True)

    def _note_unwritten_(self, error: OSError):
        if not self.counts.num_unwritten:
            _LOG.warning("the vision cache %s cannot be written (%s); the run goes on without", self.folder, error)
        self.counts.num_unwritten += 1


def _made(folder: Path) -> Path:
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ConfigError(
            f"the vision cache {folder} cannot be made ({error.strerror}); give a folder that may be written"
        ) from error
    return folder


def _on_cpu(features: VisionFeatures) -> VisionFeatures:
    stack = tuple(level.detach().cpu() for level in features.deepstack)
    return VisionFeatures(features.embeddings.detach().cpu(), features.grid, stack)


def _num_bytes(features: VisionFeatures) -> int:
    return sum(tensor.nbytes for tensor in (features.embeddings, *features.deepstack))


def _checksum(tensors: dict[str, torch.Tensor]) -> str:
    checksum = 0
    for name in sorted(tensors):
        checksum = zlib.crc32(tensors[name].contiguous().view(torch.uint8).numpy(), checksum)
    return f"{checksum:08x}"


def _to_bytes(features: VisionFeatures) -> bytes:
    tensors = {"embeddings": features.embeddings.contiguous()}
    tensors |= {_STACK_NAME.format(n): level.contiguous() for n, level in enumerate(features.deepstack)}
    grid = "x".join(map(str, features.grid))
    return save(tensors, metadata={"grid": grid, "crc32": _checksum(tensors)})


def _from_bytes(content: bytes) -> VisionFeatures:
    header_bytes = int.from_bytes(content[:_LENGTH_BYTES], "little")
    metadata = json.loads(content[_LENGTH_BYTES : _LENGTH_BYTES + header_bytes])["__metadata__"]
    tensors = load(content)
    if metadata["crc32"] != _checksum(tensors):
        raise ValueError("its checksum is another")
    t, h, w = map(int, metadata["grid"].split("x"))
    stack = tuple(tensors[_STACK_NAME.format(n)] for n in range(len(tensors) - 1))
    return VisionFeatures(tensors["embeddings"], (t, h, w), stack)


def _write(path: Path, content: bytes):
    """Write a file whole or not at all, whoever else writes it at the same time."""
    path.parent.mkdir(exist_ok=True)
    unfinished = path.with_name(f"{path.stem}.{uuid.uuid4().hex}{_UNFINISHED}")
    try:
        unfinished.write_bytes(content)
        unfinished.replace(path)
    except OSError:
        unfinished.unlink(missing_ok=True)
        raise
