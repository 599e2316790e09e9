"""HTTP client of the frontend for one replica."""

import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any

import httpx
from websockets.asyncio.client import ClientConnection, connect
from websockets.exceptions import ConnectionClosed, InvalidHandshake, InvalidStatus

from streamingvlm.serving.api_errors import ApiError
from streamingvlm.serving.fleet.protocol import LEAVING_HEADER, OWNER_HEADER, REPLICA_PATH, SECRET_HEADER

_CONNECT_S, _REPORT_S = 3.0, 3.0
_MAX_CONNECTIONS = 512


class UnreachableError(Exception):
    """The replica has failed or is leaving: send the request to another."""


@dataclass(frozen=True)
class ReplicaAddress:
    """Address of a replica. id: its unique name; pid: of its process, for logs."""

    id: str
    url: str
    pid: int


class ReplicaClient:
    """Requests to one replica, and its last report."""

    def __init__(self, address: ReplicaAddress, secret: str):
        self.address = address
        self.is_leaving = False
        self.num_pending = 0  # requests in flight for new sessions and clips
        self.last_report_at_s = time.monotonic()
        self.report: dict[str, Any] = {"is_ready": False, "sessions": {}}
        self._secret = secret
        self._client = httpx.AsyncClient(
            base_url=address.url,
            timeout=httpx.Timeout(None, connect=_CONNECT_S),
            limits=httpx.Limits(max_connections=_MAX_CONNECTIONS, max_keepalive_connections=_MAX_CONNECTIONS),
            trust_env=False,  # proxies of the environment are for the internet
        )

    @property
    def is_ready(self) -> bool:
        """Return True if the replica accepts new sessions, limits aside."""
        return self.report["is_ready"] and not self.is_leaving

    async def fetch_report(self) -> dict[str, Any]:
        """Fetch and return the replica's report. Raises UnreachableError, and TimeoutError if it does not answer."""
        try:
            response = await self.request("GET", REPLICA_PATH, timeout=_REPORT_S)
        except httpx.TimeoutException as error:
            raise TimeoutError from error
        self.report = response.json()
        self.is_leaving = self.report["is_leaving"]
        self.last_report_at_s = time.monotonic()
        return self.report

    async def request(self, method: str, path: str, owner: str = "", **content: Any) -> httpx.Response:
        """Send a request and return the whole response. Raises UnreachableError."""
        async with self.stream(method, path, owner, **content) as response:
            await read_body(response)
            return response

    @asynccontextmanager
    async def stream(self, method: str, path: str, owner: str = "", **content: Any) -> AsyncIterator[httpx.Response]:
        """Send a request and yield the response, its body unread. Raises UnreachableError if none starts."""
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
    async def websocket(self, path: str, owner: str) -> AsyncIterator[ClientConnection]:
        """Open a WebSocket. Raises ApiError, and UnreachableError, also if the connection breaks while it is used."""
        url = self.address.url.replace("http", "ws", 1) + path
        try:
            async with connect(
                url, additional_headers=self._headers(owner), open_timeout=_CONNECT_S, proxy=None, max_size=None
            ) as socket:
                yield socket
        except InvalidStatus as error:
            if LEAVING_HEADER in error.response.headers:
                raise UnreachableError from error
            raise ApiError(error.response.status_code, "the replica refused the WebSocket; connect again") from error
        except (OSError, TimeoutError, ConnectionClosed, InvalidHandshake) as error:
            raise UnreachableError from error

    async def close(self):
        """Close all connections."""
        await self._client.aclose()

    def _headers(self, owner: str) -> dict[str, str]:
        return {SECRET_HEADER: self._secret, OWNER_HEADER: owner}


async def read_body(response: httpx.Response):
    """Read the body of a response. Raises UnreachableError if the connection breaks."""
    try:
        await response.aread()
    except httpx.TransportError as error:
        raise UnreachableError from error
