"""The files and network addresses that a client may name, as the operator's configuration allows.

An address is checked twice: its host name against the allowed list, then every IP address that the name resolves to,
because a public name can resolve to a private machine.
"""

import os
import re
import socket
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv6Address, ip_address
from itertools import islice
from pathlib import Path
from urllib.parse import SplitResult, urlsplit

from streamingvlm.serving.api_errors import ApiError
from streamingvlm.serving.server_config import AllowedSources
from streamingvlm.video.address import VIDEO_SUFFIXES

MAX_LISTED, _MAX_SCANNED = 1000, 100_000

IPAddress = IPv4Address | IPv6Address
Resolver = Callable[[str, int], Sequence[str]]

DEFAULT_PORTS = {"http": 80, "https": 443, "rtsp": 554, "rtsps": 322, "rtmp": 1935, "rtmps": 443}
_NAME = re.compile(r"(?!-)[a-z0-9_-]{1,63}(?<!-)(\.(?!-)[a-z0-9_-]{1,63}(?<!-))*\.?", re.ASCII)
_LOOKS_NUMERIC = re.compile(r"(0x[0-9a-f]*|\d+)", re.ASCII)
_NAT64 = b"\x00\x64\xff\x9b" + bytes(8)


def allowed_file(name: str, allowed: AllowedSources) -> Path:
    """Return the file of this name below the operator's folder.

    Raises ApiError; a file outside the folder gives the same error as one that does not exist.
    """
    if allowed.folder is None:
        raise ApiError(403, "this server watches no files; its operator can allow a folder: folder=...")
    unknown = ApiError(404, f"there is no video {name[:100]!r} in this server's folder; check the name")
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


def list_videos(folder: Path) -> list[str]:
    """Return the names that `allowed_file` accepts of at most ``MAX_LISTED`` videos below a folder, in order."""
    folder = folder.resolve()
    paths = (Path(where, name) for where, _, names in os.walk(folder) for name in names)
    videos = (path for path in islice(paths, _MAX_SCANNED) if path.suffix.lower() in VIDEO_SUFFIXES)
    inside = (path for path in videos if path.is_file() and path.resolve().is_relative_to(folder))
    return sorted(str(path.relative_to(folder)) for path in islice(inside, MAX_LISTED))


@dataclass(frozen=True)
class ResolvedHost:
    """An allowed host and port, with the IP addresses that were checked."""

    host: str
    port: int
    addresses: tuple[str, ...]


def resolve_host(host: str, port: int) -> list[str]:
    """Return the IP addresses of a host, from the system's resolver."""
    return list(dict.fromkeys(str(info[4][0]) for info in socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)))


class HostPolicy:
    """Checks network addresses against the allowed hosts."""

    def __init__(self, allowed: AllowedSources, resolver: Resolver = resolve_host):
        self._patterns = tuple(host.lower().rstrip(".").strip("[]") for host in allowed.hosts)
        self._resolver = resolver

    def check_url(self, url: str) -> SplitResult:
        """Return the parts of an allowed URL. Raises ApiError."""
        parts = _split(url)
        if not self._patterns:
            raise ApiError(403, "this server watches no addresses; its operator can allow hosts: hosts=[...]")
        if parts.scheme not in DEFAULT_PORTS:
            raise ApiError(
                400, f"the scheme {parts.scheme or 'none'} is not supported; give one of {', '.join(DEFAULT_PORTS)}"
            )
        if not parts.scheme.startswith("http") and not self._is_named(parts.hostname):
            # FFmpeg itself follows the redirects of these protocols, without the check of the egress proxy.
            raise ApiError(403, f"{parts.scheme}:// is for hosts that the operator has named in full")
        self.resolve(parts.hostname, parts.port or DEFAULT_PORTS[parts.scheme])
        return parts

    def resolve(self, host: str, port: int) -> ResolvedHost:
        """Resolve a host, and check its name and each of its IP addresses. Blocks on DNS. Raises ApiError."""
        host = host.lower().rstrip(".")
        if not self._is_allowed(host):
            raise ApiError(403, f"{host} is not among the hosts that this server may watch; ask its operator")
        addresses = self._ip_addresses(host, port)
        if not self._is_named(host) and not all(is_public(ip_address(address)) for address in addresses):
            raise ApiError(403, f"{host} is a private address, which this server does not reach; ask its operator")
        return ResolvedHost(host, port, tuple(addresses))

    def _ip_addresses(self, host: str, port: int) -> Sequence[str]:
        if (literal := _literal(host)) is not None:
            return [str(literal)]
        # Some resolvers accept 2130706433, 0x7f.1 and 127.1 as 127.0.0.1, others as something else: only pass names.
        if not _NAME.fullmatch(host) or _LOOKS_NUMERIC.fullmatch(host.rsplit(".", 1)[-1]):
            raise ApiError(
                400, f"{host[:100]!r} is no host; give a name, or an address such as 192.0.2.1 or [2001:db8::1]"
            )
        try:
            addresses = self._resolver(host, port)
        except (OSError, UnicodeError):
            addresses = []
        if not addresses:
            raise ApiError(400, f"{host} cannot be found; check the name")
        return [address.partition("%")[0] for address in addresses]

    def _is_allowed(self, host: str) -> bool:
        return any(
            pattern == "*" or pattern == host or (pattern.startswith("*.") and host.endswith(pattern[1:]))
            for pattern in self._patterns
        )

    def _is_named(self, host: str | None) -> bool:
        return (host or "").lower().rstrip(".") in self._patterns


def is_public(address: IPAddress) -> bool:
    """Return True if an address is globally reachable; embedded IPv4 addresses are checked in its place."""
    if isinstance(address, IPv6Address):
        inner = address.ipv4_mapped or address.sixtofour or (address.teredo or (None, None))[1] or _nat64(address)
        if inner is not None:
            return is_public(inner)
    return address.is_global and not address.is_multicast and not address.is_reserved


def _nat64(address: IPv6Address) -> IPv4Address | None:
    return IPv4Address(address.packed[12:]) if address.packed.startswith(_NAT64) else None


def _literal(host: str) -> IPAddress | None:
    try:
        return ip_address(host)
    except ValueError:
        return None


def _split(url: str) -> SplitResult:
    try:
        parts = urlsplit(url)
        _ = parts.port  # raises ValueError if it is invalid
    except ValueError:
        raise ApiError(400, "the address cannot be read; give one such as https://example.com/match.m3u8") from None
    if not parts.hostname or any(character.isspace() or ord(character) < 32 for character in url) or "\\" in url:
        raise ApiError(400, "the address cannot be read; give one such as https://example.com/match.m3u8")
    return parts
