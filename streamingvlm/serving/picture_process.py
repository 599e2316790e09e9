"""The child process that opens pictures of clients, so that a hostile one can stop or kill nothing else.

Run as a script by `picture_pool`, with the number of a socket. It imports Pillow alone, so it starts in a tenth of a
second. A request is two messages: the JSON of `_reply`'s arguments, then the picture. The reply is an error's text
after the byte 1, or width, height and RGB bytes after the byte 0.
"""

import contextlib
import io
import json
import resource
import struct
import sys
import warnings
from multiprocessing.connection import Connection

from PIL import Image, ImageOps, UnidentifiedImageError

MAX_SCANS = 100
"""A progressive JPEG usually has about 10; each costs time in proportion to the whole picture."""

_BASE_BYTES = 256 * 2**20
_BYTES_PER_PIXEL = 24
_SIZE = struct.Struct(">II")


def main(descriptor: int):
    """Serve requests until the parent closes the socket or ends."""
    warnings.simplefilter("ignore")
    with Connection(descriptor) as parent, contextlib.suppress(EOFError, BrokenPipeError):
        parent.send_bytes(b"ready")
        while True:
            asked = json.loads(parent.recv_bytes())
            parent.send_bytes(_reply(parent.recv_bytes(), **asked))


def _reply(data: bytes, *, formats: list[str], max_pixels: int, header_only: bool) -> bytes:
    _limit_memory(_BASE_BYTES + _BYTES_PER_PIXEL * max_pixels)
    names = " or ".join(formats)
    try:
        with Image.open(io.BytesIO(data), formats=formats) as image:
            _check(image, data, max_pixels)
            return b"\0" if header_only else _pixels(image)
    except UnidentifiedImageError:
        message = f"the frame cannot be read; send a whole picture, {names}"
    except _RefusedError as error:
        message = str(error)
    except MemoryError:
        message = "the frame takes too much memory to decode; send it smaller"
    except Exception as error:  # noqa: BLE001 - Pillow's parsers raise errors of many types
        reason = (str(error).splitlines() or [type(error).__name__])[0][:100]
        message = f"the frame cannot be decoded ({reason}); send a whole {names}"
    return b"\1" + message.encode()


class _RefusedError(Exception):
    """The picture is beyond a limit."""


def _check(image: Image.Image, data: bytes, max_pixels: int):
    width, height = image.size
    if width * height > max_pixels:
        raise _RefusedError(f"the frame has {width}x{height} pixels, more than {max_pixels}; send it smaller")
    if image.format == "JPEG" and (num_scans := data.count(b"\xff\xda")) > MAX_SCANS:
        raise _RefusedError(f"the frame has {num_scans} scans, more than {MAX_SCANS}; send it as a baseline JPEG")


def _pixels(image: Image.Image) -> bytes:
    picture = _upright(image)
    if picture.has_transparency_data:
        picture = picture.convert("RGBA")
        picture = Image.alpha_composite(Image.new("RGBA", picture.size, "white"), picture)
    picture = picture.convert("RGB")
    return b"\0" + _SIZE.pack(*picture.size) + picture.tobytes()


def _upright(image: Image.Image) -> Image.Image:
    image.load()
    try:
        return ImageOps.exif_transpose(image)
    except Exception:  # noqa: BLE001 - damaged EXIF data: the picture itself is whole
        return image


def _limit_memory(num_bytes: int):
    with contextlib.suppress(ValueError, OSError):  # macOS has no limit of the address space
        resource.setrlimit(resource.RLIMIT_AS, (num_bytes, resource.getrlimit(resource.RLIMIT_AS)[1]))


if __name__ == "__main__":
    main(int(sys.argv[1]))
