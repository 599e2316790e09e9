"""One session of the server: it runs the turns of a source through the model, and logs the commentary."""

import asyncio
import logging
import secrets
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Executor
from dataclasses import asdict, dataclass, replace
from functools import partial
from typing import Any, Protocol

import torch

from streamingvlm.errors import ClosedError, StreamingVLMError, VideoError
from streamingvlm.inference.commentary import Commentary
from streamingvlm.serving.api_errors import ApiError
from streamingvlm.serving.commentary_log import CommentaryLog
from streamingvlm.serving.jpeg import check_jpeg, check_jpeg_start, decode_jpeg, encode_jpeg
from streamingvlm.serving.metrics import Metrics
from streamingvlm.serving.pushed_turns import PushedTurns
from streamingvlm.serving.rate_limits import TokenBucket
from streamingvlm.serving.server_config import ServerLimits
from streamingvlm.serving.stream_pool import StreamHandle
from streamingvlm.video.video_turn import VideoTurn

log = logging.getLogger(__name__)

_ID_BYTES = 16


class TurnSource(Protocol):
    """An iterable of turns; ``close`` ends the iteration, from any thread."""

    def __iter__(self) -> Iterator[VideoTurn]: ...

    def close(self) -> None: ...


@dataclass(frozen=True)
class SessionInfo:
    """Settings of a session, as clients see them."""

    source: str
    query: str
    lag: str
    fps: float
    turn_s: float


@dataclass(frozen=True)
class SessionResources:
    """Shared by all sessions of a server. decoders: threads that decode frames; closers: threads that close sources."""

    limits: ServerLimits
    metrics: Metrics
    decoders: Executor
    closers: Executor


def new_session_id() -> str:
    """Return a random id that cannot be guessed."""
    return f"ses_{secrets.token_urlsafe(_ID_BYTES)}"


