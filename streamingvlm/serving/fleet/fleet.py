"""The frontend's view of all replicas and sessions: where sessions open, and where they move.

Each replica is polled a few times per second. A replica that leaves reports it, finishes the turn of each session and
stops; a replica that fails is just gone. In both cases its connections break, and other replicas resume its sessions
from disk: a planned move and a failure take the same path.
"""

import asyncio
import logging
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable
from contextlib import asynccontextmanager
from typing import Any

import httpx

from streamingvlm.serving.api_errors import ApiError
from streamingvlm.serving.api_requests import SessionRequest
from streamingvlm.serving.fleet.protocol import REPLICA_PATH
from streamingvlm.serving.fleet.remote_session import RemoteSession, error_message, replica_error
from streamingvlm.serving.fleet.replica_client import ReplicaAddress, ReplicaClient, UnreachableError, read_body
from streamingvlm.serving.fleet.session_store import StoredSessionRequest
from streamingvlm.serving.metrics import Metrics
from streamingvlm.serving.served_session import new_session_id
from streamingvlm.serving.server_config import ServerConfig

log = logging.getLogger(__name__)

_POLL_S, _DISCOVER_S = 0.25, 1.0
_RETRY_S = 0.1
_REPORT_TIMEOUT_S = 10.0
"""A replica that accepts connections but sends no report for this time is given up. If it recovers, its writes to the
sessions' snapshots are refused."""

_NO_ROOM = (429, 503)
_SHUTTING_DOWN = "the server is shutting down"

Discover = Callable[[], Awaitable[Iterable[ReplicaAddress]]]


