"""The one way out: a proxy on loopback through which whatever fetches a video has to go.

A video is fetched by FFmpeg, which follows redirects and the addresses inside playlists by itself. It is given this
proxy and no other way; here every host is checked anew, and the connection is made to the very address that was
checked, so that a name that changes its mind in between reaches nothing.
"""

import asyncio
import logging
import os
import secrets
from base64 import b64encode
from typing import Self
from urllib.parse import urlsplit

from streamingvlm.errors import ConfigError
from streamingvlm.serving.places import PORTS, Addresses, Place
from streamingvlm.serving.refusals import Refusal

log = logging.getLogger(__name__)

_MAX_HEAD_BYTES = 32 * 1024
_HEAD_S = 10.0
_CONNECT_S = 10.0
_CHUNK_BYTES = 64 * 1024
_HOP_HEADERS = (b"proxy-authorization", b"proxy-connection", b"connection", b"keep-alive")


class Gateway:
    """An HTTP proxy for this process alone: it listens on loopback and wants a password that is made anew each time."""

    def __init__(self, addresses: Addresses):
        self._addresses = addresses
        self._password = secrets.token_urlsafe(24)
        self._server: asyncio.Server | None = None
        self._tasks: set[asyncio.Task] = set()
        self._credentials = b"Basic " + b64encode(f"gateway:{self._password}".encode())

    async def __aenter__(self) -> Self:
        if os.environ.get("no_proxy"):
            raise ConfigError("no_proxy is set, by which FFmpeg would go past the gateway; unset it")
        self._server = await asyncio.start_server(self._serve, "127.0.0.1", 0, limit=_MAX_HEAD_BYTES)
        return self

    async def __aexit__(self, *_):
        self._server.close()
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    @property
    def url(self) -> str:
        """The proxy's address, password and all."""
        port = self._server.sockets[0].getsockname()[1]
        return f"http://gateway:{self._password}@127.0.0.1:{port}"

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter):
        task = asyncio.current_task()
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        try:
            head = await asyncio.wait_for(reader.readuntil(b"\r\n\r\n"), _HEAD_S)
            await self._pass_on(head, reader, writer)
        except Refusal as refusal:
            await _answer(writer, f"{refusal.status_code} Refused", refusal.detail)
        except (
            TimeoutError,
            asyncio.IncompleteReadError,
            asyncio.LimitOverrunError,
            ConnectionError,
            OSError,
        ) as error:
            log.debug("gateway: %s", error)
            await _answer(writer, "502 Bad Gateway", "the host cannot be reached")
        finally:
            writer.close()

    async def _pass_on(self, head: bytes, reader: asyncio.StreamReader, writer: asyncio.StreamWriter):
        request, *lines = head[:-4].split(b"\r\n")
        headers = [line.partition(b":") for line in lines]
        if not self._is_known(headers):
            await _answer(writer, "407 Proxy Authentication Required", "", b'Proxy-Authenticate: Basic realm="gateway"')
            return
        method, target, _ = _words(request)
        if method == "CONNECT":
            place = await self._place(*_host_and_port(f"//{target}", PORTS["https"]))
            far_reader, far_writer = await _connect(place)
            writer.write(b"HTTP/1.1 200 Connected\r\n\r\n")
        else:
            place = await self._place(*_host_and_port(target, PORTS["http"]))
            far_reader, far_writer = await _connect(place)
            path = urlsplit(target)._replace(scheme="", netloc="").geturl() or "/"
            far_writer.write(_forwarded(method, path, headers))
        await _join(reader, writer, far_reader, far_writer)

    async def _place(self, host: str, port: int) -> Place:
        try:
            return await asyncio.to_thread(self._addresses.place, host, port)
        except Refusal as refusal:
            log.warning("gateway refused a host", extra={"host": host, "port": port, "reason": refusal.detail})
            raise

    def _is_known(self, headers: list[tuple[bytes, bytes, bytes]]) -> bool:
        given = (value.strip() for name, _, value in headers if name.lower() == b"proxy-authorization")
        return any(secrets.compare_digest(value, self._credentials) for value in given)


def _words(request: bytes) -> tuple[str, str, str]:
    words = request.decode("latin-1").split(" ")
    if len(words) != 3:
        raise Refusal(400, "the request cannot be read")
    return words[0], words[1], words[2]


def _host_and_port(url: str, usual_port: int) -> tuple[str, int]:
    try:
        parts = urlsplit(url)
        host, port = parts.hostname, parts.port or usual_port
    except ValueError:
        host, port = None, usual_port
    if host is None or parts.scheme not in ("", "http"):
        raise Refusal(400, "the request names no host that can be passed on to")
    return host, port


def _forwarded(method: str, path: str, headers: list[tuple[bytes, bytes, bytes]]) -> bytes:
    """The request as the far server is to see it; one request a connection, so that each is checked."""
    kept = [name + b": " + value.strip() for name, _, value in headers if name.lower() not in _HOP_HEADERS]
    return b"\r\n".join([f"{method} {path} HTTP/1.1".encode("latin-1"), *kept, b"Connection: close", b"", b""])


async def _connect(place: Place) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    """A connection to the first of the place's addresses that answers."""
    failure: Exception = ConnectionError("no address")
    for address in place.addresses:
        try:
            return await asyncio.wait_for(asyncio.open_connection(address, place.port), _CONNECT_S)
        except (OSError, TimeoutError) as error:
            failure = error
    raise failure


async def _join(
    near_reader: asyncio.StreamReader,
    near_writer: asyncio.StreamWriter,
    far_reader: asyncio.StreamReader,
    far_writer: asyncio.StreamWriter,
):
    """Copy both ways until either side is done."""
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
    while chunk := await reader.read(_CHUNK_BYTES):
        writer.write(chunk)
        await writer.drain()


async def _answer(writer: asyncio.StreamWriter, status: str, message: str, *headers: bytes):
    body = message.encode()
    length = f"Content-Length: {len(body)}".encode()
    lines = [f"HTTP/1.1 {status}".encode(), length, b"Connection: close", *headers, b"", body]
    try:
        writer.write(b"\r\n".join(lines))
        await writer.drain()
    except ConnectionError as error:
        log.debug("gateway: %s", error)
