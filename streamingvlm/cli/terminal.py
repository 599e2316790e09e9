"""Terminal output of a stream: scrolling commentary above a bar with the speed and the size of the cache.

If standard output is a pipe or a file, each line of commentary is printed as plain text and flushed.
"""

import sys
from contextlib import AbstractContextManager, nullcontext
from types import TracebackType
from typing import TYPE_CHECKING, Self

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn
from rich.text import Text

if TYPE_CHECKING:  # their import takes seconds, during which the spinner turns
    from streamingvlm.inference.commentary import Commentary
    from streamingvlm.inference.session import StreamingSession
    from streamingvlm.inference.stats import SessionStats


class PlainView:
    """Commentary on standard output, notes on standard error."""

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_):
        pass

    def show(self, line: "Commentary", session: "StreamingSession"):
        """Print the commentary of a turn, unless it is silent."""
        if line.text:
            print(_one_line(line), flush=True)

    def note(self, text: str):
        """Print a line about the run to standard error."""
        print(text, file=sys.stderr, flush=True)


class LiveView:
    """Scrolling commentary above a progress bar.

    duration_s: length of the stream; None if unknown.
    """

    def __init__(self, console: Console, duration_s: float | None):
        self._bar = Progress(
            TextColumn("{task.fields[clock]}", style="cyan"),
            BarColumn(),
            TextColumn("{task.fields[pace]}", style="bold"),
            TextColumn("{task.fields[lag]}", style="yellow"),
            TextColumn("{task.fields[cache]}", style="dim"),
            console=console,
        )
        self._duration = f" / {_clock(duration_s)}" if duration_s else ""
        self._task = self._bar.add_task(
            "stream", total=duration_s, clock="00:00" + self._duration, pace="", lag="", cache=""
        )

    def __enter__(self) -> Self:
        self._bar.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None):
        self._bar.stop()

    def show(self, line: "Commentary", session: "StreamingSession"):
        """Update the bar and print the commentary of a turn, unless it is silent."""
        stats = session.stats
        self._bar.update(
            self._task,
            completed=line.end_s,
            clock=_clock(line.end_s) + self._duration,
            pace=f"{stats.realtime_factor:.1f}x real time",
            lag=_lag(line, stats),
            cache=_cache_size(stats.cache_tokens, stats.capacity_tokens),
        )
        if line.text:
            stamp, _, words = _one_line(line).partition(" ")
            self._bar.console.print(Text.assemble((stamp, "cyan"), " ", words))

    def note(self, text: str):
        """Print a line about the run below the commentary."""
        self._bar.console.print(text, style="dim", markup=False, highlight=False)


def open_view(duration_s: float | None) -> LiveView | PlainView:
    """Open the live view if standard output is a terminal, else the plain view."""
    console = Console(highlight=False)
    return LiveView(console, duration_s) if console.is_terminal else PlainView()


def spinner(text: str) -> AbstractContextManager:
    """Return a context that shows what is being waited for, on a terminal."""
    console = Console(highlight=False)
    return console.status(text, spinner="dots") if console.is_terminal else nullcontext()


def _one_line(line: "Commentary") -> str:
    """Return the line without control characters and line breaks."""
    return " ".join("".join(char if char.isprintable() else " " for char in str(line)).split())


def _clock(time_s: float) -> str:
    minutes, seconds = divmod(int(time_s), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{seconds:02d}" if hours else f"{minutes:02d}:{seconds:02d}"


def _lag(line: "Commentary", stats: "SessionStats") -> str:
    """Return the age of the newest frame of a live stream and the seconds it dropped; "" for a file."""
    if line.age_s is None:
        return ""
    counts = {"dropped": stats.dropped_s, "coalesced": stats.coalesced_s}
    return ", ".join([f"{line.age_s:.1f} s behind", *(f"{s:.0f} s {name}" for name, s in counts.items() if s)])


def _cache_size(num_tokens: int, capacity: int | None) -> str:
    return f"cache {num_tokens:,} of {capacity:,} tokens" if capacity else f"cache {num_tokens:,} tokens"
