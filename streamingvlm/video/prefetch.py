"""Work ahead in a background thread, by a bounded number of items."""

import threading
from collections.abc import Iterator
from queue import SimpleQueue
from typing import Generic, TypeVar

T = TypeVar("T")


class Prefetch(Generic[T]):
    """An iterator whose items are made by a thread, at most `depth` ahead of the caller.

    The thread starts when the first item is asked for. An exception raised while making an item reaches the caller in
    that item's place. `close` sets `stop`, ends the thread and waits for it; what makes the items may look at `stop`
    too, during long work.
    """

    def __init__(self, items: Iterator[T], *, depth: int, name: str, stop: threading.Event):
        self._items = items
        self._free_slots = threading.Semaphore(depth)
        self._ready: SimpleQueue = SimpleQueue()  # ("item", item) ..., then ("end", exception or None)
        self._stop = stop
        self._thread = threading.Thread(target=self._work, name=name, daemon=True)
        self._finished = False

    def __iter__(self) -> Iterator[T]:
        return self

    def __next__(self) -> T:
        if self._finished:
            raise StopIteration
        if self._thread.ident is None:
            self._thread.start()
        kind, value = self._ready.get()
        if kind == "item":
            self._free_slots.release()
            return value
        self._finished = True
        if value is None:
            raise StopIteration
        raise value

    def close(self) -> None:
        """End the thread; what it has made ahead is dropped. Safe to call twice, and from any thread."""
        self._finished = True
        self._stop.set()
        self._free_slots.release()
        if self._thread.ident is not None and self._thread is not threading.current_thread():
            self._thread.join()
        closed: SimpleQueue = SimpleQueue()
        closed.put(("end", None))  # for a caller in another thread who has looked at `_finished`, but not yet waits
        self._ready = closed

    def _work(self) -> None:
        error = None
        try:
            self._make_items()
        except BaseException as raised:  # noqa: BLE001 - it belongs to the caller, who waits for an item
            error = raised
        self._ready.put(("end", error))

    def _make_items(self) -> None:
        while True:
            self._free_slots.acquire()
            if self._stop.is_set():
                return
            try:
                item = next(self._items)
            except StopIteration:
                return
            self._ready.put(("item", item))
            del item  # while this thread waits for a slot, it holds none
