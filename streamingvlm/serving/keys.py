"""Who may come in: keys, compared in constant time, and pages of other sites kept out."""

import base64
import binascii
import hashlib
import hmac
from collections.abc import Mapping
from urllib.parse import SplitResult, urlsplit

from streamingvlm.serving.config import is_loopback

LOCAL_OWNER = "local"
SUBPROTOCOL = "streamingvlm"
KEY_SUBPROTOCOL_PREFIX = "streamingvlm.key."
"""A browser cannot send headers with a WebSocket: the key comes as an offered subprotocol, in base64url."""

_OWNER_CHARACTERS = 12


class KeyRing:
    """The keys that open the door; without any, all who reach the server are let in."""

    def __init__(self, keys: tuple[str, ...]):
        self._digests = [_digest(key) for key in keys]

    @property
    def is_open(self) -> bool:
        """Whether no key is asked for."""
        return not self._digests

    def owner(self, presented: str | None) -> str | None:
        """Whose key this is, None where it is nobody's. Every key is compared, each in constant time."""
        if self.is_open:
            return LOCAL_OWNER
        digest = _digest(presented or "")
        matches = [hmac.compare_digest(digest, known) for known in self._digests]
        return digest.hex()[:_OWNER_CHARACTERS] if any(matches) else None


def _digest(key: str) -> bytes:
    # Digests are of one length: the time of a comparison tells not even how long a key is.
    return hashlib.sha256(key.encode("utf-8", errors="surrogateescape")).digest()


def presented_key(headers: Mapping[str, str], subprotocols: list[str]) -> str | None:
    """The key that a request brings: a bearer token, or a WebSocket's subprotocol."""
    scheme, _, token = headers.get("authorization", "").partition(" ")
    if scheme.lower() == "bearer":
        return token.strip()
    for offered in subprotocols:
        if offered.startswith(KEY_SUBPROTOCOL_PREFIX):
            return _from_base64url(offered.removeprefix(KEY_SUBPROTOCOL_PREFIX))
    return None


def _from_base64url(text: str) -> str | None:
    try:
        return base64.urlsafe_b64decode(text + "=" * (-len(text) % 4)).decode("ascii")
    except (binascii.Error, ValueError):
        return None


def is_own_page(headers: Mapping[str, str]) -> bool:
    """Whether a request comes from this server's own page, or from no page at all."""
    origin = headers.get("origin")
    return origin is None or _parts(origin).netloc == headers.get("host")


def names_this_machine(host_header: str) -> bool:
    """Whether the host that a request was sent to is a name of loopback.

    A page elsewhere can have its own name resolve to 127.0.0.1 and then reach this server as its own site.
    """
    name = _parts(f"//{host_header}").hostname
    return name is not None and is_loopback(name)


def _parts(url: str) -> SplitResult:
    try:
        return urlsplit(url)
    except ValueError:  # brackets that do not close
        return urlsplit("")
