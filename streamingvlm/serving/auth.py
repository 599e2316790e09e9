"""API keys, compared in constant time, and the checks that keep other sites' pages out."""

import base64
import binascii
import hashlib
import hmac
from collections.abc import Mapping
from urllib.parse import SplitResult, urlsplit

from streamingvlm.serving.server_config import is_loopback

LOCAL_OWNER = "local"
SUBPROTOCOL = "streamingvlm"
KEY_SUBPROTOCOL_PREFIX = "streamingvlm.key."
"""A browser cannot set headers on a WebSocket: it offers the key as a subprotocol, in base64url."""

_OWNER_CHARACTERS = 12


class ApiKeys:
    """The accepted API keys; if there are none, every request is accepted."""

    def __init__(self, keys: tuple[str, ...]):
        self._digests = [_digest(key) for key in keys]

    @property
    def is_empty(self) -> bool:
        """Return True if no key is required."""
        return not self._digests

    def owner(self, presented: str | None) -> str | None:
        """Return the owner id of a key, or None for a wrong key. Every key is compared, each in constant time."""
        if self.is_empty:
            return LOCAL_OWNER
        digest = _digest(presented or "")
        matches = [hmac.compare_digest(digest, known) for known in self._digests]
        return digest.hex()[:_OWNER_CHARACTERS] if any(matches) else None


def _digest(key: str) -> bytes:
    # Digests have one length, so the time of a comparison does not leak the length of a key.
    return hashlib.sha256(key.encode("utf-8", errors="surrogateescape")).digest()


def presented_key(headers: Mapping[str, str], subprotocols: list[str]) -> str | None:
    """Return the key of a request: its bearer token, or a WebSocket's subprotocol."""
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


def is_same_origin(headers: Mapping[str, str]) -> bool:
    """Return True if a request comes from this server's own page, or from no page at all."""
    origin = headers.get("origin")
    return origin is None or _parts(origin).netloc == headers.get("host")


def is_loopback_host(host_header: str) -> bool:
    """Return True if the Host header of a request names loopback.

    Prevents DNS rebinding: another site's name can resolve to 127.0.0.1, and its page then has this server's origin.
    """
    name = _parts(f"//{host_header}").hostname
    return name is not None and is_loopback(name)


def _parts(url: str) -> SplitResult:
    try:
        return urlsplit(url)
    except ValueError:  # unbalanced brackets
        return urlsplit("")
