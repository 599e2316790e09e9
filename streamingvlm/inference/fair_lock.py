"""A lock for a loop that never rests: whoever waits is let in, in the order of coming.

An ordinary lock that a loop takes again as soon as it has let go starves all other threads.
"""

import threading
from collections import deque


class FairLock:
    """Lets one thread in at a time, first come, first served; the thread that is inside may enter again."""

    def __init__(self):
        self._moved = threading.Condition()
        self._threads: deque[int] = deque()  # the first is inside
        self._depth = 0

    def __enter__(self) -> "FairLock":
        thread = threading.get_ident()
        with self._moved:
            if thread not in self._threads:
                self._queue_up(thread)
            self._depth += 1
        return self

    def __exit__(self, *_exception):
        with self._moved:
            self._depth -= 1
            if not self._depth:
                self._threads.popleft()
                self._moved.notify_all()

    def _queue_up(self, thread: int):
        self._threads.append(thread)
        try:
            self._moved.wait_for(lambda: self._threads[0] == thread)
        except BaseException:  # Ctrl-C: who waits no longer shall not be waited for
            self._threads.remove(thread)
            self._moved.notify_all()
            raise
