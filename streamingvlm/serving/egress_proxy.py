"""An HTTP proxy on loopback through which FFmpeg fetches every video.

FFmpeg follows redirects and playlist entries by itself, so a check of the first URL is not enough. The proxy checks
every host, and connects to the IP address that was checked, so DNS rebinding between check and connect has no effect.
"""

import asyncio
import logging
import os
import secrets
from base64 import b64encode
from typing import Self
from urllib.parse import urlsplit

from streamingvlm.errors import ConfigError
from streamingvlm.serving.access_policy import DEFAULT_PORTS, HostPolicy, ResolvedHost
from streamingvlm.serving.api_errors import ApiError

log = logging.getLogger(__name__)

_MAX_HEAD_BYTES = 32 * 1024
_HEAD_S = 10.0
_CONNECT_S = 10.0
_READ_BYTES = 64 * 1024
_HOP_HEADERS = (b"proxy-authorization", b"proxy-connection", b"connection", b"keep-alive")


class EgressProxy:
    """An HTTP proxy for this process only: it listens on loopback, with a random password per start."""

    def __init__(self, hosts: HostPolicy):
        self._hosts = hosts
        self._password = secrets.token_urlsafe(24)
        self._server: asyncio.Server | None = None
        self._tasks: set[asyncio.Task] = set()
        self._credentials = b"Basic " + b64encode(f"egress:{self._password}".encode())

    async def __aenter__(self) -> Self:
        if os.environ.get("no_proxy"):
            raise ConfigError("no_proxy is set, so FFmpeg would bypass the egress proxy; unset it")
        self._server = await asyncio.start_server(self._serve, "127.0.0.1", 0, limit=_MAX_HEAD_BYTES)
        return self

    async def __aexit__(self, *_):
        self._server.close()
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    @property
    def url(self) -> str:
        """Return the URL of the proxy, including its password."""
        port = self._server.sockets[0].getsockname()[1]
        return f"http://egress:{self._password}@127.0.0.1:{port}"

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter):
        task = asyncio.current_task()
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        try:
            head = await asyncio.wait_for(reader.readuntil(b"\r\n\r\n"), _HEAD_S)
            await self._forward(head, reader, writer)
        except ApiError as error:
            await _respond(writer, f"{error.status_code} Refused", error.detail)
        except (
            TimeoutError,
            asyncio.IncompleteReadError,
            asyncio.LimitOverrunError,
            ConnectionError,
            OSError,
        ) as error:
            log.debug("egress proxy: %s", error)
            await _respond(writer, "502 Bad Gateway", "the host cannot be reached")
        finally:
            writer.close()

    async def _forward(self, head: bytes, reader: asyncio.StreamReader, writer: asyncio.StreamWriter):
        request_line, *lines = head[:-4].split(b"\r\n")
        headers = [line.partition(b":") for line in lines]
        if not self._is_authorized(headers):
            await _respond(writer, "407 Proxy Authentication Required", "", b'Proxy-Authenticate: Basic realm="egress"')
            return
        method, target, _ = _parse_request_line(request_line)
        if method == "CONNECT":
            host = await self._resolve(*_host_and_port(f"//{target}", DEFAULT_PORTS["https"]))
            far_reader, far_writer = await _connect(host)
            writer.write(b"HTTP/1.1 200 Connected\r\n\r\n")
        else:
            host = await self._resolve(*_host_and_port(target, DEFAULT_PORTS["http"]))
            far_reader, far_writer = await _connect(host)
            path = urlsplit(target)._replace(scheme="", netloc="").geturl() or "/"
            far_writer.write(_forwarded_head(method, path, headers))
        await _relay(reader, writer, far_reader, far_writer)

    async def _resolve(self, host: str, port: int) -> ResolvedHost:
        try:
            return await asyncio.to_thread(self._hosts.resolve, host, port)
        except ApiError as error:
            log.warning("egress proxy refused a host", extra={"host": host, "port": port, "reason": error.detail})
            raise

    def _is_authorized(self, headers: list[tuple[bytes, bytes, bytes]]) -> bool:
        presented = (value.strip() for name, _, value in headers if name.lower() == b"proxy-authorization")
        return any(secrets.compare_digest(value, self._credentials) for value in presented)


def _parse_request_line(line: bytes) -> tuple[str, str, str]:
    words = line.decode("latin-1").split(" ")
    if len(words) != 3:
        raise ApiError(400, "the request cannot be read")
    return words[0], words[1], words[2]


def _host_and_port(url: str, default_port: int) -> tuple[str, int]:
    try:
        parts = urlsplit(url)
        host, port = parts.hostname, parts.port or default_port
    except ValueError:
        host, port = None, default_port
    if host is None or parts.scheme not in ("", "http"):
        raise ApiError(400, "the request names no http host to forward to")
    return host, port


def _forwarded_head(method: str, path: str, headers: list[tuple[bytes, bytes, bytes]]) -> bytes:
    """Return the request head for the remote server; each connection carries one request, so that each is checked."""
    kept = [name + b": " + value.strip() for name, _, value in headers if name.lower() not in _HOP_HEADERS]
    return b"\r\n".join([f"{method} {path} HTTP/1.1".encode("latin-1"), *kept, b"Connection: close", b"", b""])


async def _connect(host: ResolvedHost) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    """Connect to the first IP address of the host that accepts."""
    failure: Exception = ConnectionError("no address")
    for address in host.addresses:
        try:
            return await asyncio.wait_for(asyncio.open_connection(address, host.port), _CONNECT_S)
        except (OSError, TimeoutError) as error:
            failure = error
    raise failure


async def _relay(
    near_reader: asyncio.StreamReader,
    near_writer: asyncio.StreamWriter,
    far_reader: asyncio.StreamReader,
    far_writer: asyncio.StreamWriter,
):
    """Copy in both directions until either side closes."""
    copies = [
        asyncio.ensure_future(_copy(near_reader, far_writer)),
        asyncio.ensure_future(_copy(far_reader, near_writer)),
    ]
    try:
        await asyncio.wait(copies, return_when=asyncio.FIRST_COMPLETED)
    finally:
        for copy in copies:
            copy.cancel()
        await asyncio.gather(*copies, return_exceptions=True)
        far_writer.close()


async def _copy(reader: asyncio.StreamReader, writer: asyncio.StreamWriter):
    while data := await reader.read(_READ_BYTES):
        writer.write(data)
        await writer.drain()


async def _respond(writer: asyncio.StreamWriter, status: str, message: str, *headers: bytes):
    body = message.encode()
    length = f"Content-Length: {len(body)}".encode()
    lines = [f"HTTP/1.1 {status}".encode(), length, b"Connection: close", *headers, b"", body]
    try:
        writer.write(b"\r\n".join(lines))
        await writer.drain()
    except ConnectionError as error:
        log.debug("egress proxy: %s", error)
