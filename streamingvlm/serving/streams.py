"""The model's side of the server: many streams, one engine, one forward pass for all that is due.

All that the rest of the server knows of inference is here: open a stream, hand it seconds and questions, get futures.
"""

from collections.abc import Callable, Mapping
from concurrent.futures import CancelledError, Future
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from streamingvlm.errors import ClosedError
from streamingvlm.inference.commentary import Commentary
from streamingvlm.inference.engine import Engine
from streamingvlm.inference.session import StreamingSession
from streamingvlm.inference.snapshot import SaveJob, SnapshotKeeper
from streamingvlm.model.loading import StreamingModel
from streamingvlm.serving.cache_picture import Run, cache_picture
from streamingvlm.video.video_turn import VideoTurn

Result = TypeVar("Result")


class Streams:
    """Streams of one engine, whose worker runs the model; they are opened and used from any thread.

    settings: ``cache``, ``video`` and ``sampling`` of every stream, where it does not ask for others.
    num_streams: the most at once; memory_bytes: for the caches of all of them, None for as much as they need. It is
    allocated here. Raises EngineFull where it is too little for one stream.
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
        """Whether the model is run for whatever is handed over."""
        return self._engine.is_running

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

        Raises ConfigError for settings that cannot be, EngineFull where no room is left.
        """
        given = {"cache": cache, "video": video, "sampling": sampling}
        merged = {name: {**self.settings.get(name, {}), **(asked or {})} for name, asked in given.items()}
        return Stream(self._engine.open(**merged, query=query, previous_text=previous_text, on_token=on_token))

    def take_up(self, snapshot: Path, *, on_token: Callable[[str], None] | None = None) -> "Stream":
        """Go on with the stream of a snapshot.

        Raises SnapshotError for one that is of another model, or damaged, EngineFull where no room is left.
        """
        return Stream(StreamingSession.load(snapshot, model=self.model, on_token=on_token, engine=self._engine))

    def close(self):
        """End the model's thread; what waits for it ends with ClosedError."""
        self._engine.close()


@dataclass(frozen=True)
class StreamState:
    """How a stream stands after a turn, taken between two jobs of the engine for it.

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
    """One stream of the server's model. What is handed over is done in its order; each future may be cancelled.

    The futures of a stream that is closed meanwhile end with ClosedError.
    """

    def __init__(self, session: StreamingSession):
        self.session = session
        self.state = StreamState.of(session)

    def submit(
        self, second: VideoTurn, *, question: str = "", max_new_tokens: int | None = None
    ) -> "Future[Commentary]":
        """Take in a second and speak; ``state`` then tells how the stream stands."""
        return _after(self.session.submit(second, question=question, max_new_tokens=max_new_tokens), self._take_state)

    def listen(self, second: VideoTurn) -> "Future[Commentary]":
        """Take in a second and say nothing."""
        return _after(self.session.submit_heard(second, ""), self._take_state)

    def ask(self, question: str, *, max_new_tokens: int | None = None) -> "Future[str]":
        """Answer a question beside the stream, which goes on as if nobody had asked."""
        return _after(self.session.submit_question(question, max_new_tokens=max_new_tokens))

    def instruct(self, instruction: str):
        """Change the standing instruction, from the next second on."""
        self.session.query = instruction

    def save(self, keeper: SnapshotKeeper):
        """Write the stream as it stands between two turns, from any thread. Raises SnapshotError."""
        self.session.engine.do(SaveJob(self.session, keeper))

    def close(self):
        """Let go of its memory, once the engine is between two steps; nothing more is taken."""
        self.session.close()

    def _take_state(self):
        self.state = StreamState.of(self.session)


def _after(done: "Future[Result]", call: Callable[[], None] = lambda: None) -> "Future[Result]":
    """The result of an engine's job, told when ``call`` has been called: in the engine's thread, the stream at rest."""
    told: Future[Result] = Future()

    def tell(_):
        if not told.set_running_or_notify_cancel():
            return
        try:
            result = done.result()
            call()
        except CancelledError:  # to whoever awaits the future this would look like a cancellation of their own
            told.set_exception(ClosedError("the session has ended; open another"))
        except BaseException as error:  # noqa: BLE001 - it belongs to whoever waits for the future
            told.set_exception(error)
        else:
            told.set_result(result)

    told.add_done_callback(lambda _: told.cancelled() and done.cancel())
    done.add_done_callback(tell)
    return told
