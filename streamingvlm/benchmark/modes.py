"""One stream under one cache policy, from its first second on: how long each turn and each token takes."""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch

from streamingvlm.benchmark.footage import endless_seconds
from streamingvlm.benchmark.timed_turn import SynchronisedStats, TurnFigures, watch_turn
from streamingvlm.config import CacheConfig, SamplingConfig, VideoConfig
from streamingvlm.inference.limits import StreamLimits, is_out_of_memory
from streamingvlm.inference.session import StreamingSession
from streamingvlm.inference.stats import SessionStats
from streamingvlm.model.loading import StreamingModel
from streamingvlm.video.video_turn import VideoTurn

# The first turns of a process make kernels, plans and buffers.
_NUM_WARM_UP_TURNS = 3


@dataclass(frozen=True)
class StreamSettings:
    """What all streams of a benchmark are opened with.

    source, height, width: the footage, as `footage.turns_of` takes it.
    """

    video: VideoConfig | Mapping[str, Any] = field(default_factory=VideoConfig)
    sampling: SamplingConfig | Mapping[str, Any] = field(default_factory=SamplingConfig)
    source: str = "noise"
    height: int = 720
    width: int = 1280

    def endless(self, video: VideoConfig):
        """Open the footage, without end; a context manager."""
        return endless_seconds(self.source, video, height=self.height, width=self.width)


@dataclass(frozen=True)
class ModeRun:
    """A stream that was measured under one policy.

    turns: in their order. synchronised: more of them, in which the device was waited for at the end of each stage; on a
    CPU, where nothing runs ahead, all turns. ended: why the stream ended before its time, "" if it did not.
    cuda_peak_mb: the most memory of the device, weights included; None on a CPU.
    """

    turns: tuple[TurnFigures, ...]
    synchronised: tuple[TurnFigures, ...]
    ended: str
    cuda_peak_mb: float | None


def measure_mode(
    model: StreamingModel,
    cache: CacheConfig | Mapping[str, Any],
    settings: StreamSettings,
    *,
    duration_s: float,
    limits: StreamLimits = StreamLimits(),
    num_synchronised: int = 30,
    on_turn: Callable[[TurnFigures], None] | None = None,
) -> ModeRun:
    """Watch ``duration_s`` of stream. Running out of memory, or into a limit, ends it with what was measured so far."""
    _forget_peak(model.device)
    turns: list[TurnFigures] = []
    synchronised: list[TurnFigures] = []
    ended = ""
    try:
        with StreamingSession(model, cache=cache, video=settings.video, sampling=settings.sampling) as session:
            _warm_up(session, settings)
            with settings.endless(session.video_config) as seconds:
                for figures in _watch(session, seconds, duration_s):
                    turns.append(figures)
                    if on_turn:
                        on_turn(figures)
                    if ended := limits.passed_by(session):
                        break
                if model.device.type == "cuda" and not ended:
                    session.stats = SynchronisedStats(session.stats.capacity_tokens)
                    synchronised.extend(_watch(session, seconds, num_synchronised * session.video_config.turn_s))
    except Exception as error:
        if not is_out_of_memory(error):
            raise
        ended = f"out of memory after {len(turns)} turns: {str(error).splitlines()[0]}"
    return ModeRun(tuple(turns), tuple(synchronised or turns), ended, peak_mb(model.device))


def _warm_up(session: StreamingSession, settings: StreamSettings):
    with settings.endless(session.video_config) as seconds:
        for _ in range(_NUM_WARM_UP_TURNS):
            session.step(next(seconds))
    session.reset()


def _watch(session: StreamingSession, seconds: Iterator[VideoTurn], duration_s: float) -> Iterator[TurnFigures]:
    stats: SessionStats = session.stats
    for _ in range(max(1, round(duration_s / session.video_config.turn_s))):
        with stats.stage("video"):
            second = next(seconds)
        yield watch_turn(session, second)


def _forget_peak(device: torch.device):
    if device.type == "cuda":
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats(device)


def peak_mb(device: torch.device) -> float | None:
    """The most memory of a CUDA device that was in use since it was last forgotten; None elsewhere."""
    return torch.cuda.max_memory_allocated(device) / 2**20 if device.type == "cuda" else None
