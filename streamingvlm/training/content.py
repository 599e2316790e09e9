"""What a file or a tensor holds, as a short name: the same content has the same name, wherever it lies."""

import hashlib
from collections.abc import Iterable
from functools import lru_cache
from pathlib import Path

import torch

# Read of a large file: enough to tell videos apart, little beside decoding one second of them.
_NUM_BLOCKS = 16
_BLOCK_BYTES = 64 * 1024


def file_identity(path: str | Path) -> str:
    """Return a digest of a file's size and of blocks spread evenly over it, the first and the last included.

    A file is read again only when its size or its time of change is another. Raises OSError.
    """
    status = Path(path).stat()
    return _identity(str(path), status.st_size, status.st_mtime_ns)


def tensors_digest(tensors: Iterable[tuple[str, torch.Tensor]]) -> str:
    """Return a digest of the names, types, shapes and bytes of tensors, in their order."""
    digest = hashlib.sha256()
    for name, tensor in tensors:
        digest.update(f"{name} {tensor.dtype} {list(tensor.shape)};".encode())
        digest.update(tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy())
    return digest.hexdigest()


@lru_cache(maxsize=2**16)
def _identity(path: str, num_bytes: int, _changed_ns: int) -> str:
    digest = hashlib.sha256(f"{num_bytes};".encode())
    last = max(num_bytes - _BLOCK_BYTES, 0)
    with open(path, "rb") as file:
        for place in sorted({last * number // (_NUM_BLOCKS - 1) for number in range(_NUM_BLOCKS)}):
            file.seek(place)
            digest.update(file.read(_BLOCK_BYTES))
    return digest.hexdigest()
