"""A replica: a server that stores its sessions on disk, so that another replica can resume them.

It is the standalone server with other authentication: a request must carry the frontend's secret, and names its owner.
The frontend uses plain HTTP connections to the replica's own address, so backpressure reaches the client that pushes
frames, and a failed replica is noticed at once because its connections break.
"""

import asyncio
import hmac
import logging
import threading
from collections.abc import Callable, Iterator
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from fastapi import APIRouter, FastAPI, Request
from starlette.datastructures import Headers
from starlette.responses import JSONResponse
from starlette.types import ASGIApp, Receive, Scope, Send

from streamingvlm.inference.commentary import Commentary
from streamingvlm.serving.api_errors import ApiError, error_body
from streamingvlm.serving.api_requests import SessionRequest
from streamingvlm.serving.app import session_app
from streamingvlm.serving.fleet.protocol import LEAVING_HEADER, OWNER_HEADER, REPLICA_PATH, SECRET_HEADER
from streamingvlm.serving.fleet.session_store import SessionStore, StoredSessionRequest
from streamingvlm.serving.metrics import Metrics
from streamingvlm.serving.routes import manager_of
from streamingvlm.serving.served_session import ServedSession, SessionInfo, SessionResources, TurnSource
from streamingvlm.serving.server import DrainingServer, bind
from streamingvlm.serving.server_config import ServerConfig
from streamingvlm.serving.session_manager import SessionManager
from streamingvlm.serving.stream_pool import StreamHandle, StreamPool
from streamingvlm.video.video_turn import VideoTurn

log = logging.getLogger(__name__)

_LEAVE_S = 60.0
"""Longest wait for the turn in flight when a replica leaves."""

router = APIRouter(prefix=REPLICA_PATH)


class OffsetSource:
    """A live source whose clock starts at 0, shifted to the clock of a stream that continues at ``start_s``."""

    def __init__(self, source: TurnSource, start_s: float):
        self.policy = source.policy
        self._source, self._start_s = source, start_s

    def __iter__(self) -> Iterator[VideoTurn]:
        for turn in self._source:
            yield replace(turn, start_s=self._start_s + turn.start_s, end_s=self._start_s + turn.end_s)

    def close(self):
        """End the iteration, from any thread."""
        self._source.close()


class MovableSession(ServedSession):
    """A session that is stored after each turn, and that another replica can resume."""

    def __init__(self, source: TurnSource, info: SessionInfo, store: SessionStore, resources: SessionResources):
        super().__init__(source, info, store.request.owner, resources, store.request.id)
        self.is_released = False
        self.end_s = self.saved_s = store.end_s
        self._store = store
        self._query_lock = asyncio.Lock()  # the store must get the queries in the stream's order
        self._has_stopped = threading.Event()

    def start(self, stream: StreamHandle):
        """Continue the stream; the lines of earlier replicas are in the log."""
        self._stream = stream
        self.info = replace(self.info, query=stream.session.query)
        if self._store.lines:
            self.log.last_id = self._store.lines[0]["id"] - 1
        for line in self._store.lines:
            self.log.publish_line({name: value for name, value in line.items() if name != "id"}, self.state())
        super().start(stream)

    async def push(self, *args, **options) -> bool:
        """Push a frame. Raises ApiError for a frame that the next replica has to take."""
        is_accepted = await super().push(*args, **options)
        if self.is_released and not is_accepted:
            raise ApiError(503, "the session is being moved; send the frame again", retry_after_s=1)
        return is_accepted

    async def set_query(self, query: str):
        """Change the query from the next turn on, and store it."""
        async with self._query_lock:
            await super().set_query(query)
            await asyncio.to_thread(self._store.set_query, query)

    async def release(self):
        """Stop after the turn in flight, without an end event: another replica resumes the session."""
        self.is_released = True
        self._close_source()
        if not await asyncio.to_thread(self._has_stopped.wait, _LEAVE_S):
            log.warning("a session does not stop", extra={"session": self.id, "waited_s": _LEAVE_S})

    def _persist(self, line: Commentary):
        self._store.append(asdict(line), self._stream)
        self.saved_s = line.end_s

    def _run(self):
        try:
            super()._run()
        finally:
            self._has_stopped.set()

    def _end(self, failure: str | None):
        if not self.is_released:
            super()._end(failure)

    def _clock_s(self) -> float:
        return self._store.end_s + super()._clock_s()


