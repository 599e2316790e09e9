"""A lock that lets threads in by order of arrival.

With an ordinary lock, a loop that takes it again as soon as it releases it starves all other threads.
"""

import threading
from collections import deque


class FairLock:
    """A re-entrant lock, first come, first served."""

    def __init__(self):
        self._changed = threading.Condition()
        self._threads: deque[int] = deque()  # the first one holds the lock
        self._depth = 0

    def __enter__(self) -> "FairLock":
        thread = threading.get_ident()
        with self._changed:
            if thread not in self._threads:
                self._wait_for_turn(thread)
            self._depth += 1
        return self

    def __exit__(self, *_exception):
        with self._changed:
            self._depth -= 1
            if not self._depth:
                self._threads.popleft()
                self._changed.notify_all()

    def _wait_for_turn(self, thread: int):
        self._threads.append(thread)
        try:
            self._changed.wait_for(lambda: self._threads[0] == thread)
        except BaseException:  # Ctrl-C: a thread that gives up must not block those behind it
            self._threads.remove(thread)
            self._changed.notify_all()
            raise
