"""A stream handed over one turn ahead, so that the next second is seen while this one is spoken."""

import threading
from collections.abc import Iterator
from queue import SimpleQueue
from typing import TYPE_CHECKING

from streamingvlm.inference.job import Job
from streamingvlm.video.clock import VideoTurn

if TYPE_CHECKING:
    from streamingvlm.inference.commentary import Commentary
    from streamingvlm.inference.session import StreamingSession

# The turn that is spoken, and the one that is seen meanwhile.
_TURNS_IN_ENGINE = 2


def follow_ahead(session: "StreamingSession", seconds: Iterator[VideoTurn]) -> Iterator["Commentary"]:
    """Yield what is said of each second; they are taken in a thread of their own, at most one ahead.

    An error of the source is raised when what came before it has been said.
    """
    source = _HandingOver(session, seconds)
    threading.Thread(target=source.run, name="hand over", daemon=True).start()
    try:
        while (job := source.jobs.get()) is not None:
            if isinstance(job, Exception):
                raise job
            yield session.engine.wait_for(job)
            source.room.release()
    finally:  # whoever stopped listening wants no further turn taken in
        source.stop()
        session.engine.withdraw(session)


class _HandingOver:
    """Takes seconds from a source and hands them to the engine, as far as there is room."""

    def __init__(self, session: "StreamingSession", seconds: Iterator[VideoTurn]):
        self.session = session
        self.seconds = seconds
        self.jobs: SimpleQueue[Job | Exception | None] = SimpleQueue()
        self.room = threading.Semaphore(_TURNS_IN_ENGINE)
        self._lock = threading.Lock()
        self._is_over = False

    def run(self):
        """Hand over all, and None or the source's error last."""
        try:
            while self._hand_over_one():
                pass
        except Exception as error:  # noqa: BLE001 - raised where the stream is listened to
            self.jobs.put(error)
        else:
            self.jobs.put(None)

    def stop(self):
        """Hand over no more."""
        with self._lock:
            self._is_over = True
        self.room.release()

    def _hand_over_one(self) -> bool:
        self.room.acquire()
        if self._is_over:
            return False
        with self.session.stats.stage("video"):
            second = next(self.seconds, None)
        with self._lock:
            if second is None or self._is_over:
                return False
            job = self.session.spoken_turn(second)
            self.session.engine.submit(job)
        self.jobs.put(job)
        return True
