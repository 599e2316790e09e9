"""The sessions of the server: who is watched, what was said, and when it ends."""

import asyncio
import logging
import secrets
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, replace
from typing import TYPE_CHECKING, Any, Protocol

import torch

from streamingvlm.errors import ClosedError, StreamingVLMError
from streamingvlm.inference.commentary import Commentary
from streamingvlm.serving.commentary import CommentaryLog
from streamingvlm.serving.pictures import decode_jpeg, encode_jpeg
from streamingvlm.serving.pushed import PushedSeconds
from streamingvlm.serving.rates import Bucket
from streamingvlm.serving.refusals import Refusal
from streamingvlm.serving.streams import Stream
from streamingvlm.video.video_turn import VideoTurn

if TYPE_CHECKING:
    from streamingvlm.serving.hub import Hub

log = logging.getLogger(__name__)

_ID_BYTES = 16


class Source(Protocol):
    """Where seconds come from; ``close`` ends the iteration, from any thread."""

    def __iter__(self) -> Iterator[VideoTurn]: ...

    def close(self) -> None: ...


@dataclass(frozen=True)
class About:
    """What a session was opened with, to be shown."""

    source: str
    query: str
    lag: str
    fps: float
    turn_s: float


def new_id() -> str:
    """An id that nobody guesses."""
    return f"ses_{secrets.token_urlsafe(_ID_BYTES)}"