class ServedSession:
    """A source, its stream in the engine, and the log of its commentary.

    A thread of its own takes turns from the source and submits them, one at a time. Everything else runs in the event
    loop's thread; the session's and the engine's thread hand their results over by ``call_soon_threadsafe``.
    owner: id of the API key that opened it.
    """

    def __init__(
        self,
        source: TurnSource,
        info: SessionInfo,
        owner: str,
        resources: SessionResources,
        session_id: str | None = None,
    ):
        limits = resources.limits
        self.id = session_id or new_session_id()
        self.owner = owner
        self.info = info
        self.log = CommentaryLog(limits.backlog_lines)
        self.created_at = time.time()
        self.ended_at_s: float | None = None  # by time.monotonic(), as the next two
        self.last_push_at_s = self.opened_at_s = time.monotonic()
        self.num_questions = 0
        self.newest_frame: torch.Tensor | None = None
        self._jpeg: tuple[torch.Tensor | None, bytes | None] = (None, None)  # a frame and its encoding
        self.lag_s = self.end_s = 0.0
        self._source, self._limits, self._metrics = source, limits, resources.metrics
        self._decoders, self._closers = resources.decoders, resources.closers
        self._push_lock, self._has_room = asyncio.Lock(), asyncio.Event()
        self._first_frame_at_s: float | None = None
        self._frame_rate = TokenBucket(limits.max_frames_per_s, max(1.0, limits.max_frames_per_s))
        self._end_reason: str | None = None  # set as soon as it is known, before the end
        self._loop = asyncio.get_running_loop()
        self._partial_text = ""  # of the turn in flight; see on_token
        self._thread = threading.Thread(target=self._run, name=f"session {self.id[:8]}", daemon=True)

    def start(self, stream: StreamHandle):
        """Start processing. The stream is opened after the session, because it needs ``on_token``."""
        self._stream = stream
        self._thread.start()

    @property
    def is_live(self) -> bool:
        """Return True until the log has ended."""
        return not self.log.has_ended

    @property
    def is_pushed(self) -> bool:
        """Return True if clients push the frames."""
        return isinstance(self._source, PushedTurns)

    def check_takes_frames(self):
        """Raise ApiError if no frame can be pushed."""
        if not self.is_pushed:
            raise ApiError(409, f"this session watches {self.info.source}; open one with source push to send frames")
        self._check_live()

    async def push_jpeg(self, data: bytes, time_s: float | None, *, may_wait: bool) -> bool:
        """Push a JPEG; see ``push``. Also raises VideoError if it cannot be decoded."""
        most = self._limits.max_frame_pixels
        check_jpeg_start(data)
        check = partial(check_jpeg, data, max_pixels=most)
        return await self.push(partial(decode_jpeg, data, max_pixels=most), time_s, may_wait=may_wait, check=check)

    def check_size(self, width: int, height: int):
        """Raise VideoError if a frame of this size is beyond the limit."""
        if width * height > (most := self._limits.max_frame_pixels):
            raise VideoError(f"the frame has {width}x{height} pixels, more than {most}; send it smaller")

    async def push(
        self,
        decode: Callable[[], torch.Tensor],
        time_s: float | None,
        *,
        may_wait: bool,
        check: Callable[[], None] | None = None,
    ) -> bool:
        """Push a frame and return True unless it is late; a frame that is not sampled is not decoded.

        time_s: stream time; None for the time of arrival, counted from the first frame. may_wait: under the policy
        ``wait``, wait for room; otherwise ApiError is raised if there is none. check: called first, in a
        thread; raises VideoError for an invalid frame, sampled or not.
        """
        self.check_takes_frames()
        self.last_push_at_s = time.monotonic()
        async with self._push_lock:
            if self.info.lag == "wait":
                await self._wait_for_room(may_wait)
            elif self._frame_rate.take():
                return self._count_frame("rate_limited")
            at_s = self.clock_s() if time_s is None else time_s
            if not self._source.wants(at_s):
                return self._count_frame("late")
            if check is not None:
                await self._loop.run_in_executor(self._decoders, check)
            is_used = await self._loop.run_in_executor(self._decoders, self._source.push, decode, at_s)
            return self._count_frame("accepted" if is_used else "late")

    async def _wait_for_room(self, may_wait: bool):
        while self.is_live and not self._source.has_room:
            if not may_wait:
                raise ApiError(503, "the model is behind; send the frame again", retry_after_s=1)
            self._has_room.clear()
            await self._has_room.wait()

    def _count_frame(self, outcome: str) -> bool:
        self._metrics.frames.labels(outcome).inc()
        return outcome == "accepted"

    def clock_s(self) -> float:
        """Return the stream time of a frame that arrives now."""
        now_s = time.monotonic()
        self._first_frame_at_s = self._first_frame_at_s or now_s
        return now_s - self._first_frame_at_s

    async def ask(self, question: str, max_new_tokens: int | None) -> str:
        """Answer a question about the stream, without changing it. Raises ApiError."""
        self._check_live()
        if self.num_questions >= self._limits.max_questions:
            raise ApiError(429, f"{self.num_questions} questions wait already; ask again later", retry_after_s=1)
        self.num_questions += 1
        try:
            most = min(max_new_tokens or self._limits.max_answer_tokens, self._limits.max_answer_tokens)
            answer = await asyncio.wrap_future(self._stream.ask(question, max_new_tokens=most))
            self._metrics.questions.inc()
            return answer
        finally:
            self.num_questions -= 1

    async def set_query(self, query: str):
        """Change the query from the next turn on. Raises ApiError, and EngineFull if the cache cannot hold it."""
        self._check_live()
        await asyncio.to_thread(self._stream.set_query, query)
        self.info = replace(self.info, query=query)

    def finish(self, reason: str = "finished"):
        """Accept no more frames; the turns that wait are still processed. The first call sets the reason."""
        if self._end_reason is not None:
            return
        self._end_reason = reason
        if self.is_pushed:
            self._source.finish()
        else:
            self._close_source()

    async def close(self, reason: str):
        """End the session immediately; its memory is free when this returns."""
        if self.is_live:
            self._end_reason = reason
        self._close_source()
        await asyncio.to_thread(self._stream.close)  # blocks until the engine is between two steps

    def on_token(self, piece: str):
        """Publish the text of the current turn so far. Called in the engine's thread with each new piece.

        The text is collected even without listeners, so that one who joins in mid-turn gets it from its beginning.
        """
        self._partial_text += piece
        if self.log.num_listeners:
            self._on_loop(self.log.publish_partial, {"text": self._partial_text.strip()})

    def jpeg(self) -> bytes | None:
        """Return the newest frame that the model has seen, None before the first turn. Encodes once a turn."""
        frame, (encoded, jpeg) = self.newest_frame, self._jpeg
        if frame is not None and frame is not encoded:
            jpeg = encode_jpeg(frame)
            self._jpeg = frame, jpeg
        return jpeg

    def state(self) -> dict[str, Any]:
        """Return the session's progress, lag, and cache contents."""
        status = self._stream.status
        return {
            "num_turns": status.num_turns,
            "num_tokens": status.num_tokens,
            "lag_s": round(self.lag_s, 3),
            "dropped_s": round(status.dropped_s, 3),
            "realtime_factor": round(status.realtime_factor, 2),
            "cache": {
                "num_tokens": status.cache_tokens,
                "capacity_tokens": status.capacity_tokens,
                "spans": [span.as_json() for span in status.spans],
            },
        }

    def as_json(self) -> dict[str, Any]:
        """Return the session as clients see it."""
        return {
            "id": self.id,
            "object": "session",
            "created": int(self.created_at),
            "status": "live" if self.is_live else "ended",
            "reason": None if self.is_live else self._end_reason,
            **asdict(self.info),
            "num_lines": self.log.last_id,
            "num_listeners": self.log.num_listeners,
            "state": self.state(),
        }

    def _check_live(self):
        if not self.is_live:
            raise ApiError(409, f"the session has ended ({self._end_reason}); open another")

    def _close_source(self):
        if self.is_pushed:
            self._source.close()
            return
        # A source that is being read closes only after the read: do not block the event loop.
        self._loop.run_in_executor(self._closers, self._source.close)

    def _run(self):
        failure = None
        try:
            for turn in self._source:
                self._partial_text = ""  # safe: no turn is in flight, so the engine does not call on_token
                line = self._stream.submit(turn).result()
                self._persist(line)
                self._on_loop(self._publish, turn, line)
        except ClosedError:
            pass  # closed by close(), which has set the reason
        except StreamingVLMError as error:
            failure = str(error)
        except Exception:
            log.exception("session failed", extra={"session": self.id})
            failure = "the server failed; see its log"
        finally:
            self._source.close()
            self._stream.close()
            self._on_loop(self._end, failure)

    def _persist(self, line: Commentary):
        """Store a line before it is published. Called in the session's thread; nothing is stored by default."""

    def _on_loop(self, callback, *args):
        """Call a function in the event loop's thread; has no effect after the loop is closed."""
        try:
            self._loop.call_soon_threadsafe(callback, *args)
        except RuntimeError:  # a check of is_closed() beforehand would race with the closing
            if not self._loop.is_closed():
                raise

    def _publish(self, turn: VideoTurn, line: Commentary):
        self.newest_frame = turn.frames[-1]
        self._has_room.set()
        self.end_s = turn.end_s
        is_pushed = isinstance(self._source, PushedTurns)
        self.lag_s = max(0.0, self._source.pushed_s - turn.end_s) if is_pushed else line.age_s or 0.0
        self.log.publish_line(asdict(line), self.state())
        self._metrics.record_line(line)

    def _end(self, failure: str | None):
        self._end_reason = failure or self._end_reason or "finished"
        self.ended_at_s = time.monotonic()
        self._has_room.set()
        self.log.end(self._end_reason)
        self._metrics.closed.labels("failed" if failure else "ended").inc()
        log.info("session ended", extra={"session": self.id, "reason": self._end_reason, "num_lines": self.log.last_id})
