"""Measure one turn of a stream: when each token arrived, and how many tokens were prefilled."""

import time
from dataclasses import dataclass
from itertools import pairwise

import psutil
import torch

from streamingvlm.inference.session import StreamingSession
from streamingvlm.inference.stats import SessionStats
from streamingvlm.video.video_turn import VideoTurn

_BYTES_PER_MB = 1024 * 1024


@dataclass(frozen=True, slots=True)
class TurnMetrics:
    """Measurements of one turn.

    latency_s: from the frames to the last token. stages: seconds by stage. inter_token_s: from each token to the next.
    num_tokens: generated. num_prefill_tokens: prefilled in this turn. num_context_tokens: in the cache after prefill.
    grid: merged (t, h, w) of the new vision tokens.
    """

    start_s: float
    latency_s: float
    stages: dict[str, float]
    inter_token_s: tuple[float, ...]
    num_tokens: int
    num_prefill_tokens: int
    num_context_tokens: int
    grid: tuple[int, int, int]
    resident_mb: float

    @property
    def token_s(self) -> float:
        """Latency of the turn per generated token, vision and prefill included, as in the paper."""
        return self.latency_s / max(1, self.num_tokens)


class SynchronizedStats(SessionStats):
    """Stage times with a CUDA synchronization at the end of each stage.

    Kernels are then charged to the stage that launched them. The synchronization removes overlap, so total latency is
    not measured in these turns.
    """

    def record_stage(self, name: str, duration_s: float):
        started = time.perf_counter()
        torch.cuda.synchronize()
        super().record_stage(name, duration_s + time.perf_counter() - started)


def measure_turn(session: StreamingSession, video_turn: VideoTurn) -> TurnMetrics:
    """Run one turn of a session and return its measurements."""
    request = session.turn_request(video_turn)
    line = session.engine.submit_and_wait(request)
    return TurnMetrics(
        start_s=line.start_s,
        latency_s=line.latency_s,
        stages=session.stats.latest,
        inter_token_s=tuple(later - earlier for earlier, later in pairwise(request.token_times)),
        num_tokens=line.num_tokens,
        num_prefill_tokens=request.num_prefill_tokens,
        num_context_tokens=request.num_context_tokens,
        grid=request.turn.grid,
        resident_mb=psutil.Process().memory_info().rss / _BYTES_PER_MB,
    )
