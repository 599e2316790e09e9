"""Latency, throughput and cache fill of one stream, as it measures them itself."""

import threading
import time
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from html import escape

# Percentiles cover the last ten minutes of one-second turns, so that the memory of a week-long stream stays flat.
_NUM_RECENT_TURNS = 600


def percentile(values: list[float], share: float) -> float:
    """Return the nearest-rank percentile of ``values``; 0 if there are none."""
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, int(share * len(ordered)))] if ordered else 0.0


def _recent() -> deque[float]:
    return deque(maxlen=_NUM_RECENT_TURNS)


@dataclass
class SessionStats:
    """Latency by stage, cache fill and real-time factor of one stream. May be read and written from any thread.

    num_turns, num_tokens: turns processed and tokens generated.
    stream_s, busy_s: seconds of video, and seconds spent on it or waiting for its next frames.
    dropped_s, coalesced_s: seconds of a live stream that the lag policy skipped, and that it merged into other turns.
    cache_tokens: tokens in the cache after the last turn; capacity_tokens: the most there can be, None without a bound.
    """

    capacity_tokens: int | None = None
    num_turns: int = 0
    num_tokens: int = 0
    stream_s: float = 0.0
    busy_s: float = 0.0
    cache_tokens: int = 0
    dropped_s: float = 0.0
    coalesced_s: float = 0.0
    _ages_s: deque[float] = field(default_factory=_recent, repr=False)
    _stages_s: dict[str, deque[float]] = field(default_factory=dict, repr=False)
    _lock: threading.RLock = field(default_factory=threading.RLock, repr=False, compare=False)

    @contextmanager
    def stage(self, name: str) -> Iterator[None]:
        """Time the block as one stage of a turn."""
        start = time.perf_counter()
        yield
        self.record_stage(name, time.perf_counter() - start)

    def record_stage(self, name: str, duration_s: float):
        """Record the duration of one stage of a turn."""
        with self._lock:
            self._stages_s.setdefault(name, _recent()).append(duration_s)
            if name == "video":  # the other stages are parts of a turn's latency
                self.busy_s += duration_s

    def record_turn(self, *, stream_s: float, latency_s: float, num_tokens: int, cache_tokens: int):
        """Record one turn."""
        with self._lock:
            self.num_turns += 1
            self.num_tokens += num_tokens
            self.stream_s += stream_s
            self.busy_s += latency_s
            self.cache_tokens = cache_tokens
            self._stages_s.setdefault("turn", _recent()).append(latency_s)

    def record_lag(self, *, age_s: float | None, dropped_s: float, coalesced_s: float):
        """Record what the lag policy did before one turn, and the age of its newest frame at the end."""
        with self._lock:
            self.dropped_s += dropped_s
            self.coalesced_s += coalesced_s
            if age_s is not None:
                self._ages_s.append(age_s)

    @property
    def age_s(self) -> tuple[float, float] | None:
        """Median and 95th percentile of the frames' age over the recent turns; None if the source is not live."""
        with self._lock:
            ages_s = list(self._ages_s)
        return (percentile(ages_s, 0.5), percentile(ages_s, 0.95)) if ages_s else None

    @property
    def realtime_factor(self) -> float:
        """Seconds of stream per second of work and waiting; above 1 the model keeps up with live video."""
        with self._lock:
            return self.stream_s / self.busy_s if self.busy_s else 0.0

    @property
    def stages(self) -> dict[str, tuple[float, float]]:
        """Median and 95th percentile of each stage in seconds, over the recent turns."""
        with self._lock:
            recent = {name: list(values) for name, values in self._stages_s.items()}
        return {name: (percentile(values, 0.5), percentile(values, 0.95)) for name, values in recent.items()}

    @property
    def latest(self) -> dict[str, float]:
        """Seconds of each stage in its last run."""
        with self._lock:
            return {name: values[-1] for name, values in self._stages_s.items()}

    def summary(self) -> str:
        """Return a few lines for people."""
        fill = f"{self.cache_tokens}" + (f" of {self.capacity_tokens}" if self.capacity_tokens else "")
        pace = f"{self.stream_s:.0f} s of stream, {self.realtime_factor:.1f}x real time"
        head = f"{pace}, {self.num_tokens} tokens, cache {fill}"
        rows = (f"  {n:<8} p50 {p50 * 1e3:7.1f} ms   p95 {p95 * 1e3:7.1f} ms" for n, (p50, p95) in self.stages.items())
        return "\n".join((head, *self._lag_line(), *rows))

    def _lag_line(self) -> Iterator[str]:
        if ages_s := self.age_s:
            ages = "frames {:.1f} s old when the line was finished (p95 {:.1f} s)".format(*ages_s)
            yield f"live: {self.dropped_s:.0f} s dropped, {self.coalesced_s:.0f} s coalesced, {ages}"

    def _repr_html_(self) -> str:
        head, *rest = self.summary().splitlines()
        most = self.capacity_tokens or max(self.cache_tokens, 1)
        meter = f'<meter style="width:100%" max="{most}" value="{self.cache_tokens}"></meter>'
        return f"<div>{escape(head)}</div>{meter}<pre>{escape(chr(10).join(rest))}</pre>"

    __str__ = summary
