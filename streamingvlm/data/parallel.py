"""Work in threads, for what waits for a disk, a decoder or a server."""

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from threading import Event
from typing import TypeVar

Item = TypeVar("Item")
Result = TypeVar("Result")

LOOK_AHEAD = 4
"""Items in hand for each thread: enough that none waits, few enough that memory does not grow with their number."""


def map_in_threads(
    work: Callable[[Item], Result], items: Iterable[Item], num_threads: int, *, stop: Event | None = None
) -> Iterator[Result]:
    """Yield ``work`` of each item, in order. An error, or the caller's leaving, drops what has not begun.

    stop: set at the end, for work that lasts and can leave off.
    """
    pool = ThreadPoolExecutor(num_threads, thread_name_prefix="streamingvlm")
    in_hand = deque()
    try:
        for item in items:
            in_hand.append(pool.submit(work, item))
            if len(in_hand) >= LOOK_AHEAD * num_threads:
                yield in_hand.popleft().result()
        while in_hand:
            yield in_hand.popleft().result()
    finally:
        if stop is not None:
            stop.set()
        pool.shutdown(cancel_futures=True)
