"""From the bytes of a JPEG to a frame, with nothing decoded that its header does not allow."""

import io

import numpy as np
import torch
from PIL import Image, ImageOps

from streamingvlm.errors import VideoError

JPEG_START = b"\xff\xd8\xff"
_QUALITY = 80


def decode_jpeg(data: bytes, *, max_pixels: int) -> torch.Tensor:
    """The picture, uint8 [3, H, W], turned as its camera says. Raises VideoError for what is no sound JPEG."""
    if not data.startswith(JPEG_START):
        raise VideoError("the frame is no JPEG; send pictures as image/jpeg")
    try:
        with Image.open(io.BytesIO(data), formats=["JPEG"]) as image:
            width, height = image.size
            if width * height > max_pixels:
                raise VideoError(
                    f"the frame has {width}x{height} pixels, at most {max_pixels} are taken; send it smaller"
                )
            picture = ImageOps.exif_transpose(image).convert("RGB")
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
        raise VideoError(
            f"the frame cannot be decoded ({str(error).splitlines()[0][:100]}); send a whole JPEG"
        ) from error
    return frame_of(np.asarray(picture))


def frame_of(rgb: np.ndarray) -> torch.Tensor:
    """An image [H, W, 3] of 8-bit RGB as a frame, uint8 [3, H, W]."""
    return torch.from_numpy(np.array(rgb.transpose(2, 0, 1), order="C"))  # a copy: a picture's own memory is read-only


def encode_jpeg(frame: torch.Tensor) -> bytes:
    """A frame, uint8 [3, H, W], as a JPEG to be looked at."""
    buffer = io.BytesIO()
    Image.fromarray(frame.permute(1, 2, 0).contiguous().numpy()).save(buffer, "JPEG", quality=_QUALITY)
    return buffer.getvalue()
