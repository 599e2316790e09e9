"""Decode pictures and encode JPEG frames; a picture larger than allowed is refused before it is decoded."""

import io
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import numpy as np
import torch
from PIL import Image, ImageOps, UnidentifiedImageError

from streamingvlm.errors import VideoError

JPEG_START = b"\xff\xd8\xff"
PICTURE_FORMATS = ("JPEG", "PNG", "WEBP", "GIF")
_QUALITY = 80


def check_jpeg(data: bytes, *, max_pixels: int):
    """Raise VideoError if the header is not that of a JPEG of at most ``max_pixels``; nothing is decoded."""
    if not data.startswith(JPEG_START):
        raise VideoError("the frame is no JPEG; send pictures as image/jpeg")
    with _opened(data, ("JPEG",), max_pixels):
        pass


def decode_jpeg(data: bytes, *, max_pixels: int) -> torch.Tensor:
    """Return the picture, uint8 [3, H, W], rotated by its EXIF orientation. Raises VideoError if it is invalid."""
    check_jpeg(data, max_pixels=max_pixels)
    return _decode(data, ("JPEG",), max_pixels)


def decode_picture(data: bytes, *, max_pixels: int) -> torch.Tensor:
    """Return a JPEG, PNG, WebP or GIF as ``decode_jpeg`` does; what is transparent is shown on white."""
    return _decode(data, PICTURE_FORMATS, max_pixels)


def _decode(data: bytes, formats: Sequence[str], max_pixels: int) -> torch.Tensor:
    with _opened(data, formats, max_pixels) as image:
        picture = ImageOps.exif_transpose(image)
        if picture.has_transparency_data:
            picture = picture.convert("RGBA")
            picture = Image.alpha_composite(Image.new("RGBA", picture.size, "white"), picture)
        return frame_from_rgb(np.asarray(picture.convert("RGB")))


@contextmanager
def _opened(data: bytes, formats: Sequence[str], max_pixels: int) -> Iterator[Image.Image]:
    try:
        with Image.open(io.BytesIO(data), formats=formats) as image:
            width, height = image.size
            if width * height > max_pixels:
                raise VideoError(f"the frame has {width}x{height} pixels, more than {max_pixels}; send it smaller")
            yield image
    except UnidentifiedImageError:
        raise VideoError(f"the frame cannot be read; send a whole picture, {' or '.join(formats)}") from None
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
        reason = str(error).splitlines()[0][:100]
        raise VideoError(f"the frame cannot be decoded ({reason}); send a whole {' or '.join(formats)}") from error


def frame_from_rgb(rgb: np.ndarray) -> torch.Tensor:
    """Return an 8-bit RGB image [H, W, 3] as a frame, uint8 [3, H, W]."""
    return torch.from_numpy(np.array(rgb.transpose(2, 0, 1), order="C"))  # a copy: PIL's buffer is read-only


def encode_jpeg(frame: torch.Tensor) -> bytes:
    """Return a frame, uint8 [3, H, W], as a JPEG."""
    buffer = io.BytesIO()
    Image.fromarray(frame.permute(1, 2, 0).contiguous().numpy()).save(buffer, "JPEG", quality=_QUALITY)
    return buffer.getvalue()
