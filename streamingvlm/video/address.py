"""What a user names to be watched: a file, a camera, an address on the network, a pipe.

An address may hold a password. It is handed to the decoder and nowhere else: whatever is shown, logged or named after a
source is made from `Address.shown` and `Address.name`, which hold none.
"""

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Literal
from urllib.parse import unquote, urlsplit

from streamingvlm.errors import VideoError

Kind = Literal["file", "pipe", "webcam", "rtsp", "rtmp", "http"]

KIND_OF_SCHEME: dict[str, Kind] = {
    "file": "file",
    "rtsp": "rtsp",
    "rtsps": "rtsp",
    "rtmp": "rtmp",
    "http": "http",
    "https": "http",
}
"""FFmpeg knows many more, among them some that read any file or join several addresses (`concat:`, `subfile:`)."""

_URL = re.compile(r"(?P<scheme>[A-Za-z][A-Za-z0-9+.-]+)://(?P<rest>.*)", re.DOTALL)
_WEBCAM = re.compile(r"webcam(?::(?P<device>.+))?")


@dataclass(frozen=True)
class Address:
    """A source that was named: what the decoder opens, and what people see.

    target: a path, an address, or the number or name of a camera. shown: for messages; name: for files of output.
    """

    kind: Kind
    target: str
    shown: str
    name: str

    @property
    def source(self) -> str | Path:
        """What names this source again."""
        return {"file": Path(self.target), "webcam": f"webcam:{self.target}"}.get(self.kind, self.target)

    def __repr__(self) -> str:
        return f"Address({self.shown})"


def parse_address(source: str | Path) -> Address:
    """Tell what kind of source a user has named.

    "-" is standard input; "webcam" is the first camera, "webcam:2" or "webcam:/dev/video2" another; an address is one
    of file, rtsp, rtsps, rtmp, http and https; all else is a path. Raises VideoError for another scheme, and for an
    address that cannot be one.
    """
    text = str(source)
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


def redacted(url: str) -> str:
    """The address without what may be secret: user and password, the query, and what follows a `=` in the path.

    A password with a `/` or `#` in it would look like a host and a path: then nothing but the scheme is shown.
    """
    match = _URL.fullmatch(url)
    if not match:
        return url
    host, slash, behind = re.match(r"([^/?#]*)(/?)(.*)", match["rest"], re.DOTALL).groups()
    if "@" in behind:  # of a password with such a sign in it, or of the path: nobody can tell
        return f"{match['scheme']}://***"
    _, at, host = host.rpartition("@")
    path = re.match(r"[^?#=]*", behind)[0] if slash else ""
    return f"{match['scheme']}://{'***@' if at else ''}{host}{slash}{path}{'...' if len(path) < len(behind) else ''}"


def _parse_url(url: str, scheme: str) -> Address:
    shown = redacted(url)
    if scheme not in KIND_OF_SCHEME:
        raise VideoError(f"{shown} is a kind of address that is not opened; give one of {', '.join(KIND_OF_SCHEME)}")
    if re.search(r"[\x00-\x20\x7f]", url):
        raise VideoError(f"{scheme}://... has a blank or a control sign in it; write %20 for a blank")
    if KIND_OF_SCHEME[scheme] == "file":
        path = unquote(urlsplit(url).path)
        return Address("file", path, repr(path), Path(path).stem)
    try:
        parts = urlsplit(url)
        is_sound = bool(parts.hostname) and parts.port != 0
    except ValueError:  # a port that is no number, brackets that do not close
        is_sound = False
    if not is_sound:
        raise VideoError(f"{shown} names no host and port; write {scheme}://host:port/path (in a password, %2F for /)")
    return Address(KIND_OF_SCHEME[scheme], url, shown, _file_name(shown))


def _file_name(text: str) -> str:
    """A name for files of output, of letters, digits, points and dashes."""
    return re.sub(r"[^A-Za-z0-9.]+", "-", text).strip("-.")[:100]
