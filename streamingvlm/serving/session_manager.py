"""All sessions of a server: opens them within the limits, finds them for their owner, and ends them on time."""

import asyncio
import logging
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from streamingvlm.config import CacheConfig, SamplingConfig, VideoConfig, resolve
from streamingvlm.errors import VideoError
from streamingvlm.serving.access_policy import HostPolicy, Resolver, allowed_file, resolve_host
from streamingvlm.serving.api_errors import ApiError
from streamingvlm.serving.api_requests import SessionRequest, check_at_most
from streamingvlm.serving.egress_proxy import EgressProxy
from streamingvlm.serving.metrics import Metrics
from streamingvlm.serving.pushed_turns import PushedTurns
from streamingvlm.serving.served_session import ServedSession, SessionInfo, SessionResources, TurnSource
from streamingvlm.serving.server_config import ServerConfig
from streamingvlm.serving.stream_pool import StreamHandle, StreamPool
from streamingvlm.video.address import redacted
from streamingvlm.video.live import open_source

log = logging.getLogger(__name__)

_SWEEP_S = 0.5
_NUM_DECODERS = 2
_SHUTTING_DOWN = "the server is shutting down"


class SessionManager:
    """The sessions of a server and the resources that they share.

    pool: the streams of the model; config: limits, and the sources that clients may open.
    """

    def __init__(
        self, pool: StreamPool, config: ServerConfig, metrics: Metrics, *, resolve_name: Resolver = resolve_host
    ):
        self.pool, self.config, self.metrics = pool, config, metrics
        self.hosts = HostPolicy(config.allowed, resolve_name)
        self.egress_proxy: EgressProxy | None = None  # set if any hosts are allowed
        self.is_draining = False
        self.started_at = int(time.time())
        # A remote server can delay the opening of a source without limit, so each session may occupy one thread.
        self.openers = ThreadPoolExecutor(config.limits.max_sessions, thread_name_prefix="open")
        self.decoders = ThreadPoolExecutor(_NUM_DECODERS, thread_name_prefix="decode")
        self.resources = SessionResources(config.limits, metrics, self.decoders, self.openers)
        self._sessions: dict[str, ServedSession] = {}
        self._num_reserved = self._num_clips = 0
        defaults = pool.model.stream_defaults
        self.cache = resolve(CacheConfig, pool.settings.get("cache"), defaults)
        self.video = resolve(VideoConfig, pool.settings.get("video"), defaults)
        self.sampling = resolve(SamplingConfig, pool.settings.get("sampling"), defaults)
        metrics.observe_sessions(lambda: list(self._sessions.values()))

    @property
    def is_ready(self) -> bool:
        """Return True if new sessions are accepted, limits aside."""
        return not self.is_draining and self.pool.is_running

    def owned_by(self, owner: str) -> list[ServedSession]:
        """Return the sessions of an owner, oldest first."""
        return [session for session in self._sessions.values() if session.owner == owner]

    def find(self, session_id: str, owner: str) -> ServedSession:
        """Return a session. Raises the same ApiError if it does not exist and if it belongs to another owner."""
        session = self._sessions.get(session_id)
        if session is None or session.owner != owner:
            raise ApiError(404, "there is no such session; it may have ended and been removed")
        return session

    async def open(self, request: SessionRequest, owner: str) -> ServedSession:
        """Open a session and start processing. Raises ApiError and StreamingVLMError."""
        self._check_settings(request)
        await self.check_text(query=request.query, previous_text=request.previous_text)
        with self._reserve_session():
            loop = asyncio.get_running_loop()
            source = await loop.run_in_executor(self.openers, self._open_source, request)
            session, stream = self._new_session(request, source, owner), None
            try:
                stream = await asyncio.to_thread(self._open_stream, request, session)
                self._check_not_draining()
            except BaseException:
                for opened in filter(None, (stream, source)):
                    loop.run_in_executor(self.openers, opened.close)
                raise
        self._sessions[session.id] = session
        session.start(stream)
        self.metrics.opened.inc()
        log.info("session opened", extra={"session": session.id, "owner": owner, "source": session.info.source})
        return session

    async def check_text(self, **texts: str):
        """Raise ApiError for a text of too many tokens; the texts by the names that the client knows."""
        limit = self.config.limits.max_text_tokens
        for name, text in texts.items():
            num_tokens = await asyncio.to_thread(self.pool.count_tokens, text)
            if num_tokens > limit:
                raise ApiError(400, f"{name} has {num_tokens:,} tokens, at most {limit:,} are allowed; shorten it")

    async def run(self):
        """End and remove sessions whose time is up, until cancelled."""
        while True:
            await asyncio.sleep(_SWEEP_S)
            self._sweep(time.monotonic())

    async def drain(self):
        """Accept no new sessions, and let the live ones finish within ``limits.drain_s``; then close all."""
        self.is_draining = True
        live = [session for session in self._sessions.values() if session.is_live]
        log.info("draining", extra={"num_sessions": len(live)})
        for session in live:
            session.finish(_SHUTTING_DOWN)
        deadline_s = time.monotonic() + self.config.limits.drain_s
        while self._num_clips or any(session.is_live or session.log.num_listeners for session in live):
            if time.monotonic() >= deadline_s:
                log.warning("drain timeout", extra={"num_left": sum(s.is_live for s in live)})
                break
            await asyncio.sleep(0.05)
        await self._close_all()

    async def close(self):
        """End all sessions immediately."""
        await self._close_all()
        self.openers.shutdown(wait=False, cancel_futures=True)
        self.decoders.shutdown(wait=False, cancel_futures=True)

    async def _close_all(self):
        await asyncio.gather(*(session.close(_SHUTTING_DOWN) for session in self._sessions.values()))

    @contextmanager
    def reserve_clip(self) -> Iterator[None]:
        """Count a clip against the limits while the context is open. Raises ApiError if a limit is reached."""
        most = self.config.limits.max_clips
        if self._num_clips >= most:
            raise ApiError(429, f"{most} clips are being processed, which is the limit; try again", retry_after_s=2)
        self._num_clips += 1
        try:
            with self._reserve_session():
                yield
        finally:
            self._num_clips -= 1

    @contextmanager
    def _reserve_session(self) -> Iterator[None]:
        self._check_not_draining()
        most = self.config.limits.max_sessions
        if sum(session.is_live for session in self._sessions.values()) + self._num_reserved >= most:
            raise ApiError(
                429,
                f"{most} sessions and clips are open, which is the limit; close one of yours or try again",
                retry_after_s=5,
            )
        self._num_reserved += 1
        try:
            yield
        finally:
            self._num_reserved -= 1

    def _check_not_draining(self):
        if self.is_draining:
            raise ApiError(503, f"{_SHUTTING_DOWN}; use another server", retry_after_s=10)

    def _check_settings(self, request: SessionRequest):
        check_at_most(request.cache.overrides(), asdict(self.cache), "cache")
        check_at_most(request.sampling.overrides(), asdict(self.sampling), "sampling")

    def _new_session(self, request: SessionRequest, source: TurnSource, owner: str) -> ServedSession:
        return ServedSession(source, self.session_info(request, source), owner, self.resources)

    def _open_source(self, request: SessionRequest, start_s: float = 0.0) -> TurnSource:
        if request.source.file is not None:
            path = allowed_file(request.source.file, self.config.allowed)
            try:
                return self._open_video(path, request, start_s)
            except VideoError as error:  # do not reveal the path of the folder
                raise VideoError(str(error).replace(repr(str(path)), repr(request.source.file))) from None
        if request.source.url is not None:
            self.hosts.check_url(request.source.url)
            return self._open_video(request.source.url, request, start_s)
        limits = self.config.limits
        return PushedTurns(
            fps=self.video.fps,
            turn_s=self.video.turn_s,
            policy=request.lag or self.config.live.policy or "drop",
            max_lag_s=self.config.live.max_lag_s,
            max_waiting_s=limits.max_waiting_s,
            max_waiting_bytes=limits.max_waiting_bytes,
            max_frame_bytes=3 * limits.max_frame_pixels,
            start_s=start_s,
        )

    def _open_video(self, source: Path | str, request: SessionRequest, start_s: float) -> TurnSource:
        proxy = self.egress_proxy and self.egress_proxy.url
        live = replace(self.config.live, policy=request.lag or self.config.live.policy, http_proxy=proxy)
        video = self.video
        return open_source(
            source,
            fps=video.fps,
            turn_s=video.turn_s,
            decoder=video.decoder,
            prefetch=video.prefetch,
            start_s=start_s,
            live=live,
        )

    def session_info(self, request: SessionRequest, source: TurnSource) -> SessionInfo:
        """Return the settings that clients see of a session with this source."""
        address = request.source.url and redacted(request.source.url)
        return SessionInfo(
            source=request.source.file or address or "pushed frames",
            query=request.query,
            lag=getattr(source, "policy", "wait"),
            fps=self.video.fps,
            turn_s=self.video.turn_s,
        )

    def _open_stream(self, request: SessionRequest, session: ServedSession) -> StreamHandle:
        return self.pool.open(
            cache=request.cache.overrides(),
            sampling=request.sampling.overrides(),
            query=request.query,
            previous_text=request.previous_text,
            on_token=session.on_token,
        )

    def _sweep(self, now_s: float):
        limits = self.config.limits
        for session in list(self._sessions.values()):
            if session.ended_at_s is not None:
                if now_s - session.ended_at_s > limits.retention_s:
                    del self._sessions[session.id]
            elif limits.session_s is not None and now_s - session.opened_at_s > limits.session_s:
                session.finish(f"sessions end after {limits.session_s:g} s")
            elif session.is_pushed and now_s - session.last_push_at_s > limits.idle_s:
                session.finish(f"no frame came for {limits.idle_s:g} s")


def operator_settings(manager: SessionManager) -> dict[str, Any]:
    """Return the operator's settings: the defaults of a session, and the most that it may ask for."""
    return {"cache": asdict(manager.cache), "video": asdict(manager.video), "sampling": asdict(manager.sampling)}