class ReplicaSessionManager(SessionManager):
    """The sessions of a replica, each stored below ``folder``."""

    def __init__(self, pool: StreamPool, config: ServerConfig, metrics: Metrics, folder: Path):
        super().__init__(pool, config, metrics)
        self.is_leaving = False
        self._folder = folder
        self._stores: dict[str, SessionStore] = {}

    async def create(self, request: StoredSessionRequest) -> ServedSession:
        """Open a new session. Raises ApiError and StreamingVLMError."""
        return await self._open_stored(request.id, SessionStore.create, request)

    async def resume(self, session_id: str) -> ServedSession:
        """Resume a session of another replica. Raises ApiError, and SnapshotError if its folder cannot be read."""
        return await self._open_stored(session_id, SessionStore.load, session_id)

    async def release(self):
        """Stop all sessions after their turns in flight, to be resumed by other replicas."""
        self.is_leaving = self.is_draining = True
        live = [session for session in self._sessions.values() if session.is_live]
        log.info("leaving", extra={"num_sessions": len(live)})
        await asyncio.gather(*(session.release() for session in live))

    def report(self) -> dict[str, Any]:
        """Return the status for the frontend. saved_s: stream time at which another replica would resume a session."""
        sessions = {
            session.id: {
                "owner": session.owner,
                "is_pushed": session.is_pushed,
                "is_live": session.is_live,
                "saved_s": session.saved_s,
            }
            for session in self._sessions.values()
        }
        return {"is_leaving": self.is_leaving, "is_ready": self.is_ready, "sessions": sessions}

    async def close(self):
        """End all sessions; the folders of those that had ended are deleted."""
        for session_id in [name for name, session in self._sessions.items() if not session.is_live]:
            self._stores.pop(session_id).remove()
        await super().close()

    async def _open_stored(
        self, session_id: str, open_store: Callable[..., SessionStore], argument: StoredSessionRequest | str
    ) -> ServedSession:
        if session_id in self._sessions:  # the frontend repeats a request whose response was lost
            return self._sessions[session_id]
        if session_id in self._stores:
            raise ApiError(503, "the session is being opened; send the request again", retry_after_s=1)
        self._stores[session_id] = store = await asyncio.to_thread(
            open_store, self._folder, argument, max_lines=self.config.limits.backlog_lines
        )
        try:
            return await self.open(store.request, store.request.owner)
        except BaseException:
            del self._stores[session_id]
            if open_store == SessionStore.create:
                store.remove()
            raise

    def _new_session(self, request: SessionRequest, source: TurnSource, owner: str) -> ServedSession:
        info = self.session_info(request, source)
        return MovableSession(source, info, self._stores[request.id], self.resources)

    def _open_source(self, request: SessionRequest, start_s: float = 0.0) -> TurnSource:
        store = self._stores[request.id]
        source = super()._open_source(request, store.end_s)
        return source if request.source.url is None else OffsetSource(source, store.live_start_s())

    def _open_stream(self, request: SessionRequest, session: ServedSession) -> StreamHandle:
        store = self._stores[request.id]
        if not store.has_snapshot:
            return super()._open_stream(request, session)
        stream = self.pool.resume(store.snapshot, on_token=session.on_token)
        if stream.session.query != request.query:  # changed after the newest turn
            stream.set_query(request.query)
        return stream

    def _sweep(self, now_s: float):
        before = set(self._sessions)
        super()._sweep(now_s)
        for session_id in before - set(self._sessions):
            self.openers.submit(self._stores.pop(session_id).remove)


@router.get("")
async def report(request: Request) -> dict[str, Any]:
    """The status of the replica and its sessions."""
    return manager_of(request).report()


@router.post("/sessions", status_code=201)
async def create(request: Request, body: StoredSessionRequest) -> dict[str, Any]:
    """Open a session under the id that the frontend has chosen."""
    session = await manager_of(request).create(body)
    return session.as_json()


@router.post("/sessions/{session_id}", status_code=200)
async def resume(request: Request, session_id: str) -> dict[str, Any]:
    """Resume a session of another replica."""
    session = await manager_of(request).resume(session_id)
    return {"saved_s": session.saved_s}


class FrontendAuth:
    """ASGI middleware that accepts only the frontend, and nothing but reports after the replica started to leave."""

    def __init__(self, app: ASGIApp, manager: ReplicaSessionManager, secret: str):
        self._app, self._manager, self._secret = app, manager, secret.encode()

    async def __call__(self, scope: Scope, receive: Receive, send: Send):
        """Handle one request or WebSocket; sets ``scope["state"]["owner"]``."""
        if scope["type"] not in ("http", "websocket"):
            await self._app(scope, receive, send)
            return
        headers = Headers(scope=scope)
        if not hmac.compare_digest(headers.get(SECRET_HEADER, "").encode(), self._secret):
            respond = JSONResponse(error_body(401, "a replica serves its frontend only; ask the frontend"), 401)
        elif self._manager.is_leaving and scope["path"] != REPLICA_PATH:
            respond = JSONResponse(error_body(503, "this replica is leaving"), 503, {LEAVING_HEADER: "1"})
        else:
            scope.setdefault("state", {})["owner"] = headers.get(OWNER_HEADER, "")
            respond = self._app
        await respond(scope, receive, send)


class ReplicaServer:
    """A replica that serves in a thread of its own, on any free port."""

    def __init__(self, pool: StreamPool, config: ServerConfig, folder: Path, secret: str):
        self.manager = ReplicaSessionManager(pool, config, Metrics(), folder)
        self._listener = bind(replace(config, port=0))
        self._is_ready = threading.Event()
        self._loop: asyncio.AbstractEventLoop | None = None
        self._server = DrainingServer(replica_app(self.manager, secret), config, on_ready=self._on_ready)
        self._thread = threading.Thread(target=self._server.run, args=([self._listener],), name="replica", daemon=True)
        self._thread.start()
        self._is_ready.wait()

    @property
    def url(self) -> str:
        """Return the replica's URL."""
        host, port = self._listener.getsockname()[:2]
        return f"http://{host}:{port}" if ":" not in host else f"http://[{host}]:{port}"

    @property
    def is_healthy(self) -> bool:
        """Return True while the server and the engine run."""
        return self._thread.is_alive() and self.manager.pool.is_running

    def leave(self):
        """Release all sessions, then stop; has no effect the second time."""
        if self._thread.is_alive():
            asyncio.run_coroutine_threadsafe(self.manager.release(), self._loop).result()
            self._server.should_exit = True
            self._thread.join()

    def _on_ready(self):
        self._loop = asyncio.get_running_loop()
        self._is_ready.set()


def replica_app(manager: ReplicaSessionManager, secret: str) -> FastAPI:
    """Return the application of a replica."""
    app = session_app(manager)
    app.include_router(router)
    app.add_middleware(FrontendAuth, manager=manager, secret=secret)
    return app
