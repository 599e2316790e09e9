"""The stream in a terminal: commentary that scrolls, and below it a bar with the pace and the fill of the cache.

Where nobody watches (a pipe, a file), it is one plain line a spoken second, each flushed at once.
"""

import sys
from types import TracebackType
from typing import Self

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn
from rich.text import Text

from streamingvlm.inference.commentary import Commentary
from streamingvlm.inference.session import StreamingSession
from streamingvlm.inference.stats import SessionStats


class PlainView:
    """Lines of commentary on standard output, notes on standard error."""

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_):
        pass

    def show(self, line: Commentary, session: StreamingSession):
        """One second: a line if something was said."""
        if line.text:
            print(_one_line(line), flush=True)

    def note(self, text: str):
        """A line about the run, apart from the commentary."""
        print(text, file=sys.stderr, flush=True)


class LiveView:
    """Lines that scroll above a bar.

    duration_s: seconds of stream there will be, None where nobody knows.
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

    def show(self, line: Commentary, session: StreamingSession):
        """One second: the bar moves, and what was said scrolls by."""
        stats = session.stats
        self._bar.update(
            self._task,
            completed=line.end_s,
            clock=_clock(line.end_s) + self._duration,
            pace=f"{stats.realtime_factor:.1f}x real time",
            lag=_lag(line, stats),
            cache=_fill(stats.cache_tokens, stats.capacity_tokens),
        )
        if line.text:
            stamp, _, words = _one_line(line).partition(" ")
            self._bar.console.print(Text.assemble((stamp, "cyan"), " ", words))

    def note(self, text: str):
        """A line about the run, below the commentary."""
        self._bar.console.print(text, style="dim", markup=False, highlight=False)


def open_view(duration_s: float | None) -> LiveView | PlainView:
    """The view that suits standard output."""
    console = Console(highlight=False)
    return LiveView(console, duration_s) if console.is_terminal else PlainView()


def _one_line(line: Commentary) -> str:
    """What a terminal can show on one line, whatever signs a model comes up with."""
    return " ".join("".join(sign if sign.isprintable() else " " for sign in str(line)).split())


def _clock(time_s: float) -> str:
    minutes, seconds = divmod(int(time_s), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{seconds:02d}" if hours else f"{minutes:02d}:{seconds:02d}"


def _lag(line: Commentary, stats: SessionStats) -> str:
    """Of a live stream: how old the newest picture is, and what the model was too late for; else nothing."""
    if line.age_s is None:
        return ""
    counts = {"dropped": stats.dropped_s, "coalesced": stats.coalesced_s}
    return ", ".join([f"{line.age_s:.1f} s behind", *(f"{s:.0f} s {what}" for what, s in counts.items() if s)])


def _fill(num_tokens: int, capacity: int | None) -> str:
    return f"cache {num_tokens:,} of {capacity:,} tokens" if capacity else f"cache {num_tokens:,} tokens"
