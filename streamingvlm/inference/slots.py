"""The slots of an engine: one for each open stream, with its tokens of the pool, until the stream is removed.

A stream that nothing refers to any more is removed by itself: its session was collected and its requests are done.
"""

import threading
import weakref
from collections import deque

from streamingvlm.cache.kv_cache import KVCache
from streamingvlm.errors import EngineFull
from streamingvlm.inference.stream import Stream


class Slots:
    """The slots 0 to ``num_slots`` - 1."""

    def __init__(self, num_slots: int):
        self.num_slots = num_slots
        self._free = list(range(num_slots))
        self._finalizers: dict[int, weakref.finalize] = {}
        self._lock = threading.Lock()
        # Filled by the garbage collector, in any thread and also while the lock is held: it must not take the lock.
        self._released: deque[tuple[int, KVCache]] = deque()

    @property
    def num_taken(self) -> int:
        """Slots of open streams."""
        with self._lock:
            return sum(finalizer.alive for finalizer in self._finalizers.values())

    def first_free(self) -> int:
        """Return the lowest free slot. Raises EngineFull if there is none."""
        self.reclaim()
        with self._lock:
            if self._free:
                return self._free[0]
        raise EngineFull(
            f"all {self.num_slots} slots of the engine are taken; close a stream, or give the engine more num_slots"
        )

    def take(self, stream: Stream):
        """Take the stream's slot, which must be free."""
        with self._lock:
            self._free.remove(stream.slot)
            finalizer = weakref.finalize(stream, self._released.append, (stream.slot, stream.sequence.kv))
            finalizer.atexit = False
            self._finalizers[stream.slot] = finalizer

    def release(self, stream: Stream):
        """Release the slot of a stream."""
        with self._lock:
            finalizer = self._finalizers.get(stream.slot)
        if finalizer is not None:
            finalizer()
        self.reclaim()

    def reclaim(self):
        """Free what was released. Only while no forward pass runs: the pool may move the caches of other streams."""
        while self._released:
            slot, kv = self._released.popleft()
            kv.close()
            with self._lock:
                del self._finalizers[slot]
                self._free = sorted([*self._free, slot])
