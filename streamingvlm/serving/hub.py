"""All sessions of the server: opened within the limits, found by their owner, ended in time."""

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
from streamingvlm.serving.config import ServerConfig
from streamingvlm.serving.gateway import Gateway
from streamingvlm.serving.metrics import Metrics
from streamingvlm.serving.places import Addresses, Resolve, allowed_file, resolve_host
from streamingvlm.serving.pushed import PushedSeconds
from streamingvlm.serving.refusals import Refusal
from streamingvlm.serving.requests import SessionAsked, check_no_more
from streamingvlm.serving.sessions import About, LiveSession, Source
from streamingvlm.serving.streams import Stream, Streams
from streamingvlm.video.address import redacted
from streamingvlm.video.live import open_source

log = logging.getLogger(__name__)

_SWEEP_S = 0.5
_NUM_DECODERS = 2
_SHUTTING_DOWN = "the server is shutting down"


class Hub:
    """The sessions and what they share.

    streams: the model's side; config: limits, and what may be opened on a client's behalf.
    """

    def __init__(
        self, streams: Streams, config: ServerConfig, metrics: Metrics, *, resolve_name: Resolve = resolve_host
    ):
        self.streams, self.config, self.metrics = streams, config, metrics
        self.addresses = Addresses(config.allowed, resolve_name)
        self.gateway: Gateway | None = None  # the way to addresses, where any are allowed
        self.is_draining = False
        self.started_at = int(time.time())
        # Opening a source may take as long as a far server likes: in threads of their own, one a session.
        self.openers = ThreadPoolExecutor(config.limits.max_sessions, thread_name_prefix="open")
        self.decoders = ThreadPoolExecutor(_NUM_DECODERS, thread_name_prefix="decode")
        self._sessions: dict[str, LiveSession] = {}
        self._num_opening = self._num_clips = 0
        defaults = streams.model.stream_defaults
        self.cache = resolve(CacheConfig, streams.settings.get("cache"), defaults)
        self.video = resolve(VideoConfig, streams.settings.get("video"), defaults)
        self.sampling = resolve(SamplingConfig, streams.settings.get("sampling"), defaults)
        metrics.watch(lambda: list(self._sessions.values()))

    @property
    def is_ready(self) -> bool:
        """Whether a session could be opened, limits aside."""
        return not self.is_draining and self.streams.is_running

    def of(self, owner: str) -> list[LiveSession]:
        """The sessions of an owner, oldest first."""
        return [session for session in self._sessions.values() if session.owner == owner]

    def find(self, session_id: str, owner: str) -> LiveSession:
        """The session of this id. Raises Refusal, the same for one that is not there and one of somebody else."""
        session = self._sessions.get(session_id)
        if session is None or session.owner != owner:
            raise Refusal(404, "there is no such session; it may have ended and been forgotten")
        return session

    async def open(self, asked: SessionAsked, owner: str) -> LiveSession:
        """Open a session and begin to watch. Raises Refusal and StreamingVLMError."""
        self._check_asked(asked)
        with self._place():
            loop = asyncio.get_running_loop()
            source = await loop.run_in_executor(self.openers, self._open_source, asked)
            session, stream = self._new_session(asked, source, owner), None
            try:
                stream = await asyncio.to_thread(self._open_stream, asked, session)
                self._check_open()
            except BaseException:
                for opened in filter(None, (stream, source)):
                    loop.run_in_executor(self.openers, opened.close)
                raise
        self._sessions[session.id] = session
        session.start(stream)
        self.metrics.opened.inc()
        log.info("session opened", extra={"session": session.id, "owner": owner, "source": session.about.source})
        return session

    async def run(self):
        """End what has had its time, for as long as the server runs."""
        while True:
            await asyncio.sleep(_SWEEP_S)
            self._sweep(time.monotonic())

    async def drain(self):
        """Take no new sessions; let those that there are speak of what they have, within the limit."""
        self.is_draining = True
        live = [session for session in self._sessions.values() if session.is_live]
        log.info("draining", extra={"num_sessions": len(live)})
        for session in live:
            session.finish(_SHUTTING_DOWN)
        deadline_s = time.monotonic() + self.config.limits.drain_s
        while self._num_clips or any(session.is_live or session.log.num_listeners for session in live):
            if time.monotonic() >= deadline_s:
                log.warning("the time to drain is over", extra={"num_left": sum(s.is_live for s in live)})
                break
            await asyncio.sleep(0.05)
        await self._close_all()

    async def close(self):
        """End everything at once."""
        await self._close_all()
        self.openers.shutdown(wait=False, cancel_futures=True)
        self.decoders.shutdown(wait=False, cancel_futures=True)

    async def _close_all(self):
        await asyncio.gather(*(session.close(_SHUTTING_DOWN) for session in self._sessions.values()))

    @contextmanager
    def clip_place(self) -> Iterator[None]:
        """Take up one of the places for clips. Raises Refusal where there is none."""
        most = self.config.limits.max_clips
        if self._num_clips >= most:
            raise Refusal(429, f"{most} clips are being watched, which is the limit; try again", retry_after_s=2)
        self._num_clips += 1
        try:
            with self._place():
                yield
        finally:
            self._num_clips -= 1

    @contextmanager
    def _place(self) -> Iterator[None]:
        self._check_open()
        most = self.config.limits.max_sessions
        if sum(session.is_live for session in self._sessions.values()) + self._num_opening >= most:
            raise Refusal(429, f"{most} sessions are open, which is all there is room for; close one", retry_after_s=5)
        self._num_opening += 1
        try:
            yield
        finally:
            self._num_opening -= 1

    def _check_open(self):
        if self.is_draining:
            raise Refusal(503, f"{_SHUTTING_DOWN}; ask another", retry_after_s=10)

    def _check_asked(self, asked: SessionAsked):
        check_no_more(asked.cache.given(), asdict(self.cache), "cache")
        check_no_more(asked.sampling.given(), asdict(self.sampling), "sampling")

    def _new_session(self, asked: SessionAsked, source: Source, owner: str) -> LiveSession:
        return LiveSession(source, self.about(asked, source), owner, self)

    def _open_source(self, asked: SessionAsked, start_s: float = 0.0) -> Source:
        if asked.source.file is not None:
            path = allowed_file(asked.source.file, self.config.allowed)
            try:
                return self._open_live(path, asked, start_s)
            except VideoError as error:  # where the folder lies is nobody's business
                raise VideoError(str(error).replace(repr(str(path)), repr(asked.source.file))) from None
        if asked.source.url is not None:
            self.addresses.check(asked.source.url)
            return self._open_live(asked.source.url, asked, start_s)
        limits = self.config.limits
        return PushedSeconds(
            fps=self.video.fps,
            turn_s=self.video.turn_s,
            policy=asked.lag or self.config.live.policy or "drop",
            max_lag_s=self.config.live.max_lag_s,
            max_waiting_s=limits.max_waiting_s,
            max_waiting_bytes=limits.max_waiting_bytes,
            max_frame_bytes=3 * limits.max_frame_pixels,
            start_s=start_s,
        )

    def _open_live(self, place: Path | str, asked: SessionAsked, start_s: float) -> Source:
        proxy = self.gateway and self.gateway.url
        live = replace(self.config.live, policy=asked.lag or self.config.live.policy, http_proxy=proxy)
        video = self.video
        return open_source(
            place,
            fps=video.fps,
            turn_s=video.turn_s,
            decoder=video.decoder,
            prefetch=video.prefetch,
            start_s=start_s,
            live=live,
        )

    def about(self, asked: SessionAsked, source: Source) -> About:
        """What is shown of a session that watches this source."""
        address = asked.source.url and redacted(asked.source.url)
        return About(
            source=asked.source.file or address or "pushed frames",
            query=asked.query,
            lag=getattr(source, "policy", "wait"),
            fps=self.video.fps,
            turn_s=self.video.turn_s,
        )

    def _open_stream(self, asked: SessionAsked, session: LiveSession) -> Stream:
        return self.streams.open(
            cache=asked.cache.given(),
            sampling=asked.sampling.given(),
            query=asked.query,
            previous_text=asked.previous_text,
            on_token=session.hear_words,
        )

    def _sweep(self, now_s: float):
        limits = self.config.limits
        for session in list(self._sessions.values()):
            if session.ended_s is not None:
                if now_s - session.ended_s > limits.kept_s:
                    del self._sessions[session.id]
            elif limits.session_s is not None and now_s - session.opened_s > limits.session_s:
                session.finish(f"sessions end after {limits.session_s:g} s")
            elif session.is_pushed and now_s - session.fed_s > limits.idle_s:
                session.finish(f"no frame came for {limits.idle_s:g} s")


def settings_of(hub: Hub) -> dict[str, Any]:
    """The operator's settings, which are the most that a session may ask for."""
    return {"cache": asdict(hub.cache), "video": asdict(hub.video), "sampling": asdict(hub.sampling)}
