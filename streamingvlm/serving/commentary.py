"""What was said in a session, for all who listen: every line once, in order, from wherever a listener left off.

The lines are kept once, not once a listener: each listener is a place in them. So a slow one costs no memory, and one
that comes back with the number of the last line it had goes on with the next. One that has fallen behind what is kept
is told how many lines it missed. The state and words half spoken are of the moment: each listener sees the newest.
"""

import asyncio
from collections import deque
from collections.abc import AsyncIterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Literal


@dataclass(frozen=True)
class Event:
    """Something to tell a listener.

    kind: ``line`` is a line of commentary, numbered; ``state`` how the stream stands; ``words`` what is being said;
        ``gap`` that lines were missed; ``end`` that nothing follows.
    """

    kind: Literal["line", "state", "words", "gap", "end"]
    data: dict[str, Any]
    id: int | None = None


class CommentaryLog:
    """The newest ``max_lines`` lines of a session. All of it runs in the event loop's thread."""

    def __init__(self, max_lines: int):
        self._lines: deque[Event] = deque(maxlen=max_lines)
        self._listeners: set[asyncio.Event] = set()
        self._state: Event | None = None
        self._words: Event | None = None
        self._end: Event | None = None
        self.last_id = 0

    @property
    def num_listeners(self) -> int:
        """How many listen at the moment."""
        return len(self._listeners)

    @property
    def has_ended(self) -> bool:
        """Whether nothing follows."""
        return self._end is not None

    def say(self, line: dict[str, Any], state: dict[str, Any]):
        """Append a line, and tell how the stream stands after it."""
        self.last_id += 1
        self._lines.append(Event("line", {"id": self.last_id, **line}, self.last_id))
        self._state, self._words = Event("state", state), None
        self._wake()

    def utter(self, words: dict[str, Any]):
        """Tell what is being said, before its line is whole."""
        self._words = Event("words", words)
        self._wake()

    def stand(self, state: dict[str, Any]):
        """Tell how the stream stands."""
        self._state = Event("state", state)
        self._wake()

    def end(self, reason: str):
        """Nothing follows."""
        if self._end is None:
            self._end = Event("end", {"reason": reason, "last_id": self.last_id})
            self._wake()

    async def follow(self, after: int) -> AsyncIterator[Event]:
        """Yield the lines after number ``after``, and whatever else is to tell, until the end."""
        next_id, seen_state, seen_words = after + 1, None, None
        with self._listening() as woken:
            while True:
                woken.clear()
                # Much may have happened while a listener was busy with an event: after each, all is looked at anew.
                if next_id <= self.last_id:
                    event = self._line(next_id)
                    next_id = event.data["next_id"] if event.kind == "gap" else next_id + 1
                    yield event
                elif self._state is not seen_state:
                    seen_state = self._state
                    yield seen_state
                elif self._words is not seen_words:
                    seen_words = self._words
                    if seen_words is not None:
                        yield seen_words
                elif self._end is not None:
                    yield self._end
                    return
                else:
                    await woken.wait()

    def _line(self, number: int) -> Event:
        """The line of this number, or the gap up to the first that is kept."""
        first_kept = self.last_id - len(self._lines) + 1
        if number < first_kept:
            return Event("gap", {"num_missed": first_kept - number, "next_id": first_kept})
        return self._lines[number - first_kept]

    @contextmanager
    def _listening(self):
        woken = asyncio.Event()
        self._listeners.add(woken)
        try:
            yield woken
        finally:
            self._listeners.discard(woken)

    def _wake(self):
        for woken in self._listeners:
            woken.set()
