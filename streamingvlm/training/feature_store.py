"""Vision features on disk: content-addressed, bounded in bytes, shared by any number of runs and processes.

Each entry is one safetensors file named by its key. It is written under a temporary name and renamed, so a reader finds
a complete file or none and no locks are needed. A process that writes past the bound evicts the least recently used
entries; a cache hit updates the modification time of its file. An entry that is unreadable or fails its checksum is
deleted and counted, and the caller encodes again. If the disk cannot be written, the run continues without caching.
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
_SUFFIX, _PARTIAL_SUFFIX = ".safetensors", ".part"
# Share of the bound left after an eviction, so that the next entry does not trigger another; and share that this
# process may write before it scans the folder for what other processes have written.
_KEPT_SHARE, _RESCAN_SHARE = 0.9, 0.05
_STALE_S = 3600.0
_DEEPSTACK_NAME = "deepstack.{}"
_HEADER_LENGTH_BYTES = 8  # a safetensors file begins with the length of its header


@dataclass
class StoreCounts:
    """Counters of a store in this process."""

    num_corrupt: int = 0
    num_evicted: int = 0
    num_failed_writes: int = 0


class FeatureStore:
    """Keeps `VisionFeatures` by key: the most recent ones in memory, and all in ``folder`` if one is given.

    folder: created if missing; None keeps features in memory only.
    max_bytes, max_memory_bytes: bounds of the files and of the tensors in memory. With P processes writing at once, the
        files may exceed their bound by P twentieths.

    Raises ConfigError for a bound below 0 and for a folder that cannot be created.
    """

    def __init__(self, folder: str | Path | None, *, max_bytes: int, max_memory_bytes: int = 0):
        if max_bytes < 0 or max_memory_bytes < 0:
            raise ConfigError(f"a feature store cannot hold {min(max_bytes, max_memory_bytes)} bytes; give 0 or more")
        self.folder = None if folder is None else _make_folder(Path(folder))
        self.max_bytes = max_bytes
        self.max_memory_bytes = max_memory_bytes
        self.counts = StoreCounts()
        self._memory: OrderedDict[str, VisionFeatures] = OrderedDict()
        self._memory_bytes = 0
        self._disk_bytes: int | None = None
        self._bytes_since_scan = 0

    @property
    def num_disk_bytes(self) -> int:
        """Bytes of the files at the last scan, plus what this process has written since."""
        if self._disk_bytes is None:
            self._disk_bytes = sum(size for _, size, _ in self._entries())
        return self._disk_bytes

    def get(self, key: str) -> VisionFeatures | None:
        """Return the features of a key, on the CPU, or None on a cache miss."""
        if key in self._memory:
            self._memory.move_to_end(key)
            return self._memory[key]
        features = None if self.folder is None else self._read(self._path(key))
        if features is not None:
            self._keep_in_memory(key, features)
        return features

    def put(self, key: str, features: VisionFeatures) -> VisionFeatures:
        """Store the features of a key and return them, on the CPU; the caller must not change them afterwards."""
        features = _on_cpu(features)
        self._keep_in_memory(key, features)
        if self.folder is not None:
            self._keep_on_disk(key, _to_bytes(features))
        return features

    def _keep_on_disk(self, key: str, content: bytes):
        if len(content) > self.max_bytes:
            return
        try:
            self._reserve(len(content))
            _write(self._path(key), content)
        except OSError as error:
            self._count_failed_write(error)

    def _path(self, key: str) -> Path:
        return self.folder / key[:2] / f"{key}{_SUFFIX}"

    def _read(self, path: Path) -> VisionFeatures | None:
        try:
            # One read: another process may delete or replace the file between two accesses.
            content = path.read_bytes()
            os.utime(path)
        except FileNotFoundError:  # never written, or evicted by another process
            return None
        try:
            return _from_bytes(content)
        except (SafetensorError, ValueError, KeyError) as error:
            self.counts.num_corrupt += 1
            _LOG.warning("%s is unreadable (%s) and is encoded again", path, str(error).partition("\n")[0])
            path.unlink(missing_ok=True)
            return None

    def _keep_in_memory(self, key: str, features: VisionFeatures):
        if key in self._memory:
            return
        size = _num_bytes(features)
        while self._memory and self._memory_bytes + size > self.max_memory_bytes:
            self._memory_bytes -= _num_bytes(self._memory.popitem(last=False)[1])
        if size <= self.max_memory_bytes:
            self._memory[key] = features
            self._memory_bytes += size

    def _reserve(self, num_bytes: int):
        """Count ``num_bytes`` as written, after evicting entries if they do not fit."""
        self._bytes_since_scan += num_bytes
        is_outdated = self._bytes_since_scan > _RESCAN_SHARE * self.max_bytes
        if is_outdated or self.num_disk_bytes + num_bytes > self.max_bytes:
            self._disk_bytes = self._evict(num_bytes)
            self._bytes_since_scan = 0
        self._disk_bytes += num_bytes

    def _evict(self, num_bytes: int) -> int:
        """Evict entries until ``num_bytes`` fit; return the bytes of the remaining entries."""
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
        """Yield (time of last use in ns, size, path) of every entry; delete stale partial files of killed processes."""
        if self.folder is None:
            return
        for subfolder in self.folder.iterdir():
            for file in os.scandir(subfolder) if subfolder.is_dir() else ():
                try:
                    status = file.stat()
                except FileNotFoundError:  # another process has evicted it
                    continue
                if file.name.endswith(_SUFFIX):
                    yield status.st_mtime_ns, status.st_size, Path(file.path)
                elif file.name.endswith(_PARTIAL_SUFFIX) and time.time() - status.st_mtime > _STALE_S:
                    Path(file.path).unlink(missing_ok=True)

    def _count_failed_write(self, error: OSError):
        if not self.counts.num_failed_writes:
            _LOG.warning("the vision cache %s cannot be written (%s); the run goes on without it", self.folder, error)
        self.counts.num_failed_writes += 1


def _make_folder(folder: Path) -> Path:
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ConfigError(
            f"the vision cache {folder} cannot be created ({error.strerror}); give a writable folder"
        ) from error
    return folder


def _on_cpu(features: VisionFeatures) -> VisionFeatures:
    deepstack = tuple(level.detach().cpu() for level in features.deepstack)
    return VisionFeatures(features.embeddings.detach().cpu(), features.grid, deepstack)


def _num_bytes(features: VisionFeatures) -> int:
    return sum(tensor.nbytes for tensor in (features.embeddings, *features.deepstack))


def _checksum(tensors: dict[str, torch.Tensor]) -> str:
    checksum = 0
    for name in sorted(tensors):
        checksum = zlib.crc32(tensors[name].contiguous().view(torch.uint8).numpy(), checksum)
    return f"{checksum:08x}"


def _to_bytes(features: VisionFeatures) -> bytes:
    tensors = {"embeddings": features.embeddings.contiguous()}
    tensors |= {_DEEPSTACK_NAME.format(n): level.contiguous() for n, level in enumerate(features.deepstack)}
    grid = "x".join(map(str, features.grid))
    return save(tensors, metadata={"grid": grid, "crc32": _checksum(tensors)})


def _from_bytes(content: bytes) -> VisionFeatures:
    header_bytes = int.from_bytes(content[:_HEADER_LENGTH_BYTES], "little")
    metadata = json.loads(content[_HEADER_LENGTH_BYTES : _HEADER_LENGTH_BYTES + header_bytes])["__metadata__"]
    tensors = load(content)
    if metadata["crc32"] != _checksum(tensors):
        raise ValueError("wrong checksum")
    t, h, w = map(int, metadata["grid"].split("x"))
    deepstack = tuple(tensors[_DEEPSTACK_NAME.format(n)] for n in range(len(tensors) - 1))
    return VisionFeatures(tensors["embeddings"], (t, h, w), deepstack)


def _write(path: Path, content: bytes):
    """Write a file completely or not at all; several processes may write the same path."""
    path.parent.mkdir(exist_ok=True)
    partial = path.with_name(f"{path.stem}.{uuid.uuid4().hex}{_PARTIAL_SUFFIX}")
    try:
        partial.write_bytes(content)
        partial.replace(path)
    except OSError:
        partial.unlink(missing_ok=True)
        raise
