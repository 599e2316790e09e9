"""Decides which requests run in the next round, and how many tokens of each.

A request waits, prefills, then decodes; it may end after any of the three. At most one request of a stream runs at a
time. A round prefills at most max_prefill_tokens in total, in the order of the prefilling queue, and a quarter of that
of one request if others run, so that a long prefill does not hold them up. If none of its prefills completes, the first
request moves to the back of the queue.

The scheduler does no tensor work. It may be called from any thread.
"""

import math
import threading
from collections.abc import Iterable
from typing import NamedTuple

from streamingvlm.inference.requests import Request
from streamingvlm.inference.stream import Stream

_SHARE = 0.25  # of a round's prefill, for one request while others run


class ScheduledPrefill(NamedTuple):
    """A request, and how many of its pending tokens this round prefills."""

    request: Request
    num_tokens: int


class SchedulerOutput(NamedTuple):
    """The plan of one round: prefills, and requests that decode one token."""

    prefills: list[ScheduledPrefill]
    decodes: list[Request]


class Scheduler:
    """The requests of an engine.

    max_prefill_tokens: maximum number of tokens prefilled in one round.
    condition: guards the queues; notified when a request was added, when frames were encoded, and by the engine when a
        thread should look again.
    """

    def __init__(self, max_prefill_tokens: int):
        self.max_prefill_tokens = max_prefill_tokens
        self.condition = threading.Condition()
        self._waiting: list[Request] = []  # in order of arrival
        self._prefilling: list[Request] = []
        self._decoding: list[Request] = []

    @property
    def requests(self) -> list[Request]:
        """All requests: decoding, prefilling and waiting ones."""
        with self.condition:
            return self._decoding + self._prefilling + self._waiting

    @property
    def num_waiting(self) -> int:
        """Number of requests that have not started."""
        with self.condition:
            return len(self._waiting)

    @property
    def has_running(self) -> bool:
        """Whether a request is prefilling or decoding."""
        with self.condition:
            return bool(self._decoding or self._prefilling)

    def of_stream(self, stream: Stream) -> list[Request]:
        """Return the requests of one stream."""
        return [request for request in self.requests if request.stream is stream]

    def notify(self):
        """Wake the threads that wait for ``condition``."""
        with self.condition:
            self.condition.notify_all()

    def add(self, request: Request):
        """Append a request to the waiting ones."""
        with self.condition:
            self._waiting.append(request)
            self.condition.notify_all()

    def next_requests(self) -> tuple[list[Request], list[Request]]:
        """Return (due, upcoming): the first waiting request of each idle stream, and of each busy stream."""
        seen, due, upcoming = set(), [], []
        with self.condition:
            busy = {request.stream for request in self._decoding + self._prefilling}
            for request in self._waiting:
                if request.stream not in seen:
                    seen.add(request.stream)
                    (upcoming if request.stream in busy else due).append(request)
        return due, upcoming

    def admit(self, request: Request) -> bool:
        """Move a due request from waiting to prefilling; if it was cancelled, only remove it and return False."""
        with self.condition:
            self._waiting.remove(request)
            if not request.future.set_running_or_notify_cancel():
                return False
            self._prefilling.append(request)
            return True

    def schedule(self) -> SchedulerOutput:
        """Plan the next round; changes no state."""
        prefills, budget = [], self.max_prefill_tokens
        with self.condition:
            is_alone = len(self._prefilling) + len(self._decoding) == 1
            share = budget if is_alone else math.ceil(budget * _SHARE)
            for request in self._prefilling:
                if budget > 0:
                    num_tokens = min(share, budget, request.sequence.num_pending)
                    prefills.append(ScheduledPrefill(request, num_tokens))
                    budget -= num_tokens
            return SchedulerOutput(prefills, list(self._decoding))

    def start_decoding(self, request: Request):
        """Move a request whose prefill is complete to the decoding ones."""
        with self.condition:
            self._prefilling.remove(request)
            self._decoding.append(request)

    def defer_first_prefill(self):
        """Move the first prefilling request to the back."""
        with self.condition:
            self._prefilling.append(self._prefilling.pop(0))

    def remove(self, requests: Iterable[Request]):
        """Remove requests from all queues."""
        gone = set(requests)
        with self.condition:
            for queue in (self._waiting, self._prefilling, self._decoding):
                queue[:] = [request for request in queue if request not in gone]