class LiveSession:
    """One stream being watched: a source, the model's side, and all that was said.

    A thread of its own takes seconds from the source and hands them to the model, one at a time; all else runs in the
    event loop's thread. owner: whoever's key opened it; hub: what all sessions share.
    """

    def __init__(self, source: Source, about: About, owner: str, hub: "Hub", session_id: str | None = None):
        limits = hub.config.limits
        self.id = session_id or new_id()
        self.owner = owner
        self.about = about
        self.log = CommentaryLog(limits.backlog_lines)
        self.created_at = time.time()
        self.ended_s: float | None = None  # by time.monotonic()
        self.fed_s = self.opened_s = time.monotonic()
        self.num_questions = 0
        self.newest_frame: torch.Tensor | None = None
        self.lag_s = self.seen_s = 0.0
        self._source, self._limits, self._metrics = source, limits, hub.metrics
        self._decoders, self._openers = hub.decoders, hub.openers
        self._pushing, self._room = asyncio.Lock(), asyncio.Event()
        self._first_frame_s: float | None = None
        self._frame_rate = Bucket(limits.max_frames_per_s, max(1.0, limits.max_frames_per_s))
        self._reason: str | None = None  # why it ends, as soon as that is known
        self._loop = asyncio.get_running_loop()
        self._said = ""
        self._thread = threading.Thread(target=self._watch, name=f"watch {self.id[:8]}", daemon=True)

    def start(self, stream: Stream):
        """Begin to watch. The stream is opened with ``hear_words``, so it comes to be after the session."""
        self._stream = stream
        self._thread.start()

    @property
    def is_live(self) -> bool:
        """Whether anything may still be said."""
        return not self.log.has_ended

    @property
    def is_pushed(self) -> bool:
        """Whether its frames are sent by clients."""
        return isinstance(self._source, PushedSeconds)

    def check_takes_frames(self):
        """Raise Refusal where no frame can be pushed."""
        if not self.is_pushed:
            raise Refusal(409, f"this session watches {self.about.source}; open one with source push to send frames")
        self._check_live()

    async def push_jpeg(self, data: bytes, time_s: float | None, *, may_wait: bool) -> bool:
        """Take a picture as ``push`` does. Raises VideoError where it is none, too."""
        most = self._limits.max_frame_pixels
        return await self.push(lambda: decode_jpeg(data, max_pixels=most), time_s, may_wait=may_wait)

    async def push(self, decode: Callable[[], torch.Tensor], time_s: float | None, *, may_wait: bool) -> bool:
        """Take a frame, decoded only where there is use for it; return whether there was.

        time_s: its stream time; None for now, the first frame being at 0. may_wait: under the policy ``wait``, take it
        once there is room; else Refusal is raised where there is none.
        """
        self.check_takes_frames()
        self.fed_s = time.monotonic()
        async with self._pushing:
            if self.about.lag == "wait":
                await self._wait_for_room(may_wait)
            elif self._frame_rate.take():
                return self._pushed("over the rate")
            at_s = self._clock_s() if time_s is None else time_s
            if not self._source.wants(at_s):
                return self._pushed("late")
            frame = await self._loop.run_in_executor(self._decoders, decode)
            return self._pushed("taken" if self._source.push(frame, at_s) else "late")

    async def _wait_for_room(self, may_wait: bool):
        while self.is_live and not self._source.has_room:
            if not may_wait:
                raise Refusal(503, "the model has not caught up; send the frame again", retry_after_s=1)
            self._room.clear()
            await self._room.wait()

    def _pushed(self, how: str) -> bool:
        self._metrics.frames.labels(how).inc()
        return how == "taken"

    def _clock_s(self) -> float:
        now_s = time.monotonic()
        self._first_frame_s = self._first_frame_s or now_s
        return now_s - self._first_frame_s

    async def ask(self, question: str, max_new_tokens: int | None) -> str:
        """Answer beside the stream."""
        self._check_live()
        if self.num_questions >= self._limits.max_questions:
            raise Refusal(429, f"{self.num_questions} questions wait already; ask again later", retry_after_s=1)
        self.num_questions += 1
        try:
            most = min(max_new_tokens or self._limits.max_answer_tokens, self._limits.max_answer_tokens)
            answer = await asyncio.wrap_future(self._stream.ask(question, max_new_tokens=most))
            self._metrics.questions.inc()
            return answer
        finally:
            self.num_questions -= 1

    async def instruct(self, query: str):
        """Change the standing instruction."""
        self._check_live()
        self._stream.instruct(query)
        self.about = replace(self.about, query=query)

    def finish(self, reason: str = "finished"):
        """Nothing more is fed; what came is still spoken of. Who says so first gives the reason."""
        if self._reason is not None:
            return
        self._reason = reason
        if self.is_pushed:
            self._source.finish()
        else:
            self._close_source()

    async def close(self, reason: str):
        """End at once; its memory is free when this returns."""
        if self.is_live:
            self._reason = reason
        self._close_source()
        await asyncio.to_thread(self._stream.close)  # the engine is in the middle of a step, as a rule

    def hear_words(self, piece: str):
        """Called in the model's thread with each new piece of what is being said."""
        if self.log.num_listeners:
            self._loop.call_soon_threadsafe(self._utter, piece)

    def jpeg(self) -> bytes | None:
        """The newest frame that the model was shown."""
        return None if self.newest_frame is None else encode_jpeg(self.newest_frame)

    def state(self) -> dict[str, Any]:
        """How the stream stands: its pace, and its cache drawn in runs of tokens."""
        state = self._stream.state
        return {
            "num_turns": state.num_turns,
            "num_tokens": state.num_tokens,
            "lag_s": round(self.lag_s, 3),
            "dropped_s": round(state.dropped_s, 3),
            "realtime_factor": round(state.realtime_factor, 2),
            "cache": {
                "num_tokens": state.cache_tokens,
                "capacity_tokens": state.capacity_tokens,
                "runs": [run.as_json() for run in state.runs],
            },
        }

    def as_json(self) -> dict[str, Any]:
        """The session as clients see it."""
        return {
            "id": self.id,
            "object": "session",
            "created": int(self.created_at),
            "status": "live" if self.is_live else "ended",
            "reason": None if self.is_live else self._reason,
            **asdict(self.about),
            "num_lines": self.log.last_id,
            "num_listeners": self.log.num_listeners,
            "state": self.state(),
        }

    def _check_live(self):
        if not self.is_live:
            raise Refusal(409, f"the session has ended ({self._reason}); open another")

    def _close_source(self):
        if self.is_pushed:
            self._source.close()
            return
        # It may be in the middle of a read, which is not waited for here.
        self._loop.run_in_executor(self._openers, self._source.close)

    def _watch(self):
        reason = None
        try:
            for second in self._source:
                line = self._stream.submit(second).result()
                self._keep(line)
                self._on_loop(self._tell, second, line)
        except ClosedError:
            pass  # whoever closed the stream has said why
        except StreamingVLMError as error:
            reason = str(error)
        except Exception:
            log.exception("a session failed", extra={"session": self.id})
            reason = "the server failed; its log tells more"
        finally:
            self._source.close()
            self._stream.close()
            self._on_loop(self._end, reason)

    def _keep(self, line: Commentary):
        """Called in the session's thread before anybody is told a line; nothing here outlives the process."""

    def _on_loop(self, call, *args):
        if not self._loop.is_closed():
            self._loop.call_soon_threadsafe(call, *args)

    def _tell(self, second: VideoTurn, line: Commentary):
        self.newest_frame, self._said = second.frames[-1], ""
        self._room.set()
        self.seen_s = second.end_s
        is_pushed = isinstance(self._source, PushedSeconds)
        self.lag_s = max(0.0, self._source.pushed_s - second.end_s) if is_pushed else line.age_s or 0.0
        self.log.say(asdict(line), self.state())
        self._metrics.line_said(line)

    def _utter(self, piece: str):
        self._said += piece
        self.log.utter({"text": self._said.strip()})

    def _end(self, reason: str | None):
        self._reason = reason or self._reason or "finished"
        self.ended_s = time.monotonic()
        self._room.set()
        self.log.end(self._reason)
        self._metrics.closed.labels("failed" if reason else "ended").inc()
        log.info("session ended", extra={"session": self.id, "reason": self._reason, "num_lines": self.log.last_id})
