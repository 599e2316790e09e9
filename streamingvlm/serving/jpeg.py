"""Decode pictures in child processes, and encode JPEG frames."""

import io
import struct
from collections.abc import Sequence

import numpy as np
import torch
from PIL import Image

from streamingvlm.errors import VideoError
from streamingvlm.serving.picture_pool import PicturePool

JPEG_START = b"\xff\xd8\xff"
PICTURE_FORMATS = ("JPEG", "PNG", "WEBP", "GIF")
_QUALITY = 80
_SIZE = struct.Struct(">II")
_pool = PicturePool()


def check_jpeg(data: bytes, *, max_pixels: int):
    """Raise VideoError if the header is not that of a JPEG of at most ``max_pixels``; nothing is decoded."""
    check_jpeg_start(data)
    _pool.open(data, ("JPEG",), max_pixels, header_only=True)


def check_jpeg_start(data: bytes):
    """Raise VideoError if the first bytes are not those of a JPEG. Fast enough for the event loop."""
    if not data.startswith(JPEG_START):
        raise VideoError("the frame is no JPEG; send pictures as image/jpeg")


def decode_jpeg(data: bytes, *, max_pixels: int) -> torch.Tensor:
    """Return the picture, uint8 [3, H, W], rotated by its EXIF orientation. Raises VideoError if it is invalid."""
    check_jpeg_start(data)
    return _decode(data, ("JPEG",), max_pixels)


def decode_picture(data: bytes, *, max_pixels: int) -> torch.Tensor:
    """Return a JPEG, PNG, WebP or GIF as ``decode_jpeg`` does; what is transparent is shown on white."""
    return _decode(data, PICTURE_FORMATS, max_pixels)


def _decode(data: bytes, formats: Sequence[str], max_pixels: int) -> torch.Tensor:
    reply = _pool.open(data, formats, max_pixels)
    width, height = _SIZE.unpack_from(reply)
    return frame_from_rgb(np.frombuffer(reply, np.uint8, offset=_SIZE.size).reshape(height, width, 3))


def frame_from_rgb(rgb: np.ndarray) -> torch.Tensor:
    """Return an 8-bit RGB image [H, W, 3] as a frame, uint8 [3, H, W]."""
    return torch.from_numpy(np.array(rgb.transpose(2, 0, 1), order="C"))  # a copy: the buffer is read-only


def encode_jpeg(frame: torch.Tensor) -> bytes:
    """Return a frame, uint8 [3, H, W], as a JPEG."""
    buffer = io.BytesIO()
    Image.fromarray(frame.permute(1, 2, 0).contiguous().numpy()).save(buffer, "JPEG", quality=_QUALITY)
    return buffer.getvalue()
