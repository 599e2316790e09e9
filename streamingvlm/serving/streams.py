"""The model's side of the server: many streams, one model, one thread that runs it.

All that the rest of the server knows of inference is here: open a stream, hand it seconds and questions, get futures.
"""

import threading
from collections import deque
from collections.abc import Callable, Mapping
from concurrent.futures import Future
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from streamingvlm.errors import StreamingVLMError
from streamingvlm.inference.session import Commentary, StreamingSession
from streamingvlm.inference.snapshot import SaveJob, SnapshotKeeper
from streamingvlm.model.loading import StreamingModel
from streamingvlm.serving.cache_picture import Run, cache_picture
from streamingvlm.video.clock import Second

Result = TypeVar("Result")


class UnsupportedError(StreamingVLMError):
    """The installed library cannot do what was asked for."""


class ClosedError(StreamingVLMError):
    """The stream was closed before its turn came."""


class Streams:
    """Runs the work of all its streams in one thread, a piece of each in turn, so that no stream waits for another's
    backlog.

    settings: ``cache``, ``video`` and ``sampling`` of every stream, where it does not ask for others.
    """

    def __init__(self, model: StreamingModel, settings: Mapping[str, Mapping[str, Any]]):
        self.model = model
        self.settings = settings
        self._due: deque[Stream] = deque()  # streams with work, each once
        self._changed = threading.Condition()
        self._is_closed = False
        self._thread = threading.Thread(target=self._work, name="model", daemon=True)
        self._thread.start()

    @property
    def is_running(self) -> bool:
        """Whether the thread that runs the model is alive."""
        return self._thread.is_alive()

    def open(
        self,
        *,
        cache: Mapping[str, Any] | None = None,
        video: Mapping[str, Any] | None = None,
        sampling: Mapping[str, Any] | None = None,
        query: str = "",
        previous_text: str = "",
        on_token: Callable[[str], None] | None = None,
    ) -> "Stream":
        """Open a stream; what is not given is as in ``settings``. ``on_token`` is called in the model's thread.

        Raises ConfigError for settings that cannot be.
        """
        given = {"cache": cache, "video": video, "sampling": sampling}
        merged = {name: {**self.settings.get(name, {}), **(asked or {})} for name, asked in given.items()}
        session = StreamingSession(self.model, **merged, query=query, previous_text=previous_text, on_token=on_token)
        return Stream(self, session)

    def take_up(self, snapshot: Path, *, on_token: Callable[[str], None] | None = None) -> "Stream":
        """Go on with the stream of a snapshot. Raises SnapshotError for one that is of another model, or damaged."""
        return Stream(self, StreamingSession.load(snapshot, model=self.model, on_token=on_token))

    def close(self):
        """End the thread once the piece of work that it is at is done; what waits is cancelled."""
        with self._changed:
            self._is_closed = True
            waiting, self._due = list(self._due), deque()
            self._changed.notify()
        for stream in waiting:
            stream.close()
        self._thread.join()

    def run(self, stream: "Stream", work: Callable[[], Result]) -> "Future[Result]":
        """Have a piece of a stream's work done in its turn."""
        future: Future[Result] = Future()
        with self._changed:
            if self._is_closed or stream.is_closed:
                future.set_exception(ClosedError("the session has ended; open another"))
                return future
            if not stream.waiting:
                self._due.append(stream)
            stream.waiting.append((future, work))
            self._changed.notify()
        return future

    def forget(self, stream: "Stream"):
        """Cancel what waits of a stream."""
        with self._changed:
            stream.is_closed = True
            waiting = list(stream.waiting)
            stream.waiting.clear()
            if stream in self._due:
                self._due.remove(stream)
        for future, _ in waiting:
            future.cancel()

    def _work(self):
        while (piece := self._next_piece()) is not None:
            future, work = piece
            if not future.set_running_or_notify_cancel():
                continue
            try:
                future.set_result(work())
            except BaseException as error:  # noqa: BLE001 - it belongs to whoever waits for the future
                future.set_exception(error)

    def _next_piece(self) -> tuple[Future, Callable] | None:
        with self._changed:
            while not self._due and not self._is_closed:
                self._changed.wait()
            if self._is_closed:
                return None
            stream = self._due.popleft()
            piece = stream.waiting.popleft()
            if stream.waiting:
                self._due.append(stream)
            return piece


@dataclass(frozen=True)
class StreamState:
    """How a stream stands after a turn, taken between two pieces of its work.

    capacity_tokens: None where the cache has no bound; runs: what the cache holds, in order.
    """

    num_turns: int
    num_tokens: int
    realtime_factor: float
    dropped_s: float
    cache_tokens: int
    capacity_tokens: int | None
    runs: tuple[Run, ...]

    @classmethod
    def of(cls, session: StreamingSession) -> "StreamState":
        """Take it of a session that is at rest."""
        stats = session.stats
        return cls(
            num_turns=stats.num_turns,
            num_tokens=stats.num_tokens,
            realtime_factor=stats.realtime_factor,
            dropped_s=stats.dropped_s,
            cache_tokens=stats.cache_tokens,
            capacity_tokens=stats.capacity_tokens,
            runs=tuple(cache_picture(session.layout, session.cache_config)),
        )


class Stream:
    """One stream of the server's model; its session is touched in the model's thread alone while work is under way."""

    def __init__(self, streams: Streams, session: StreamingSession):
        self.session = session
        self.waiting: deque[tuple[Future, Callable]] = deque()
        self.is_closed = False
        self._streams = streams
        self.state = StreamState.of(session)

    def submit(self, second: Second, *, question: str = "", max_new_tokens: int | None = None) -> "Future[Commentary]":
        """Take in a second and speak; ``state`` then tells how the stream stands."""

        def step() -> Commentary:
            line = self.session.step(second, question=question, max_new_tokens=max_new_tokens)
            self.state = StreamState.of(self.session)
            return line

        return self._run(step)

    def listen(self, second: Second) -> "Future[Commentary]":
        """Take in a second and say nothing."""
        return self._run(lambda: self.session.hear(second, ""))

    def ask(self, question: str, *, max_new_tokens: int | None = None) -> "Future[str]":
        """Answer a question beside the stream, which goes on as if nobody had asked."""
        return self._run(lambda: self._method("ask", "answer questions")(question, max_new_tokens=max_new_tokens))

    def instruct(self, instruction: str) -> "Future[None]":
        """Change the standing instruction."""
        return self._run(lambda: self._method("instruct", "change its instruction")(instruction))

    def save(self, keeper: SnapshotKeeper):
        """Write the stream as it stands between two turns, from any thread. Raises SnapshotError."""
        self.session.engine.do(SaveJob(self.session, keeper))

    def close(self):
        """Cancel what waits; nothing more is taken."""
        self._streams.forget(self)

    def _run(self, work: Callable[[], Result]) -> "Future[Result]":
        return self._streams.run(self, work)

    def _method(self, name: str, purpose: str) -> Callable:
        if not hasattr(self.session, name):
            raise UnsupportedError(f"a session of this version cannot {purpose}; install a newer streamingvlm")
        return getattr(self.session, name)
