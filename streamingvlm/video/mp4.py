"""The outermost boxes of MP4 files (ISO 14496-12)."""

import struct
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


def outer_boxes(content: bytes) -> Iterator[tuple[bytes, bytes]]:
    """Yield the name of each outermost box of a whole file, and the box."""
    start = 0
    while start < len(content):
        size = int.from_bytes(content[start : start + 4], "big")
        yield content[start + 4 : start + 8], content[start : start + size]
        start += size


def text_fragment(text: str, start: int, end: int, *, track_id: int, number: int) -> bytes:
    """Return moof and mdat with one sample of a text track (3GPP TS 26.245), shown between two ticks of its clock.

    FFmpeg's muxer ends each run of text with an empty sample, at which the text would flicker.
    """
    words = text.encode()[: 2**16 - 1]
    sample = len(words).to_bytes(2, "big") + words
    sizes = struct.pack(">II", end - start, len(sample))

    def moof(offset: int) -> bytes:
        tfhd = _box(b"tfhd", struct.pack(">II", 0x020000, track_id))  # offsets count from the moof
        tfdt = _box(b"tfdt", struct.pack(">IQ", 1 << 24, start))
        trun = _box(b"trun", struct.pack(">III", 0x000301, 1, offset) + sizes)  # offset, durations and sizes follow
        return _box(b"moof", _box(b"mfhd", struct.pack(">II", 0, number)) + _box(b"traf", tfhd + tfdt + trun))

    header_bytes = 8
    return moof(len(moof(0)) + header_bytes) + _box(b"mdat", sample)


def _box(name: bytes, content: bytes) -> bytes:
    return struct.pack(">I", len(content) + 8) + name + content
