"""The server's streams: all in one engine, which batches their work into shared forward passes.

The server runs inference through this module: open a stream, submit turns and questions, get futures.
"""

from collections.abc import Callable, Mapping
from concurrent.futures import CancelledError, Future
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from streamingvlm.cache.cache_bar import CacheSpan
from streamingvlm.errors import ClosedError
from streamingvlm.inference.commentary import Commentary
from streamingvlm.inference.engine import Engine
from streamingvlm.inference.session import StreamingSession
from streamingvlm.inference.sizing import stream_tokens
from streamingvlm.inference.snapshot import SnapshotWriter
from streamingvlm.inference.stream import Stream
from streamingvlm.model.loading import StreamingModel
from streamingvlm.video.video_turn import VideoTurn

Result = TypeVar("Result")


class StreamPool:
    """Streams of one engine, which runs the model in a thread of its own; opened and used from any thread.

    settings: default ``cache``, ``video`` and ``sampling`` settings of every stream.
    num_streams: maximum number of concurrent streams; memory_bytes: memory for all their caches, allocated here (None:
    as much as they need). Raises EngineFull if it does not fit one stream.
    """

    def __init__(
        self,
        model: StreamingModel,
        settings: Mapping[str, Mapping[str, Any]],
        *,
        num_streams: int = 16,
        memory_bytes: int | None = None,
    ):
        self.model = model
        self.settings = settings
        cache_dtype = settings.get("cache", {}).get("dtype")
        self._engine = Engine(model, num_slots=num_streams, memory_bytes=memory_bytes, cache_dtype=cache_dtype)
        self.open().close()
        self._engine.start()

    @property
    def is_running(self) -> bool:
        """Return True while the engine's thread runs."""
        return self._engine.is_running

    def count_tokens(self, text: str) -> int:
        """Return the number of tokens of a text."""
        return len(self.model.tokenizer.encode(text, add_special_tokens=False))

    def open(
        self,
        *,
        cache: Mapping[str, Any] | None = None,
        video: Mapping[str, Any] | None = None,
        sampling: Mapping[str, Any] | None = None,
        query: str = "",
        previous_text: str = "",
        on_token: Callable[[str], None] | None = None,
    ) -> "StreamHandle":
        """Open a stream; the arguments override ``settings``. ``on_token`` is called in the engine's thread.

        Raises ConfigError for invalid settings, EngineFull if there is no room.
        """
        overrides = {"cache": cache, "video": video, "sampling": sampling}
        merged = {name: {**self.settings.get(name, {}), **(given or {})} for name, given in overrides.items()}
        session = StreamingSession(
            self.model, engine=self._engine, **merged, query=query, previous_text=previous_text, on_token=on_token
        )
        return StreamHandle(session)

    def resume(self, snapshot: Path, *, on_token: Callable[[str], None] | None = None) -> "StreamHandle":
        """Open a stream from a snapshot. Raises SnapshotError if it cannot be used here, EngineFull without room."""
        return StreamHandle(StreamingSession.load(snapshot, model=self.model, on_token=on_token, engine=self._engine))

    def close(self):
        """Stop the engine's thread; pending futures raise ClosedError."""
        self._engine.close()


@dataclass(frozen=True)
class StreamStatus:
    """Status of a stream between two requests.

    capacity_tokens: None if the cache is unbounded; spans: contents of the cache, in order.
    """

    num_turns: int
    num_tokens: int
    realtime_factor: float
    dropped_s: float
    cache_tokens: int
    capacity_tokens: int | None
    spans: tuple[CacheSpan, ...]

    @classmethod
    def of(cls, session: StreamingSession) -> "StreamStatus":
        """Return the status of a session that is not in the middle of a turn."""
        stats = session.stats
        return cls(
            num_turns=stats.num_turns,
            num_tokens=stats.num_tokens,
            realtime_factor=stats.realtime_factor,
            dropped_s=stats.dropped_s,
            cache_tokens=stats.cache_tokens,
            capacity_tokens=stats.capacity_tokens,
            spans=tuple(session.layout.cache_spans()),
        )


class StreamHandle:
    """One stream of the pool. Requests run in the order of their submission; each future may be cancelled.

    Pending futures of a closed stream raise ClosedError. ``status`` is replaced as a whole in the engine's thread, so
    any thread may read it.
    """

    def __init__(self, session: StreamingSession):
        self.session = session
        self.status = StreamStatus.of(session)

    def submit(
        self, turn: VideoTurn, *, question: str = "", max_new_tokens: int | None = None, reply: str | None = None
    ) -> "Future[Commentary]":
        """Process a turn and generate its line, unless ``reply`` is given; ``status`` is updated before it is done."""
        done = self.session.submit(turn, question=question, max_new_tokens=max_new_tokens, reply=reply)
        return _then(done, self._update_status)

    def ask(self, question: str, *, max_new_tokens: int | None = None) -> "Future[str]":
        """Answer a question on a fork of the stream, which itself does not change."""
        return _then(self.session.submit_question(question, max_new_tokens=max_new_tokens))

    @property
    def num_appended(self) -> int:
        """Tokens that the stream has had so far, evicted ones included."""
        return self.session.num_appended_tokens

    def set_query(self, query: str):
        """Change the query from the next turn on. Raises EngineFull if the cache cannot hold it: the old one stays."""
        self.session.run_between_turns(lambda stream: _reserve_(stream, query))
        self.session.query = query

    def save(self, writer: SnapshotWriter):
        """Write a snapshot between two turns, from any thread. Raises SnapshotError."""
        self.session.run_between_turns(writer.save)

    def close(self):
        """Free the stream's memory as soon as the engine is between two steps."""
        self.session.close()

    def _update_status(self):
        self.status = StreamStatus.of(self.session)


def _reserve_(stream: Stream, query: str):
    """Grow the cache of a stream to hold a query. Raises EngineFull."""
    num_tokens = stream_tokens(stream.config, query, stream.previous_text)
    if num_tokens is not None:
        stream.sequence.kv.reserve_(num_tokens, is_bounded=True)


def _then(done: "Future[Result]", callback: Callable[[], None] = lambda: None) -> "Future[Result]":
    """Return a future with the same result, which is done after ``callback`` has run in the engine's thread."""
    chained: Future[Result] = Future()

    def finish(_):
        if not chained.set_running_or_notify_cancel():
            return
        try:
            result = done.result()
            callback()
        except CancelledError:  # to a task that awaits the future, this would look like its own cancellation
            chained.set_exception(ClosedError("the session has ended; open another"))
        except BaseException as error:  # noqa: BLE001 - raised where the future is awaited
            chained.set_exception(error)
        else:
            chained.set_result(result)

    chained.add_done_callback(lambda _: chained.cancelled() and done.cancel())
    done.add_done_callback(finish)
    return chained
