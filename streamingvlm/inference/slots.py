"""Who has a place in an engine: a slot each, and rows of the pool, until the session is closed or forgotten."""

import weakref
from collections import deque
from typing import TYPE_CHECKING

from streamingvlm.cache.kv_cache import KVCache
from streamingvlm.errors import EngineFull

if TYPE_CHECKING:
    from streamingvlm.inference.session import StreamingSession


class Slots:
    """The slots 0 to ``num_slots`` - 1. A session that nobody holds any more leaves by itself."""

    def __init__(self, num_slots: int):
        self.num_slots = num_slots
        self._free = list(range(num_slots))
        self._leaving: deque[tuple[int, KVCache]] = deque()  # filled by the garbage collector, in any thread
        self._leave: dict[int, weakref.finalize] = {}

    @property
    def num_taken(self) -> int:
        """Slots of sessions that are open."""
        return self.num_slots - len(self._free) - len(self._leaving)

    def check_free(self):
        """Raise EngineFull where all slots are taken."""
        self.take_back()
        if not self._free:
            raise EngineFull(
                f"all {self.num_slots} slots of the engine are taken; close a stream, or give the engine more num_slots"
            )

    def take(self, session: "StreamingSession", kv: KVCache) -> int:
        """Give a session the lowest slot that is free."""
        slot = self._free.pop(0)
        self._leave[slot] = weakref.finalize(session, self._leaving.append, (slot, kv))
        return slot

    def leave(self, slot: int):
        """Let go of the slot of a session that is closed; once is enough."""
        if leave := self._leave.get(slot):
            leave()
        self.take_back()

    def take_back(self):
        """Make free what was left; only while no stream is being served."""
        while self._leaving:
            slot, kv = self._leaving.popleft()
            kv.close()
            del self._leave[slot]
            self._free = sorted([*self._free, slot])
