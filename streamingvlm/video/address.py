"""Parse the source that a user names: a file, a camera, a network address, a pipe.

An address may contain a password, which only the decoder gets. Everything that is displayed, logged or named after a
source uses `Address.shown` and `Address.name`, which contain no secrets.
"""

import os
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Literal
from urllib.parse import unquote, urlsplit

from streamingvlm.errors import VideoError

SourceKind = Literal["file", "pipe", "webcam", "rtsp", "rtmp", "http"]

KIND_OF_SCHEME: dict[str, SourceKind] = {
    "file": "file",
    "rtsp": "rtsp",
    "rtsps": "rtsp",
    "rtmp": "rtmp",
    "http": "http",
    "https": "http",
}
"""FFmpeg supports many more, including some that read any file or join several addresses (`concat:`, `subfile:`)."""

VIDEO_SUFFIXES = frozenset({".avi", ".flv", ".m4v", ".mkv", ".mov", ".mp4", ".mpeg", ".mpg", ".ts", ".webm", ".wmv"})

_URL = re.compile(r"(?P<scheme>[A-Za-z][A-Za-z0-9+.-]+)://(?P<rest>.*)", re.DOTALL)
_WEBCAM = re.compile(r"webcam(?::(?P<device>.+))?")


@dataclass(frozen=True)
class Address:
    """A parsed source.

    target: what the decoder opens: a path, an address, or the number or name of a camera. shown: its name in messages,
    without secrets. name: for the names of output files.
    """

    kind: SourceKind
    target: str
    shown: str
    name: str

    @property
    def source(self) -> str | Path:
        """The source as `parse_address` takes it."""
        return {"file": Path(self.target), "webcam": f"webcam:{self.target}"}.get(self.kind, self.target)

    def __repr__(self) -> str:
        return f"Address({self.shown})"


def parse_address(source: str | Path | int) -> Address:
    """Parse a source that a user has named.

    "-" is standard input. "webcam" or 0 is the first camera, "webcam:2", 2 or "webcam:/dev/video2" another. An address
    has the scheme file, rtsp, rtsps, rtmp, http or https. Anything else is a path. Raises VideoError for another scheme
    and for a malformed address.
    """
    text = f"webcam:{source}" if isinstance(source, int) else str(source)
    if isinstance(source, Path):
        return Address("file", text, repr(text), source.stem)
    if text == "-":
        return Address("pipe", text, "standard input", "pipe")
    if match := _WEBCAM.fullmatch(text):
        device = match["device"] or "0"
        return Address("webcam", device, text, _file_name(text))
    if match := _URL.fullmatch(text):
        return _parse_url(text, match["scheme"].lower())
    return Address("file", text, repr(text), Path(text).stem)


def check_video_file(path: str | Path) -> None:
    """Raise a VideoError in plain words where a decoder would give an error code."""
    name = repr(os.fspath(path))
    if "://" in name:
        raise VideoError(f"{redacted(os.fspath(path))!r} is an address, not a file; open it with open_source")
    path = Path(path)
    if not path.exists():
        raise VideoError(f"{name} does not exist; check the path to the video")
    if path.is_dir():
        raise VideoError(f"{name} is a folder; name one video file in it")
    if not os.access(path, os.R_OK):
        raise VideoError(f"{name} is not readable by this user; change its permissions")
    if path.is_file() and path.stat().st_size == 0:
        raise VideoError(f"{name} is empty (0 bytes); copy or download it again")


def redacted(url: str) -> str:
    """Return the address without what may be secret: user and password, the query, and text after `=` in the path.

    A password that contains `/` or `#` would parse as a host and a path. Then only the scheme is kept.
    """
    match = _URL.fullmatch(url)
    if not match:
        return url
    host, slash, rest = re.match(r"([^/?#]*)(/?)(.*)", match["rest"], re.DOTALL).groups()
    if "@" in rest:  # either part of a password with `/`, `?` or `#`, or part of the path
        return f"{match['scheme']}://***"
    _, at, host = host.rpartition("@")
    path = re.match(r"[^?#=]*", rest)[0] if slash else ""
    return f"{match['scheme']}://{'***@' if at else ''}{host}{slash}{path}{'...' if len(path) < len(rest) else ''}"


def _parse_url(url: str, scheme: str) -> Address:
    shown = redacted(url)
    if scheme not in KIND_OF_SCHEME:
        raise VideoError(f"{shown} has an unsupported scheme; use one of {', '.join(KIND_OF_SCHEME)}")
    if re.search(r"[\x00-\x20\x7f]", url):
        raise VideoError(f"{scheme}://... contains a space or a control character; write %20 for a space")
    if KIND_OF_SCHEME[scheme] == "file":
        path = unquote(urlsplit(url).path)
        return Address("file", path, repr(path), Path(path).stem)
    try:
        parts = urlsplit(url)
        is_valid = bool(parts.hostname) and parts.port != 0
    except ValueError:  # a port that is not a number, or brackets that do not close
        is_valid = False
    if not is_valid:
        raise VideoError(
            f"{shown} has no valid host and port; write {scheme}://host:port/path (in a password, write %2F for /)"
        )
    return Address(KIND_OF_SCHEME[scheme], url, shown, _file_name(shown))


def _file_name(text: str) -> str:
    """Return a file name of letters, digits, dots and dashes."""
    return re.sub(r"[^A-Za-z0-9.]+", "-", text).strip("-.")[:100]
