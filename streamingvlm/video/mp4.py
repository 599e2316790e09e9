"""Parse the outermost boxes of MP4 files (ISO 14496-12)."""

from collections.abc import Iterator
from pathlib import Path

FIRST_BOXES = frozenset({b"ftyp", b"moov", b"mdat", b"wide", b"free", b"skip", b"pnot"})
"""Boxes that an MP4 or QuickTime file may begin with."""


def is_mp4(path: Path) -> bool:
    """Return True if the file begins like an MP4 or QuickTime file."""
    return next(_boxes(path), None) in FIRST_BOXES


def has_index(path: Path) -> bool:
    """Return True if the file has an index (a "moov" box). Recorders write it last, so a truncated file has none."""
    return b"moov" in _boxes(path)


def _boxes(path: Path) -> Iterator[bytes]:
    """Yield the names of the outermost boxes, up to the end of the file or the first invalid one."""
    with open(path, "rb") as file:
        end = file.seek(0, 2)
        start = 0
        while start + 8 <= end:
            file.seek(start)
            header = file.read(16)
            yield header[4:8]
            size = int.from_bytes(header[:4], "big")
            if size == 1:  # a 64-bit size follows the name
                size = int.from_bytes(header[8:16], "big")
            if size < 8:  # 0: the box reaches to the end of the file
                return
            start += size
