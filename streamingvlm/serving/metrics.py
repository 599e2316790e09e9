"""What Prometheus can ask for: sessions, lag, drops, tokens, cache fill, memory, requests."""

from collections.abc import Callable, Iterable, Iterator
from typing import Any, Protocol

import torch
from prometheus_client import CollectorRegistry, Counter, Histogram, generate_latest
from prometheus_client.core import GaugeMetricFamily, Metric
from prometheus_client.platform_collector import PlatformCollector
from prometheus_client.process_collector import ProcessCollector

from streamingvlm.inference.commentary import Commentary

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"
_SECONDS = (0.05, 0.1, 0.2, 0.3, 0.5, 0.75, 1.0, 1.5, 2.0, 3.0, 5.0, 10.0, 30.0)


class Watched(Protocol):
    """A session, as far as its figures go."""

    @property
    def is_live(self) -> bool: ...

    def state(self) -> dict[str, Any]: ...


class Metrics:
    """The figures of one server, in a registry of its own."""

    def __init__(self):
        self.registry = CollectorRegistry()
        ProcessCollector(registry=self.registry)
        PlatformCollector(registry=self.registry)
        self.opened = self._counter("sessions_opened", "Sessions opened")
        self.closed = self._counter("sessions_closed", "Sessions that came to their end, or failed", "how")
        self.lines = self._counter("lines", "Lines of commentary, silent seconds included")
        self.tokens = self._counter("generated_tokens", "Tokens generated; its rate is tokens a second")
        self.frames = self._counter(
            "frames", "Frames pushed: taken, late (nothing to show them in), over the rate", "how"
        )
        self.dropped_s = self._counter("dropped_seconds", "Seconds of video that went by unseen, as the model was late")
        self.questions = self._counter("questions", "Questions answered")
        self.clips = self._counter("clips", "One-shot clips answered")
        self.requests = self._counter("requests", "Requests answered", "method", "status")
        self.refused = self._counter("refused", "Requests turned away at the door", "why")
        self.frame_to_text_s = Histogram(
            "streamingvlm_frame_to_text_seconds",
            "From the arrival of a second's newest frame to its line",
            buckets=_SECONDS,
            registry=self.registry,
        )
        self.turn_s = Histogram(
            "streamingvlm_turn_seconds", "Work on one second of video", buckets=_SECONDS, registry=self.registry
        )

    def watch(self, sessions: Callable[[], Iterable[Watched]]):
        """Tell the state of these sessions from now on."""
        self.registry.register(_SessionsCollector(sessions))

    def line_said(self, line: Commentary):
        """Count one line."""
        self.lines.inc()
        self.tokens.inc(line.num_tokens)
        self.dropped_s.inc(line.dropped_s)
        self.turn_s.observe(line.latency_s)
        if line.age_s is not None:
            self.frame_to_text_s.observe(line.age_s)

    def exposition(self) -> bytes:
        """The figures as Prometheus reads them."""
        return generate_latest(self.registry)

    def _counter(self, name: str, help_text: str, *labels: str) -> Counter:
        return Counter(f"streamingvlm_{name}", help_text, labels, registry=self.registry)


class _SessionsCollector:
    """Sums over the sessions when asked; a label for each session would grow without end."""

    def __init__(self, sessions: Callable[[], Iterable[Watched]]):
        self._sessions = sessions

    def collect(self) -> Iterator[Metric]:
        states = [session.state() for session in self._sessions() if session.is_live]
        caches = [state["cache"] for state in states]
        fills = [c["num_tokens"] / c["capacity_tokens"] for c in caches if c["capacity_tokens"]]
        yield _gauge("sessions", "Sessions that are live", len(states))
        yield _gauge("lag_seconds_max", "How far the latest session is behind its newest frame", _most(states, "lag_s"))
        yield _gauge("cache_tokens", "Tokens in all caches", sum(c["num_tokens"] for c in caches))
        yield _gauge("cache_capacity_tokens", "Room of all caches", sum(c["capacity_tokens"] or 0 for c in caches))
        yield _gauge("cache_fill_max", "Fill of the fullest cache, 0 to 1", max(fills, default=0.0))
        if torch.cuda.is_available():
            yield _gauge("gpu_memory_bytes", "Memory of the GPU held by tensors", torch.cuda.memory_allocated())


def _gauge(name: str, help_text: str, value: float) -> GaugeMetricFamily:
    return GaugeMetricFamily(f"streamingvlm_{name}", help_text, value)


def _most(states: Iterable[dict[str, Any]], name: str) -> float:
    return max((state[name] for state in states), default=0.0)
