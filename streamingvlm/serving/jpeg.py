"""Decode and encode JPEG frames; a picture larger than allowed is refused before it is decoded."""

import io

import numpy as np
import torch
from PIL import Image, ImageOps

from streamingvlm.errors import VideoError

JPEG_START = b"\xff\xd8\xff"
_QUALITY = 80


def decode_jpeg(data: bytes, *, max_pixels: int) -> torch.Tensor:
    """Return the picture, uint8 [3, H, W], rotated by its EXIF orientation. Raises VideoError if it is invalid."""
    if not data.startswith(JPEG_START):
        raise VideoError("the frame is no JPEG; send pictures as image/jpeg")
    try:
        with Image.open(io.BytesIO(data), formats=["JPEG"]) as image:
            width, height = image.size
            if width * height > max_pixels:
                raise VideoError(f"the frame has {width}x{height} pixels, more than {max_pixels}; send it smaller")
            picture = ImageOps.exif_transpose(image).convert("RGB")
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
        raise VideoError(
            f"the frame cannot be decoded ({str(error).splitlines()[0][:100]}); send a whole JPEG"
        ) from error
    return frame_from_rgb(np.asarray(picture))


def frame_from_rgb(rgb: np.ndarray) -> torch.Tensor:
    """Return an 8-bit RGB image [H, W, 3] as a frame, uint8 [3, H, W]."""
    return torch.from_numpy(np.array(rgb.transpose(2, 0, 1), order="C"))  # a copy: PIL's buffer is read-only


def encode_jpeg(frame: torch.Tensor) -> bytes:
    """Return a frame, uint8 [3, H, W], as a JPEG."""
    buffer = io.BytesIO()
    Image.fromarray(frame.permute(1, 2, 0).contiguous().numpy()).save(buffer, "JPEG", quality=_QUALITY)
    return buffer.getvalue()
