"""Digests of files and tensors: equal content has an equal digest, whatever its path."""

import hashlib
from collections.abc import Iterable
from functools import lru_cache
from pathlib import Path

import torch

# Read from a large file: enough to tell videos apart, and cheap compared with decoding one second of them.
_NUM_BLOCKS = 16
_BLOCK_BYTES = 64 * 1024


def file_digest(path: str | Path) -> str:
    """Return a digest of a file's size and of blocks spread evenly over it, including the first and the last.

    The file is read again only if its size or modification time has changed. Raises OSError.
    """
    status = Path(path).stat()
    return _cached_digest(str(path), status.st_size, status.st_mtime_ns)


def tensors_digest(tensors: Iterable[tuple[str, torch.Tensor]]) -> str:
    """Return a digest of the names, dtypes, shapes and bytes of tensors, in the order given."""
    digest = hashlib.sha256()
    for name, tensor in tensors:
        digest.update(f"{name} {tensor.dtype} {list(tensor.shape)};".encode())
        digest.update(tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy())
    return digest.hexdigest()


@lru_cache(maxsize=2**16)
def _cached_digest(path: str, num_bytes: int, _modified_ns: int) -> str:
    digest = hashlib.sha256(f"{num_bytes};".encode())
    last = max(num_bytes - _BLOCK_BYTES, 0)
    with open(path, "rb") as file:
        for offset in sorted({last * number // (_NUM_BLOCKS - 1) for number in range(_NUM_BLOCKS)}):
            file.seek(offset)
            digest.update(file.read(_BLOCK_BYTES))
    return digest.hexdigest()