class Fleet:
    """The replicas and the sessions on them.

    discover: returns the addresses of the running replicas; secret: authenticates the frontend to them.
    stored: sessions on disk from an earlier run of the frontend, to be resumed.
    """

    def __init__(
        self,
        config: ServerConfig,
        metrics: Metrics,
        discover: Discover,
        secret: str,
        stored: Iterable[StoredSessionRequest] = (),
    ):
        self.config, self.metrics = config, metrics
        self.is_draining = False
        self._discover, self._secret, self._stored = discover, secret, stored
        self._clients: dict[str, ReplicaClient] = {}
        self._removed: set[str] = set()
        self._sessions: dict[str, RemoteSession] = {}
        self._tasks: set[asyncio.Task] = set()

    @property
    def is_ready(self) -> bool:
        """Return True if new sessions are accepted, limits aside."""
        return not self.is_draining and any(client.is_ready for client in self._clients.values())

    @property
    def ready_clients(self) -> list[ReplicaClient]:
        """Return the replicas that accept requests, the least loaded first."""
        return sorted((client for client in self._clients.values() if client.is_ready), key=self._load)

    def owned_by(self, owner: str) -> list[RemoteSession]:
        """Return the sessions of an owner, oldest first."""
        return [session for session in self._sessions.values() if session.owner == owner]

    def find(self, session_id: str, owner: str) -> RemoteSession:
        """Return a session. Raises the same ApiError if it does not exist and if it belongs to another owner."""
        session = self._sessions.get(session_id)
        if session is None or session.owner != owner:
            raise ApiError(404, "there is no such session; it may have ended and been removed")
        return session

    async def open(self, request: SessionRequest, owner: str) -> dict[str, Any]:
        """Open a session on a replica with room, and return its JSON. Raises ApiError."""
        if self.is_draining:
            raise ApiError(503, f"{_SHUTTING_DOWN}; use another server", retry_after_s=10)
        stored = StoredSessionRequest(id=new_session_id(), owner=owner, **request.model_dump(exclude_none=True))
        path, content = f"{REPLICA_PATH}/sessions", stored.model_dump(mode="json", exclude_none=True)
        async with self.request_any("POST", path, owner, json=content) as (client, response):
            try:
                await read_body(response)
            except UnreachableError:
                raise ApiError(503, "the replica failed while it opened the session; try again") from None
            if response.status_code != 201:
                raise replica_error(response)
            self._add_session(stored.id, owner, request.source.push, client)
        log.info("session opened", extra={"session": stored.id, "owner": owner, "replica": client.address.id})
        return response.json()

    @asynccontextmanager
    async def request_any(
        self, method: str, path: str, owner: str, **content: Any
    ) -> AsyncIterator[tuple[ReplicaClient, httpx.Response]]:
        """Try one replica after another until one has room; yield it and its response, unread. Raises ApiError."""
        refused = None
        for client in self.ready_clients:
            client.num_pending += 1
            try:
                async with client.stream(method, path, owner, **content) as response:
                    if response.status_code not in _NO_ROOM:
                        yield client, response
                        return
                    await read_body(response)
                    refused = replica_error(response)
            except UnreachableError:
                await self.recheck(client)
            finally:
                client.num_pending -= 1
        raise refused or ApiError(503, "no replica is ready; try again", retry_after_s=5)

    async def recheck(self, client: ReplicaClient):
        """Poll a replica that did not answer, and wait a moment for the moves that may follow."""
        await self._poll(client)
        await asyncio.sleep(_RETRY_S)

    async def run(self):
        """Resume the stored sessions, then discover and poll replicas until cancelled."""
        for stored in self._stored:
            self._start_move(self._add_session(stored.id, stored.owner, stored.source.push, None))
        # Two loops: discovery may take long just after a replica has failed, and must not delay the polls.
        await asyncio.gather(_repeat(self._discover_new, _DISCOVER_S), _repeat(self._poll_all, _POLL_S))

    async def begin(self):
        """Discover the replicas and poll each once."""
        await self._discover_new()
        await self._poll_all()

    async def drain(self):
        """Open no new sessions, and let the live ones finish within ``limits.drain_s``."""
        self.is_draining = True
        deadline_s = time.monotonic() + self.config.limits.drain_s
        live = [session for session in self._sessions.values() if session.is_live]
        log.info("draining", extra={"num_sessions": len(live)})
        for session in live:
            session.finish()
        while any(session.is_live or session.log.num_listeners for session in live) and time.monotonic() < deadline_s:
            await asyncio.sleep(0.05)

    async def close(self):
        """Stop all moves and close all connections."""
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        for client in self._clients.values():
            await client.close()

    def _add_session(
        self, session_id: str, owner: str, is_pushed: bool, client: ReplicaClient | None, saved_s: float = 0.0
    ) -> RemoteSession:
        session = RemoteSession(session_id, owner, is_pushed, self.config.limits, self.recheck, client, saved_s)
        self._sessions[session_id] = session
        return session

    async def _discover_new(self):
        for address in await self._discover():
            if address.id not in self._clients and address.id not in self._removed:
                log.info("replica joined", extra={"replica": address.id, "url": address.url, "pid": address.pid})
                self._clients[address.id] = ReplicaClient(address, self._secret)

    async def _poll_all(self):
        await asyncio.gather(*(self._poll(client) for client in list(self._clients.values())))

    async def _poll(self, client: ReplicaClient):
        if client.address.id in self._removed:
            return
        try:
            self._apply_report(client, await client.fetch_report())
        except TimeoutError:
            if time.monotonic() - client.last_report_at_s > _REPORT_TIMEOUT_S:
                await self._remove(client)
        except UnreachableError:
            await self._remove(client)

    def _apply_report(self, client: ReplicaClient, report: dict[str, Any]):
        for session_id, reported in report["sessions"].items():
            session = self._sessions.get(session_id)
            if session is None:  # opened by an earlier run of the frontend
                owner, is_pushed, saved_s = reported["owner"], reported["is_pushed"], reported["saved_s"]
                session = self._add_session(session_id, owner, is_pushed, client, saved_s)
            if session.client is client:
                session.update(reported)
                if client.is_leaving and session.is_live:
                    session.begin_move()
        for session in self._sessions_on(client):
            if not session.is_live and session.id not in report["sessions"]:
                del self._sessions[session.id]

    async def _remove(self, client: ReplicaClient):
        """Remove a failed replica, and move its sessions."""
        if self._clients.pop(client.address.id, None) is None:
            return
        self._removed.add(client.address.id)
        sessions = self._sessions_on(client)
        log.warning("replica lost", extra={"replica": client.address.id, "num_sessions": len(sessions)})
        for session in sessions:
            if session.is_live:
                self._start_move(session)
            else:
                self._fail(session, "it has ended, and its replica is gone")
        await client.close()

    def _start_move(self, session: RemoteSession):
        session.begin_move()
        task = asyncio.create_task(self._move(session))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _move(self, session: RemoteSession):
        """Try the replicas until one resumes the session; give up after ``limits.idle_s``."""
        started_at_s = time.monotonic()
        while time.monotonic() - started_at_s < self.config.limits.idle_s:
            for client in self.ready_clients:
                try:
                    if await self._resume(session, client):
                        moved_s = round(time.monotonic() - started_at_s, 3)
                        log.info(
                            "session moved",
                            extra={"session": session.id, "replica": client.address.id, "moved_s": moved_s},
                        )
                        return
                except ApiError as error:
                    self._fail(session, error.detail)
                    return
                except UnreachableError:
                    await self.recheck(client)
            await asyncio.sleep(_RETRY_S)
        self._fail(session, "its replica is gone, and no other had room for it")

    async def _resume(self, session: RemoteSession, client: ReplicaClient) -> bool:
        """Resume a session on a replica; return False if it has no room. Raises ApiError if it cannot be resumed."""
        response = await client.request("POST", f"{REPLICA_PATH}/sessions/{session.id}", session.owner)
        if response.status_code in _NO_ROOM:
            return False
        if response.status_code != 200:
            raise ApiError(410, f"its replica is gone, and another cannot resume it ({error_message(response)})")
        await session.complete_move(client, response.json()["saved_s"])
        return True

    def _fail(self, session: RemoteSession, reason: str):
        log.warning("session lost", extra={"session": session.id, "reason": reason})
        session.fail(reason)
        asyncio.get_running_loop().call_later(self.config.limits.retention_s, self._sessions.pop, session.id, None)

    def _load(self, client: ReplicaClient) -> int:
        return client.num_pending + sum(session.is_live for session in self._sessions_on(client))

    def _sessions_on(self, client: ReplicaClient) -> list[RemoteSession]:
        return [session for session in self._sessions.values() if session.client is client]


async def _repeat(action: Callable[[], Awaitable[None]], pause_s: float):
    while True:
        try:
            await action()
        except Exception:
            log.exception("polling the replicas failed")  # continue: otherwise no failure would be noticed
        await asyncio.sleep(pause_s)
