"""An ordered map over threads, for work that waits for a disk, a video decoder or a server."""

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from threading import Event
from typing import TypeVar

Item = TypeVar("Item")
Result = TypeVar("Result")

MAX_PENDING_PER_THREAD = 4
"""Submitted items per thread: enough to keep every thread busy, few enough to bound memory."""


def map_in_threads(
    work: Callable[[Item], Result], items: Iterable[Item], num_threads: int, *, stop: Event | None = None
) -> Iterator[Result]:
    """Yield ``work(item)`` for each item, in order.

    An error in ``work``, or closing the generator, cancels the items that have not started.
    stop: set when the generator ends, so that long-running work can check it and return early.
    """
    pool = ThreadPoolExecutor(num_threads, thread_name_prefix="streamingvlm")
    pending = deque()
    try:
        for item in items:
            pending.append(pool.submit(work, item))
            if len(pending) >= MAX_PENDING_PER_THREAD * num_threads:
                yield pending.popleft().result()
        while pending:
            yield pending.popleft().result()
    finally:
        if stop is not None:
            stop.set()
        pool.shutdown(cancel_futures=True)
