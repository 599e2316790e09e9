"""Just enough of the MP4 container (ISO 14496-12) to tell what a file is and what it lacks."""

from collections.abc import Iterator
from pathlib import Path

FIRST_BOXES = frozenset({b"ftyp", b"moov", b"mdat", b"wide", b"free", b"skip", b"pnot"})
"""What an MP4 or QuickTime file may begin with."""


def is_mp4(path: Path) -> bool:
    """Whether the file begins as an MP4 or QuickTime file does."""
    return next(_boxes(path), None) in FIRST_BOXES


def has_index(path: Path) -> bool:
    """Whether the index (the "moov" box) is there; recorders write it last, so that a cut file has none."""
    return b"moov" in _boxes(path)


def _boxes(path: Path) -> Iterator[bytes]:
    """Yield the names of the boxes of the outermost level, up to the end of the file or the first nonsense."""
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
            if size < 8:  # 0: up to the end of the file
                return
            start += size
