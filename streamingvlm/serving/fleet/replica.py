"""One replica: a server of sessions that keeps each of them on disk, for another to go on with, and serves its front.

It is the server that runs alone elsewhere, with another gate: whoever has the front's secret is let in, and says whose
request it is. It is reached at an address of its own, by HTTP, so that a sender is held back by the model that it sends
to, and a replica that dies is missed at once: its connections break.
"""

import asyncio
import hmac
import logging
import threading
from collections.abc import Iterator
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from fastapi import APIRouter, FastAPI, Request
from starlette.datastructures import Headers
from starlette.responses import JSONResponse
from starlette.types import ASGIApp, Receive, Scope, Send

from streamingvlm.inference.commentary import Commentary
from streamingvlm.serving.app import session_app
from streamingvlm.serving.config import ServerConfig
from streamingvlm.serving.fleet.kept import KeptAsked, KeptSession
from streamingvlm.serving.hub import Hub
from streamingvlm.serving.metrics import Metrics
from streamingvlm.serving.refusals import Refusal, error_body
from streamingvlm.serving.requests import SessionAsked
from streamingvlm.serving.routes import hub_of
from streamingvlm.serving.server import DrainingServer, bind
from streamingvlm.serving.sessions import LiveSession, Source
from streamingvlm.serving.streams import Stream, Streams
from streamingvlm.video.video_turn import VideoTurn

log = logging.getLogger(__name__)

SECRET_HEADER, OWNER_HEADER, LEAVING_HEADER = "x-front-secret", "x-front-owner", "x-replica-leaving"
REPORT_PATH = "/replica"

_LEAVE_S = 60.0
"""The longest turn that is waited for when a replica leaves."""

router = APIRouter(prefix=REPORT_PATH)


class Later:
    """A live source whose clock begins anew, on the clock of a stream that goes on at ``start_s``."""

    def __init__(self, source: Source, start_s: float):
        self.policy = source.policy
        self._source, self._start_s = source, start_s

    def __iter__(self) -> Iterator[VideoTurn]:
        for second in self._source:
            yield replace(second, start_s=self._start_s + second.start_s, end_s=self._start_s + second.end_s)

    def close(self):
        """End the iteration, from any thread."""
        self._source.close()


class MovableSession(LiveSession):
    """A session that is kept as it goes, and that another replica can go on with."""

    def __init__(self, source: Source, hub: "ReplicaHub", asked: SessionAsked, kept: KeptSession):
        super().__init__(source, hub.about(asked, source), kept.asked.owner, hub, kept.asked.id)
        self.is_released = False
        self.seen_s = self.kept_s = kept.seen_s
        self._kept = kept
        self._has_stopped = threading.Event()

    def start(self, stream: Stream):
        """Go on where the stream is; what was said before can be listened to."""
        self._stream = stream
        self.about = replace(self.about, query=stream.session.query)
        if self._kept.lines:
            self.log.last_id = self._kept.lines[0]["id"] - 1
        for line in self._kept.lines:
            self.log.say({name: value for name, value in line.items() if name != "id"}, self.state())
        super().start(stream)

    async def push(self, *args, **options) -> bool:
        """Take a frame as any session does; one that came too late for this replica is for the next."""
        is_taken = await super().push(*args, **options)
        if self.is_released and not is_taken:
            raise Refusal(503, "the session is being moved; send the frame again", retry_after_s=1)
        return is_taken

    async def instruct(self, query: str):
        """Change the standing instruction, and keep the change."""
        await super().instruct(query)
        await asyncio.to_thread(self._kept.save, self._stream)

    async def release(self):
        """Stop after the turn that is under way, and tell nobody of an end: another replica goes on."""
        self.is_released = True
        self._close_source()
        if not await asyncio.to_thread(self._has_stopped.wait, _LEAVE_S):
            log.warning("a session does not come to rest", extra={"session": self.id})

    def _keep(self, line: Commentary):
        self._kept.keep(asdict(line), self._stream)
        self.kept_s = line.end_s

    def _watch(self):
        try:
            super()._watch()
        finally:
            self._has_stopped.set()

    def _end(self, reason: str | None):
        if not self.is_released:
            super()._end(reason)

    def _clock_s(self) -> float:
        return self._kept.seen_s + super()._clock_s()


