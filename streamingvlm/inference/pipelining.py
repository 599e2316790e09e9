"""Submitting a stream one turn ahead, so that the next turn is encoded while this one is decoded."""

import threading
from collections.abc import Callable, Iterator
from queue import SimpleQueue
from typing import Generic, TypeVar

from streamingvlm.inference.commentary import Commentary
from streamingvlm.inference.engine import Engine
from streamingvlm.inference.requests import TurnRequest
from streamingvlm.inference.stream import Stream

TurnT = TypeVar("TurnT")

# The turn that is decoded, and the one that is encoded meanwhile.
_TURNS_IN_ENGINE = 2


def pipelined(
    turns: Iterator[TurnT], engine: Engine, stream: Stream, request_for: Callable[[TurnT], TurnRequest]
) -> Iterator[Commentary]:
    """Yield the line of each turn; turns are read in another thread, at most one ahead.

    request_for: makes the request of a turn. An error of the source is raised after the lines of the turns before it.
    """
    feeder = _Feeder(turns, engine, stream, request_for)
    threading.Thread(target=feeder.run, name="turn feeder", daemon=True).start()
    try:
        while (request := feeder.requests.get()) is not None:
            if isinstance(request, Exception):
                raise request
            yield engine.wait(request)
            feeder.room.release()
    finally:  # the consumer has stopped: submit nothing more
        feeder.stop()
        engine.abort(stream)


class _Feeder(Generic[TurnT]):
    """Reads turns from a source and submits them, as far as there is room."""

    def __init__(
        self,
        turns: Iterator[TurnT],
        engine: Engine,
        stream: Stream,
        request_for: Callable[[TurnT], TurnRequest],
    ):
        self.turns, self.engine, self.stream, self.request_for = turns, engine, stream, request_for
        self.requests: SimpleQueue[TurnRequest | Exception | None] = SimpleQueue()
        self.room = threading.Semaphore(_TURNS_IN_ENGINE)
        self._lock = threading.Lock()
        self._is_stopped = False

    def run(self):
        """Submit all turns; put None, or the source's error, last into ``requests``."""
        try:
            while self._submit_next():
                pass
        except Exception as error:  # noqa: BLE001 - raised by the generator
            self.requests.put(error)
        else:
            self.requests.put(None)

    def stop(self):
        """Submit nothing more."""
        with self._lock:
            self._is_stopped = True
        self.room.release()

    def _submit_next(self) -> bool:
        self.room.acquire()
        with self._lock:
            if self._is_stopped:
                return False
        with self.stream.stats.stage("video"):
            turn = next(self.turns, None)
        with self._lock:
            if turn is None or self._is_stopped:
                return False
            request = self.request_for(turn)
            self.engine.submit(request)
        self.requests.put(request)
        return True
