"""Files and addresses that a client may name: what the operator allowed, and nothing that only looks like it.

An address is allowed by its host's name, and then the addresses that the name stands for are looked at: a public name
may well stand for a private machine.
"""

import re
import socket
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv6Address, ip_address
from pathlib import Path
from urllib.parse import SplitResult, urlsplit

from streamingvlm.serving.config import Allowed
from streamingvlm.serving.refusals import Refusal

Address = IPv4Address | IPv6Address
Resolve = Callable[[str, int], Sequence[str]]

PORTS = {"http": 80, "https": 443, "rtsp": 554, "rtsps": 322, "rtmp": 1935, "rtmps": 443}
_NAME = re.compile(r"(?!-)[a-z0-9_-]{1,63}(?<!-)(\.(?!-)[a-z0-9_-]{1,63}(?<!-))*\.?", re.ASCII)
_LOOKS_NUMERIC = re.compile(r"(0x[0-9a-f]*|\d+)", re.ASCII)
_NAT64 = b"\x00\x64\xff\x9b" + bytes(8)


def allowed_file(name: str, allowed: Allowed) -> Path:
    """The file of this name below the operator's folder. Raises Refusal; what lies outside it is not told apart."""
    if allowed.folder is None:
        raise Refusal(403, "this server watches no files; its operator can allow a folder: folder=...")
    unknown = Refusal(404, f"there is no video {name[:100]!r} in this server's folder; check the name")
    if "\0" in name:
        raise unknown
    folder = allowed.folder.resolve()
    try:
        path = (folder / name).resolve(strict=True)
    except (OSError, ValueError, RuntimeError):
        raise unknown from None
    if not (path.is_relative_to(folder) and path.is_file()):
        raise unknown
    return path


@dataclass(frozen=True)
class Place:
    """A host and port that may be reached, and the addresses to reach it at."""

    host: str
    port: int
    addresses: tuple[str, ...]


def resolve_host(host: str, port: int) -> list[str]:
    """The addresses of a host, by the system's resolver."""
    return list(dict.fromkeys(str(info[4][0]) for info in socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)))


class Addresses:
    """The addresses that may be watched."""

    def __init__(self, allowed: Allowed, resolve: Resolve = resolve_host):
        self._patterns = tuple(host.lower().rstrip(".").strip("[]") for host in allowed.hosts)
        self._resolve = resolve

    def check(self, url: str) -> SplitResult:
        """The parts of an address that may be watched. Raises Refusal."""
        parts = _split(url)
        if not self._patterns:
            raise Refusal(403, "this server watches no addresses; its operator can allow hosts: hosts=[...]")
        if parts.scheme not in PORTS:
            raise Refusal(400, f"{parts.scheme or 'no'}:// is no way to a video; give one of {', '.join(PORTS)}")
        if not parts.scheme.startswith("http") and not self._is_named(parts.hostname):
            # FFmpeg itself follows these protocols' redirects, past the check of the gateway.
            raise Refusal(403, f"{parts.scheme}:// is for hosts that the operator has named in full")
        self.place(parts.hostname, parts.port or PORTS[parts.scheme])
        return parts

    def place(self, host: str, port: int) -> Place:
        """Where a host may be reached: allowed by its name, and by every address that the name has. Raises Refusal.

        Blocking: it asks the resolver.
        """
        host = host.lower().rstrip(".")
        if not self._is_allowed(host):
            raise Refusal(403, f"{host} is not among the hosts that this server may watch; ask its operator")
        addresses = self._addresses(host, port)
        if not self._is_named(host) and not all(is_public(ip_address(address)) for address in addresses):
            raise Refusal(403, f"{host} is a private address, which this server does not reach; ask its operator")
        return Place(host, port, tuple(addresses))

    def _addresses(self, host: str, port: int) -> Sequence[str]:
        if (literal := _literal(host)) is not None:
            return [str(literal)]
        # A resolver takes 2130706433, 0x7f.1 and 127.1 for 127.0.0.1, and others for something else: names alone.
        if not _NAME.fullmatch(host) or _LOOKS_NUMERIC.fullmatch(host.rsplit(".", 1)[-1]):
            raise Refusal(400, f"{host[:100]!r} is no host; give a name, or an address as 192.0.2.1 or [2001:db8::1]")
        try:
            addresses = self._resolve(host, port)
        except (OSError, UnicodeError):
            addresses = []
        if not addresses:
            raise Refusal(400, f"{host} cannot be found; check the name")
        return [address.partition("%")[0] for address in addresses]

    def _is_allowed(self, host: str) -> bool:
        return any(
            pattern == "*" or pattern == host or (pattern.startswith("*.") and host.endswith(pattern[1:]))
            for pattern in self._patterns
        )

    def _is_named(self, host: str | None) -> bool:
        return (host or "").lower().rstrip(".") in self._patterns


def is_public(address: Address) -> bool:
    """Whether an address is of the public internet, whatever it is wrapped in."""
    if isinstance(address, IPv6Address):
        inner = address.ipv4_mapped or address.sixtofour or (address.teredo or (None, None))[1] or _nat64(address)
        if inner is not None:
            return is_public(inner)
    return address.is_global and not address.is_multicast and not address.is_reserved


def _nat64(address: IPv6Address) -> IPv4Address | None:
    return IPv4Address(address.packed[12:]) if address.packed.startswith(_NAT64) else None


def _literal(host: str) -> Address | None:
    try:
        return ip_address(host)
    except ValueError:
        return None


def _split(url: str) -> SplitResult:
    try:
        parts = urlsplit(url)
        _ = parts.port  # raises where it is none
    except ValueError:
        raise Refusal(400, "the address cannot be read; give one as https://example.com/match.m3u8") from None
    if not parts.hostname or any(character.isspace() or ord(character) < 32 for character in url) or "\\" in url:
        raise Refusal(400, "the address cannot be read; give one as https://example.com/match.m3u8")
    return parts