class ReplicaHub(Hub):
    """The sessions of a replica, each with a folder below ``folder``."""

    def __init__(self, streams: Streams, config: ServerConfig, metrics: Metrics, folder: Path):
        super().__init__(streams, config, metrics)
        self.is_leaving = False
        self._folder = folder
        self._kept: dict[str, KeptSession] = {}

    async def begin(self, asked: KeptAsked) -> LiveSession:
        """Open a session that is new. Raises Refusal and StreamingVLMError."""
        return await self._open_kept(asked.id, KeptSession.new, asked)

    async def take_up(self, session_id: str) -> LiveSession:
        """Go on with a session of another replica. Raises Refusal, and SnapshotError where too little is left of it."""
        return await self._open_kept(session_id, KeptSession.found, session_id)

    async def release(self):
        """Let all sessions go as they stand."""
        self.is_leaving = self.is_draining = True
        live = [session for session in self._sessions.values() if session.is_live]
        log.info("leaving", extra={"num_sessions": len(live)})
        await asyncio.gather(*(session.release() for session in live))

    def report(self) -> dict[str, Any]:
        """What a front has to know. kept_s: up to where the stream of a session would be taken up elsewhere."""
        sessions = {
            session.id: {
                "owner": session.owner,
                "is_pushed": session.is_pushed,
                "is_live": session.is_live,
                "kept_s": session.kept_s,
            }
            for session in self._sessions.values()
        }
        return {"is_leaving": self.is_leaving, "is_ready": self.is_ready, "sessions": sessions}

    async def close(self):
        """End what is left; what has ended is forgotten on disk, too."""
        for session_id in [name for name, session in self._sessions.items() if not session.is_live]:
            self._kept.pop(session_id).remove()
        await super().close()

    async def _open_kept(self, session_id: str, keep, given: KeptAsked | str) -> LiveSession:
        if session_id in self._sessions:  # whoever asked did not hear the answer
            return self._sessions[session_id]
        if session_id in self._kept:
            raise Refusal(503, "the session is being opened; ask again", retry_after_s=1)
        self._kept[session_id] = kept = await asyncio.to_thread(
            keep, self._folder, given, max_lines=self.config.limits.backlog_lines
        )
        try:
            return await self.open(kept.asked, kept.asked.owner)
        except BaseException:
            del self._kept[session_id]
            if keep == KeptSession.new:
                kept.remove()
            raise

    def _new_session(self, asked: SessionAsked, source: Source, owner: str) -> LiveSession:
        return MovableSession(source, self, asked, self._kept[asked.id])

    def _open_source(self, asked: SessionAsked, start_s: float = 0.0) -> Source:
        kept = self._kept[asked.id]
        source = super()._open_source(asked, kept.seen_s)
        return source if asked.source.url is None else Later(source, kept.now_s())

    def _open_stream(self, asked: SessionAsked, session: LiveSession) -> Stream:
        kept = self._kept[asked.id]
        if kept.has_snapshot:
            return self.streams.take_up(kept.snapshot, on_token=session.hear_words)
        return super()._open_stream(asked, session)

    def _sweep(self, now_s: float):
        known = set(self._sessions)
        super()._sweep(now_s)
        for session_id in known - set(self._sessions):
            self.openers.submit(self._kept.pop(session_id).remove)


@router.get("")
async def report(request: Request) -> dict[str, Any]:
    """What a front has to know."""
    return hub_of(request).report()


@router.post("/sessions", status_code=201)
async def begin(request: Request, asked: KeptAsked) -> dict[str, Any]:
    """Open a session under the id that the front gave it."""
    session = await hub_of(request).begin(asked)
    return session.as_json()


@router.post("/sessions/{session_id}", status_code=200)
async def take_up(request: Request, session_id: str) -> dict[str, Any]:
    """Go on with a session whose replica has gone."""
    session = await hub_of(request).take_up(session_id)
    return {"kept_s": session.kept_s}


class FrontGate:
    """Lets the front in, who says whose request it is; and nobody any more once the replica leaves."""

    def __init__(self, app: ASGIApp, hub: ReplicaHub, secret: str):
        self._app, self._hub, self._secret = app, hub, secret.encode()

    async def __call__(self, scope: Scope, receive: Receive, send: Send):
        """Serve the front."""
        if scope["type"] not in ("http", "websocket"):
            await self._app(scope, receive, send)
            return
        headers = Headers(scope=scope)
        if not hmac.compare_digest(headers.get(SECRET_HEADER, "").encode(), self._secret):
            answer = JSONResponse(error_body(401, "replicas serve their front alone; ask the front"), 401)
        elif self._hub.is_leaving and scope["path"] != REPORT_PATH:
            answer = JSONResponse(error_body(503, "this replica is leaving"), 503, {LEAVING_HEADER: "1"})
        else:
            scope.setdefault("state", {})["owner"] = headers.get(OWNER_HEADER, "")
            answer = self._app
        await answer(scope, receive, send)


class ReplicaServer:
    """A replica that serves in a thread of its own, on a port that is free."""

    def __init__(self, streams: Streams, config: ServerConfig, folder: Path, secret: str):
        self.hub = ReplicaHub(streams, config, Metrics(), folder)
        self._listener = bind(replace(config, port=0))
        self._is_ready = threading.Event()
        self._loop: asyncio.AbstractEventLoop | None = None
        self._server = DrainingServer(replica_app(self.hub, secret), config, on_ready=self._begin)
        self._thread = threading.Thread(target=self._server.run, args=([self._listener],), name="replica", daemon=True)
        self._thread.start()
        self._is_ready.wait()

    @property
    def url(self) -> str:
        """Where it is reached."""
        host, port = self._listener.getsockname()[:2]
        return f"http://{host}:{port}" if ":" not in host else f"http://[{host}]:{port}"

    @property
    def is_well(self) -> bool:
        """Whether it serves, and its model runs."""
        return self._thread.is_alive() and self.hub.streams.is_running

    def leave(self):
        """Let all sessions go as they stand, then stop; the second time there is nothing to do."""
        if self._thread.is_alive():
            asyncio.run_coroutine_threadsafe(self.hub.release(), self._loop).result()
            self._server.should_exit = True
            self._thread.join()

    def _begin(self):
        self._loop = asyncio.get_running_loop()
        self._is_ready.set()


def replica_app(hub: ReplicaHub, secret: str) -> FastAPI:
    """The application of a replica."""
    app = session_app(hub)
    app.include_router(router)
    app.add_middleware(FrontGate, hub=hub, secret=secret)
    return app
