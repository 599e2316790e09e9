"""Decides which requests run in the next round, and how many tokens of each.

Every stream has a queue, and at most one of its requests runs: waiting -> prefilling -> decoding -> done. Prefill is
bounded by a number of tokens a round and served in order of arrival, so that a decoding stream never waits for more
than one bounded prefill. A request whose prefill did not fit lets the others go first in the next round.

The scheduler works with plain integers and holds no tensor. It may be called from any thread.
"""

import threading
from collections.abc import Iterable
from typing import NamedTuple

from streamingvlm.inference.requests import Request
from streamingvlm.inference.stream import Stream


class ScheduledPrefill(NamedTuple):
    """A request, and the number of its pending tokens that are prefilled in this round."""

    request: Request
    num_tokens: int


class SchedulerOutput(NamedTuple):
    """One round: what is prefilled, and which requests decode one token."""

    prefills: list[ScheduledPrefill]
    decodes: list[Request]


class Scheduler:
    """The requests of an engine.

    max_prefill_tokens: the most tokens that are prefilled in one round.
    changed: notified when there may be something new to do; it is also the lock of all that is here.
    """

    def __init__(self, max_prefill_tokens: int):
        self.max_prefill_tokens = max_prefill_tokens
        self.changed = threading.Condition()
        self._waiting: list[Request] = []  # in order of arrival
        self._prefilling: list[Request] = []
        self._decoding: list[Request] = []

    @property
    def requests(self) -> list[Request]:
        """All requests: decoding, prefilling and waiting ones."""
        with self.changed:
            return self._decoding + self._prefilling + self._waiting

    @property
    def num_waiting(self) -> int:
        """Requests that have not begun."""
        with self.changed:
            return len(self._waiting)

    @property
    def has_running(self) -> bool:
        """Whether a request is prefilling or decoding."""
        with self.changed:
            return bool(self._decoding or self._prefilling)

    def of_stream(self, stream: Stream) -> list[Request]:
        """Return the requests of one stream."""
        return [request for request in self.requests if request.stream is stream]

    def notify(self):
        """Wake the threads that wait for ``changed``."""
        with self.changed:
            self.changed.notify_all()

    def add(self, request: Request):
        """Queue a request behind those of its stream."""
        with self.changed:
            self._waiting.append(request)
            self.changed.notify_all()

    def next_requests(self) -> tuple[list[Request], list[Request]]:
        """Return the next request of each stream in order of arrival: due ones, and upcoming ones of busy streams."""
        seen, due, upcoming = set(), [], []
        with self.changed:
            busy = {request.stream for request in self._decoding + self._prefilling}
            for request in self._waiting:
                if request.stream not in seen:
                    seen.add(request.stream)
                    (upcoming if request.stream in busy else due).append(request)
        return due, upcoming

    def start(self, request: Request) -> bool:
        """Move a due request to the prefilling ones; return False if it was cancelled meanwhile."""
        with self.changed:
            self._waiting.remove(request)
            if not request.future.set_running_or_notify_cancel():
                return False
            self._prefilling.append(request)
            return True

    def schedule(self) -> SchedulerOutput:
        """Return the next round."""
        prefills, room = [], self.max_prefill_tokens
        with self.changed:
            for request in self._prefilling:
                if room > 0:
                    num_tokens = min(room, request.sequence.num_pending)
                    prefills.append(ScheduledPrefill(request, num_tokens))
                    room -= num_tokens
            return SchedulerOutput(prefills, list(self._decoding))

    def start_decoding(self, request: Request):
        """Move a request whose prefill is complete to the decoding ones."""
        with self.changed:
            self._prefilling.remove(request)
            self._decoding.append(request)

    def defer_first_prefill(self):
        """Let the first prefilling request go last: it needs more than one round, and the others are next."""
        with self.changed:
            self._prefilling.append(self._prefilling.pop(0))

    def remove(self, requests: Iterable[Request]):
        """Forget requests, wherever they are."""
        gone = set(requests)
        with self.changed:
            for queue in (self._waiting, self._prefilling, self._decoding):
                queue[:] = [request for request in queue if request not in gone]
