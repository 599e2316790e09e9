"""Prometheus metrics: sessions, lag, dropped video, tokens, cache fill, memory, requests."""

from collections.abc import Callable, Iterable, Iterator
from typing import Any, Protocol

import torch
from prometheus_client import CollectorRegistry, Counter, Histogram, generate_latest
from prometheus_client.core import GaugeMetricFamily, Metric
from prometheus_client.platform_collector import PlatformCollector
from prometheus_client.process_collector import ProcessCollector

from streamingvlm.inference.commentary import Commentary

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"
_BUCKETS_S = (0.05, 0.1, 0.2, 0.3, 0.5, 0.75, 1.0, 1.5, 2.0, 3.0, 5.0, 10.0, 30.0)


class ObservedSession(Protocol):
    """The part of a session that its metrics need."""

    @property
    def is_live(self) -> bool: ...

    def state(self) -> dict[str, Any]: ...


class Metrics:
    """The metrics of one server, in a registry of their own."""

    def __init__(self):
        self.registry = CollectorRegistry()
        ProcessCollector(registry=self.registry)
        PlatformCollector(registry=self.registry)
        self.opened = self._counter("sessions_opened", "Sessions opened")
        self.closed = self._counter("sessions_closed", "Sessions that ended or failed", "outcome")
        self.lines = self._counter("lines", "Lines of commentary, including silent turns")
        self.tokens = self._counter("generated_tokens", "Tokens generated; its rate is tokens per second")
        self.frames = self._counter("frames", "Frames pushed: accepted, late or rate_limited", "outcome")
        self.dropped_s = self._counter("dropped_seconds", "Seconds of video dropped because the model was late")
        self.questions = self._counter("questions", "Questions answered")
        self.clips = self._counter("clips", "One-shot clips answered")
        self.requests = self._counter("requests", "Requests answered", "method", "status")
        self.rejected = self._counter("requests_rejected", "Requests rejected before they were handled", "status")
        self.frame_to_text_s = Histogram(
            "streamingvlm_frame_to_text_seconds",
            "Time from the arrival of a turn's newest frame to its line",
            buckets=_BUCKETS_S,
            registry=self.registry,
        )
        self.turn_s = Histogram(
            "streamingvlm_turn_seconds", "Processing time of a turn", buckets=_BUCKETS_S, registry=self.registry
        )

    def observe_sessions(self, sessions: Callable[[], Iterable[ObservedSession]]):
        """Add gauges over the sessions that ``sessions()`` returns at each scrape."""
        self.registry.register(_SessionsCollector(sessions))

    def record_line(self, line: Commentary):
        """Count one line of commentary."""
        self.lines.inc()
        self.tokens.inc(line.num_tokens)
        self.dropped_s.inc(line.dropped_s)
        self.turn_s.observe(line.latency_s)
        if line.age_s is not None:
            self.frame_to_text_s.observe(line.age_s)

    def exposition(self) -> bytes:
        """Return the metrics in Prometheus' text format."""
        return generate_latest(self.registry)

    def _counter(self, name: str, help_text: str, *labels: str) -> Counter:
        return Counter(f"streamingvlm_{name}", help_text, labels, registry=self.registry)


class _SessionsCollector:
    """Sums over all sessions; a label per session would make the number of series grow without bound."""

    def __init__(self, sessions: Callable[[], Iterable[ObservedSession]]):
        self._sessions = sessions

    def collect(self) -> Iterator[Metric]:
        states = [session.state() for session in self._sessions() if session.is_live]
        caches = [state["cache"] for state in states]
        fills = [c["num_tokens"] / c["capacity_tokens"] for c in caches if c["capacity_tokens"]]
        yield _gauge("sessions", "Live sessions", len(states))
        yield _gauge("lag_seconds_max", "Largest lag of a session behind its newest frame", _max_of(states, "lag_s"))
        yield _gauge("cache_tokens", "Tokens in all caches", sum(c["num_tokens"] for c in caches))
        yield _gauge("cache_capacity_tokens", "Capacity of all caches", sum(c["capacity_tokens"] or 0 for c in caches))
        yield _gauge("cache_fill_max", "Fill of the fullest cache, 0 to 1", max(fills, default=0.0))
        if torch.cuda.is_available():
            yield _gauge("gpu_memory_bytes", "GPU memory held by tensors", torch.cuda.memory_allocated())


def _gauge(name: str, help_text: str, value: float) -> GaugeMetricFamily:
    return GaugeMetricFamily(f"streamingvlm_{name}", help_text, value)


def _max_of(states: Iterable[dict[str, Any]], name: str) -> float:
    return max((state[name] for state in states), default=0.0)
