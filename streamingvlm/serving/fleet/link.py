"""One replica as the front sees it: how to reach it, and what it last said of itself."""

import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any

import httpx
from websockets.asyncio.client import ClientConnection, connect
from websockets.exceptions import ConnectionClosed, InvalidHandshake, InvalidStatus

from streamingvlm.serving.fleet.replica import LEAVING_HEADER, OWNER_HEADER, REPORT_PATH, SECRET_HEADER
from streamingvlm.serving.refusals import Refusal

_CONNECT_S, _REPORT_S = 3.0, 3.0
_MAX_CONNECTIONS = 512


class UnreachableError(Exception):
    """A replica has gone, or is about to: what was asked of it is to be asked of another."""


@dataclass(frozen=True)
class Address:
    """Where a replica is. id: the name it has among replicas; pid: of its process, for people."""

    id: str
    url: str
    pid: int


class Link:
    """The way to one replica."""

    def __init__(self, address: Address, secret: str):
        self.address = address
        self.is_leaving = False
        self.num_asked = 0  # clips and sessions to be opened, which it is at
        self.heard_s = time.monotonic()
        self.report: dict[str, Any] = {"is_ready": False, "sessions": {}}
        self._secret = secret
        self._client = httpx.AsyncClient(
            base_url=address.url,
            timeout=httpx.Timeout(None, connect=_CONNECT_S),
            limits=httpx.Limits(max_connections=_MAX_CONNECTIONS, max_keepalive_connections=_MAX_CONNECTIONS),
            trust_env=False,  # a proxy of the environment is for the world outside
        )

    @property
    def is_ready(self) -> bool:
        """Whether a session could be opened there, limits aside."""
        return self.report["is_ready"] and not self.is_leaving

    async def look(self) -> dict[str, Any]:
        """Have the replica report. Raises UnreachableError, and TimeoutError where it says nothing."""
        try:
            response = await self.request("GET", REPORT_PATH, timeout=_REPORT_S)
        except httpx.TimeoutException as error:
            raise TimeoutError from error
        self.report = response.json()
        self.is_leaving = self.report["is_leaving"]
        self.heard_s = time.monotonic()
        return self.report

    async def request(self, method: str, path: str, owner: str = "", **content: Any) -> httpx.Response:
        """Ask, and have the whole answer. Raises UnreachableError."""
        async with self.answer(method, path, owner, **content) as response:
            await read(response)
            return response

    @asynccontextmanager
    async def answer(self, method: str, path: str, owner: str = "", **content: Any) -> AsyncIterator[httpx.Response]:
        """Ask, and have the answer as it comes. Raises UnreachableError before the answer begins."""
        if self._client.is_closed:
            raise UnreachableError
        headers = {**content.pop("headers", {}), **self._headers(owner)}
        request = self._client.build_request(method, path, headers=headers, **content)
        try:
            response = await self._client.send(request, stream=True)
        except httpx.TransportError as error:
            if isinstance(error, httpx.ReadTimeout):
                raise
            raise UnreachableError from error
        try:
            if LEAVING_HEADER in response.headers:
                self.is_leaving = True
                raise UnreachableError
            yield response
        finally:
            await response.aclose()

    @asynccontextmanager
    async def socket(self, path: str, owner: str) -> AsyncIterator[ClientConnection]:
        """Open a WebSocket. Raises Refusal; and UnreachableError, also where it breaks while it is used."""
        url = self.address.url.replace("http", "ws", 1) + path
        try:
            async with connect(
                url, additional_headers=self._headers(owner), open_timeout=_CONNECT_S, proxy=None, max_size=None
            ) as socket:
                yield socket
        except InvalidStatus as error:
            if LEAVING_HEADER in error.response.headers:
                raise UnreachableError from error
            raise Refusal(error.response.status_code, "its replica does not tell its commentary; ask again") from error
        except (OSError, TimeoutError, ConnectionClosed, InvalidHandshake) as error:
            raise UnreachableError from error

    async def close(self):
        """Let the connections go."""
        await self._client.aclose()

    def _headers(self, owner: str) -> dict[str, str]:
        return {SECRET_HEADER: self._secret, OWNER_HEADER: owner}


async def read(response: httpx.Response):
    """Have an answer whole. Raises UnreachableError where it breaks off."""
    try:
        await response.aread()
    except httpx.TransportError as error:
        raise UnreachableError from error
