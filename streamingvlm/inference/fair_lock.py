"""A lock for a stream that never rests: whoever waits is let in, in the order of coming.

An ordinary lock that a loop takes again as soon as it has let go starves all other threads.
"""

import threading
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from streamingvlm.errors import StreamingVLMError


@dataclass(eq=False)
class _Ticket:
    thread: int


class FairLock:
    """Lets one thread in at a time, first come, first served; the one that is inside cannot enter again."""

    def __init__(self):
        self._moved = threading.Condition()
        self._tickets: deque[_Ticket] = deque()  # the first is inside

    @contextmanager
    def turn(self) -> Iterator[None]:
        """Wait for the others, and hold them off for the length of the block.

        Raises StreamingVLMError where this thread is inside already: it would wait for itself.
        """
        ticket = _Ticket(threading.get_ident())
        try:
            with self._moved:
                self._check_outside(ticket.thread)
                self._tickets.append(ticket)
                self._moved.wait_for(lambda: self._tickets[0] is ticket)
            yield
        finally:
            with self._moved:
                if ticket in self._tickets:
                    self._tickets.remove(ticket)
                    self._moved.notify_all()

    def _check_outside(self, thread: int):
        if self._tickets and self._tickets[0].thread == thread:
            raise StreamingVLMError(
                "the session is in the middle of a turn of this thread (in on_token?); wait for its end, or call it "
                "from another thread"
            )
