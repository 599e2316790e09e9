"""What a stream measured of itself."""

import time
from collections import defaultdict, deque
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

# Percentiles look at the last ten minutes of one-second turns, so that the memory of a week-long stream stays flat.
_RECENT_TURNS = 600


def percentile(values: list[float], share: float) -> float:
    """The nearest-rank percentile of ``values``; 0 of none."""
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, int(share * len(ordered)))] if ordered else 0.0


@dataclass
class SessionStats:
    """Latency by stage, cache fill and real-time factor of one stream.

    num_turns, num_tokens: turns taken and tokens generated; stream_s, busy_s: seconds of video, and of work on it or
    of waiting for its next frames.
    dropped_s, coalesced_s: seconds of a live stream that went by unseen, and that shared a turn with others, as the
    model was late.
    cache_tokens, capacity_tokens: fill of the cache after the last turn; capacity is None where it is unbounded.
    """

    capacity_tokens: int | None = None
    num_turns: int = 0
    num_tokens: int = 0
    stream_s: float = 0.0
    busy_s: float = 0.0
    cache_tokens: int = 0
    dropped_s: float = 0.0
    coalesced_s: float = 0.0
    _ages_s: deque[float] = field(default_factory=lambda: deque(maxlen=_RECENT_TURNS))
    _recent: dict[str, deque[float]] = field(default_factory=lambda: defaultdict(lambda: deque(maxlen=_RECENT_TURNS)))

    @contextmanager
    def stage(self, name: str) -> Iterator[None]:
        """Time the block as one stage of a turn."""
        start = time.perf_counter()
        yield
        self.spent_(name, time.perf_counter() - start)

    def spent_(self, name: str, spent_s: float):
        """Count the seconds that one stage of a turn took."""
        self._recent[name].append(spent_s)
        if name == "video":  # the other stages are parts of a turn's latency
            self.busy_s += spent_s

    def turn_done_(self, *, stream_s: float, latency_s: float, num_tokens: int, cache_tokens: int):
        """Count one turn."""
        self.num_turns += 1
        self.num_tokens += num_tokens
        self.stream_s += stream_s
        self.busy_s += latency_s
        self.cache_tokens = cache_tokens
        self._recent["turn"].append(latency_s)

    def live_turn_done_(self, *, age_s: float | None, dropped_s: float, coalesced_s: float):
        """Count what a lag policy did before one turn, and how old its newest frame was at the end of it."""
        self.dropped_s += dropped_s
        self.coalesced_s += coalesced_s
        if age_s is not None:
            self._ages_s.append(age_s)

    @property
    def age_s(self) -> tuple[float, float] | None:
        """Median and 95th percentile of the age of what was spoken of, over the recent turns; None if not live."""
        return (percentile(list(self._ages_s), 0.5), percentile(list(self._ages_s), 0.95)) if self._ages_s else None

    @property
    def realtime_factor(self) -> float:
        """Seconds of stream a second of work and waiting; above 1 the model keeps up with live video."""
        return self.stream_s / self.busy_s if self.busy_s else 0.0

    @property
    def stages(self) -> dict[str, tuple[float, float]]:
        """Median and 95th percentile of each stage in seconds, over the recent turns."""
        return {name: (percentile(list(v), 0.5), percentile(list(v), 0.95)) for name, v in list(self._recent.items())}

    @property
    def newest(self) -> dict[str, float]:
        """Seconds that each stage took the last time."""
        return {name: spent_s[-1] for name, spent_s in self._recent.items()}

    def summary(self) -> str:
        """A few lines for people."""
        fill = f"{self.cache_tokens}" + (f" of {self.capacity_tokens}" if self.capacity_tokens else "")
        pace = f"{self.stream_s:.0f} s of stream, {self.realtime_factor:.1f}x real time"
        head = f"{pace}, {self.num_tokens} tokens, cache {fill}"
        rows = (f"  {n:<8} p50 {p50 * 1e3:7.1f} ms   p95 {p95 * 1e3:7.1f} ms" for n, (p50, p95) in self.stages.items())
        return "\n".join((head, *self._live_facts(), *rows))

    def _live_facts(self) -> Iterator[str]:
        if self.age_s is None:
            return
        p50, p95 = self.age_s
        late = f"{self.dropped_s:.0f} s dropped, {self.coalesced_s:.0f} s coalesced"
        yield f"live: {late}, frames {p50:.1f} s old when the line was finished (p95 {p95:.1f} s)"

    __str__ = summary
