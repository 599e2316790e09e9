"""CUDA streams, events and graphs without a device: they check order instead of running anything.

Each stream counts its operators. A stream has *seen* another up to the operator that the last event it waited for
followed. Reading a tensor that another stream wrote later than that is a race on a real device.
"""

import threading
from contextlib import contextmanager
from itertools import count

from torch.multiprocessing.reductions import StorageWeakRef


class RehearsalError(AssertionError):
    """The code does what a CUDA device would refuse, or would compute wrongly."""


class FakeStream:
    """Stands for torch.cuda.Stream."""

    _numbers = count()

    def __init__(self, device=None):
        self.number = next(self._numbers)
        self.num_done = self.num_awaited = 0  # operators launched, and those that the host has waited for
        self.seen: dict[FakeStream, int] = {}

    def wait_event(self, event: "FakeEvent"):
        """Let later operators see what the event's stream had done."""
        for stream, num_done in event.seen.items():
            self.seen[stream] = max(self.seen.get(stream, 0), num_done)

    def wait_stream(self, other: "FakeStream"):
        """Let later operators see what the other stream has done."""
        self.wait_event(other.record_event())

    def record_event(self) -> "FakeEvent":
        """Return an event that stands after all operators so far."""
        return FakeEvent({**self.seen, self: self.num_done})

    def has_seen(self, stream: "FakeStream", num_done: int) -> bool:
        """Return True if the other stream's operator is ordered before this stream's next one."""
        return stream is self or max(stream.num_awaited, self.seen.get(stream, 0)) >= num_done


class FakeEvent:
    """Stands for torch.cuda.Event: what each stream had done when it was recorded."""

    def __init__(self, seen: dict[FakeStream, int]):
        self.seen = seen


class FakeGraph:
    """Stands for torch.cuda.CUDAGraph: remembers the tensors from outside that the captured operators use."""

    def __init__(self):
        self.num_operators = 0
        self._own: list[StorageWeakRef] = []
        self._outside: dict[int, StorageWeakRef] = {}
        self._own_addresses: set[int] = set()

    def add_operator(self, read, written):
        """Record one captured operator: the storages that it reads and writes."""
        self.num_operators += 1
        for storage in read:
            # Without a writer, it is a scalar that torch made inside of an operator.
            if storage._cdata not in self._own_addresses and hasattr(storage, "written"):
                self._outside.setdefault(storage._cdata, StorageWeakRef(storage))
        for storage in written:
            if storage._cdata not in self._outside and storage._cdata not in self._own_addresses:
                self._own_addresses.add(storage._cdata)
                self._own.append(StorageWeakRef(storage))  # keeps the address from being used again

    def check_replay(self):
        """Raise RehearsalError if a tensor that the graph reads was freed, or was never captured."""
        if not self.num_operators:
            raise RehearsalError("a graph is replayed that captured no operator")
        if any(reference.expired() for reference in self._outside.values()):
            raise RehearsalError("a graph is replayed after a tensor that it uses was freed")


class FakeStreams:
    """The current stream and the graph under capture, of each thread."""

    def __init__(self):
        self.default = FakeStream()
        self._local = threading.local()

    def current(self, device=None) -> FakeStream:
        """Stands for torch.cuda.current_stream."""
        return getattr(self._local, "stream", self.default)

    @property
    def graph(self) -> FakeGraph | None:
        """The graph that this thread captures."""
        return getattr(self._local, "graph", None)

    @contextmanager
    def stream(self, stream: FakeStream | None):
        """Stands for torch.cuda.stream."""
        before = self.current()
        self._local.stream = stream or before
        try:
            yield
        finally:
            self._local.stream = before

    @contextmanager
    def capture(self, graph: FakeGraph, pool=None, capture_error_mode: str = "global"):
        """Stands for torch.cuda.graph."""
        side = FakeStream()
        side.wait_stream(self.current())
        self._local.graph = graph
        try:
            with self.stream(side):
                yield
        finally:
            self._local.graph = None
            self.current().wait_stream(side)
