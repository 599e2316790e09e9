"""The commentary of one session for any number of listeners: every line once and in order.

Lines are stored once per session, not once per listener: a listener is a position in the log. So a slow listener costs
no memory, and one that reconnects with the number of its last line continues with the next. A listener that has fallen
behind the stored lines gets a gap event with the number of lines that it missed. State and partial text are not
queued: each listener sees the newest.
"""

import asyncio
from collections import deque
from collections.abc import AsyncIterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Literal


@dataclass(frozen=True)
class CommentaryEvent:
    """An event for listeners.

    kind: ``line``, a numbered line of commentary; ``state`` of the stream; ``partial``, the text of a line that is
        being generated; ``gap``, if lines were missed; ``end``, after which no event follows.
    """

    kind: Literal["line", "state", "partial", "gap", "end"]
    data: dict[str, Any]
    id: int | None = None


class CommentaryLog:
    """The newest ``max_lines`` lines of a session. Used in the event loop's thread only, ``num_listeners`` excepted."""

    def __init__(self, max_lines: int):
        self._lines: deque[CommentaryEvent] = deque(maxlen=max_lines)
        self._listeners: set[asyncio.Event] = set()
        self._state: CommentaryEvent | None = None
        self._partial: CommentaryEvent | None = None
        self._end: CommentaryEvent | None = None
        self.last_id = 0

    @property
    def num_listeners(self) -> int:
        """Return the number of current listeners. Safe from any thread."""
        return len(self._listeners)

    @property
    def has_ended(self) -> bool:
        """Return True after ``end``."""
        return self._end is not None

    def publish_line(self, line: dict[str, Any], state: dict[str, Any]):
        """Append a line, and publish the state of the stream after it."""
        self.last_id += 1
        self._lines.append(CommentaryEvent("line", {"id": self.last_id, **line}, self.last_id))
        self._state, self._partial = CommentaryEvent("state", state), None
        self._wake_listeners()

    def publish_partial(self, partial: dict[str, Any]):
        """Publish the text of a line that is still being generated."""
        self._partial = CommentaryEvent("partial", partial)
        self._wake_listeners()

    def end(self, reason: str):
        """Publish the end; later calls have no effect."""
        if self._end is None:
            self._end = CommentaryEvent("end", {"reason": reason, "last_id": self.last_id})
            self._wake_listeners()

    async def follow(self, after: int) -> AsyncIterator[CommentaryEvent]:
        """Yield the lines after number ``after`` and the other events, until the end."""
        next_id, seen_state, seen_partial = after + 1, None, None
        with self._listening() as wakeup:
            while True:
                wakeup.clear()
                # The log may change while the caller handles an event, so everything is checked again after each.
                if next_id <= self.last_id:
                    event = self._line_or_gap(next_id)
                    next_id = event.data["next_id"] if event.kind == "gap" else next_id + 1
                    yield event
                elif self._state is not seen_state:
                    seen_state = self._state
                    yield seen_state
                elif self._partial is not seen_partial:
                    seen_partial = self._partial
                    if seen_partial is not None:
                        yield seen_partial
                elif self._end is not None:
                    yield self._end
                    return
                else:
                    await wakeup.wait()

    def _line_or_gap(self, number: int) -> CommentaryEvent:
        first_stored = self.last_id - len(self._lines) + 1
        if number < first_stored:
            return CommentaryEvent("gap", {"num_missed": first_stored - number, "next_id": first_stored})
        return self._lines[number - first_stored]

    @contextmanager
    def _listening(self):
        wakeup = asyncio.Event()
        self._listeners.add(wakeup)
        try:
            yield wakeup
        finally:
            self._listeners.discard(wakeup)

    def _wake_listeners(self):
        for wakeup in self._listeners:
            wakeup.set()
