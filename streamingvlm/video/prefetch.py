"""Produce items ahead of the consumer in a background thread, up to a bounded number."""

import threading
from collections.abc import Iterator
from queue import SimpleQueue
from typing import Generic, TypeVar

T = TypeVar("T")


class Prefetch(Generic[T]):
    """An iterator whose items are produced by a thread, at most `depth` items ahead of the consumer.

    The thread starts when the first item is requested. An exception raised by the producer reaches the consumer in
    place of the item. `close` sets `stop`, ends the thread and waits for it; a producer with long steps may check
    `stop` as well. One thread iterates; any thread may close.
    """

    def __init__(self, items: Iterator[T], *, depth: int, name: str, stop: threading.Event):
        self._items = items
        self._capacity = threading.Semaphore(depth)
        self._ready: SimpleQueue = SimpleQueue()  # ("item", item) ..., then ("end", exception or None)
        self._stop = stop
        self._thread = threading.Thread(target=self._work, name=name, daemon=True)
        self._lock = threading.Lock()  # close() sees a thread that has started, or one that never will
        self._finished = False

    def __iter__(self) -> Iterator[T]:
        return self

    def __next__(self) -> T:
        self._ensure_started()
        kind, value = self._ready.get()
        if kind == "item":
            self._capacity.release()
            return value
        self._finished = True
        if value is None:
            raise StopIteration
        raise value

    def close(self) -> None:
        """End the thread and drop what it has produced. Safe to call twice, and from any thread."""
        with self._lock:
            self._finished = True
        self._stop.set()
        self._capacity.release()
        if self._thread.ident is not None and self._thread is not threading.current_thread():
            self._thread.join()
        closed: SimpleQueue = SimpleQueue()
        closed.put(("end", None))  # for a consumer that has passed the check of `_finished` and does not wait yet
        self._ready = closed

    def _ensure_started(self) -> None:
        with self._lock:
            if self._finished:
                raise StopIteration
            if self._thread.ident is None:
                self._thread.start()

    def _work(self) -> None:
        error = None
        try:
            self._produce()
        except BaseException as raised:  # noqa: BLE001 - raised again in the consumer
            error = raised
        self._ready.put(("end", error))

    def _produce(self) -> None:
        while True:
            self._capacity.acquire()
            if self._stop.is_set():
                return
            try:
                item = next(self._items)
            except StopIteration:
                return
            self._ready.put(("item", item))
            del item  # free it while this thread waits for capacity
