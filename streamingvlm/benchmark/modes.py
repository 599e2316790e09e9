"""Measure one stream under one cache policy, from its first turn on: the latency of each turn and of each token."""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch

from streamingvlm.benchmark.endless_footage import endless_turns
from streamingvlm.benchmark.timed_turn import SynchronizedStats, TurnMetrics, measure_turn
from streamingvlm.config import CacheConfig, SamplingConfig, VideoConfig
from streamingvlm.inference.limits import StreamLimits, is_out_of_memory
from streamingvlm.inference.session import StreamingSession
from streamingvlm.inference.stats import SessionStats
from streamingvlm.model.loading import StreamingModel
from streamingvlm.video.video_turn import VideoTurn

# The first turns of a process compile kernels and allocate buffers.
_NUM_WARM_UP_TURNS = 3


@dataclass(frozen=True)
class StreamSettings:
    """Settings shared by all streams of a benchmark.

    source, height, width: the footage, as `load_turns` takes it.
    """

    video: VideoConfig | Mapping[str, Any] = field(default_factory=VideoConfig)
    sampling: SamplingConfig | Mapping[str, Any] = field(default_factory=SamplingConfig)
    source: str = "noise"
    height: int = 720
    width: int = 1280

    def endless(self, video: VideoConfig):
        """Open the footage without an end; a context manager."""
        return endless_turns(self.source, video, height=self.height, width=self.width)


@dataclass(frozen=True)
class ModeRun:
    """The measurements of a stream under one cache policy.

    turns: in stream order. synchronized: further turns, with the device synchronized after each stage; on a CPU, which
    runs synchronously, ``turns`` again. stop_reason: why the stream stopped early, "" if it did not.
    cuda_peak_mb: peak device memory, weights included; None on a CPU.
    """

    turns: tuple[TurnMetrics, ...]
    synchronized: tuple[TurnMetrics, ...]
    stop_reason: str
    cuda_peak_mb: float | None


def measure_mode(
    model: StreamingModel,
    cache: CacheConfig | Mapping[str, Any],
    settings: StreamSettings,
    *,
    duration_s: float,
    limits: StreamLimits = StreamLimits(),
    num_synchronized: int = 30,
    on_turn: Callable[[TurnMetrics], None] | None = None,
) -> ModeRun:
    """Stream ``duration_s`` of footage. If memory or a limit is exhausted, return the turns measured until then."""
    _reset_peak(model.device)
    turns: list[TurnMetrics] = []
    synchronized: list[TurnMetrics] = []
    stop_reason = ""
    try:
        with StreamingSession(model, cache=cache, video=settings.video, sampling=settings.sampling) as session:
            _warm_up(session, settings)
            with settings.endless(session.video_config) as footage:
                for metrics in _stream(session, footage, duration_s):
                    turns.append(metrics)
                    if on_turn:
                        on_turn(metrics)
                    if stop_reason := limits.exceeded(session.stats, session.cache_bytes):
                        break
                if model.device.type == "cuda" and not stop_reason:
                    session.stats = SynchronizedStats(session.stats.capacity_tokens)
                    synchronized.extend(_stream(session, footage, num_synchronized * session.video_config.turn_s))
    except Exception as error:
        if not is_out_of_memory(error):
            raise
        stop_reason = f"out of memory after {len(turns)} turns: {str(error).splitlines()[0]}"
    return ModeRun(tuple(turns), tuple(synchronized or turns), stop_reason, _peak_mb(model.device))


def _warm_up(session: StreamingSession, settings: StreamSettings):
    with settings.endless(session.video_config) as footage:
        for _ in range(_NUM_WARM_UP_TURNS):
            session.step(next(footage))
    session.reset()


def _stream(session: StreamingSession, footage: Iterator[VideoTurn], duration_s: float) -> Iterator[TurnMetrics]:
    stats: SessionStats = session.stats
    for _ in range(max(1, round(duration_s / session.video_config.turn_s))):
        with stats.stage("video"):
            video_turn = next(footage)
        yield measure_turn(session, video_turn)


def _reset_peak(device: torch.device):
    if device.type == "cuda":
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats(device)


def _peak_mb(device: torch.device) -> float | None:
    """Peak memory of a CUDA device since `_reset_peak`; None on other devices."""
    return torch.cuda.max_memory_allocated(device) / 2**20 if device.type == "cuda" else None
