"""A turn that keeps what the benchmark asks of it: when each token came, and how much was read for it."""

import time
from dataclasses import dataclass
from itertools import pairwise

import psutil
import torch

from streamingvlm.inference.job import SpokenTurn
from streamingvlm.inference.session import StreamingSession
from streamingvlm.inference.stats import SessionStats
from streamingvlm.video.video_turn import VideoTurn

_BYTES_PER_MB = 1024 * 1024


@dataclass(frozen=True, slots=True)
class TurnFigures:
    """What was measured of one turn.

    latency_s: from the frames to the last word; stages: seconds by stage; between_tokens_s: from a token to the next.
    num_fed: tokens prefilled; num_seen: tokens in the cache when the reply began; grid: merged (t, h, w) of the new
    vision tokens.
    """

    start_s: float
    latency_s: float
    stages: dict[str, float]
    between_tokens_s: tuple[float, ...]
    num_tokens: int
    num_fed: int
    num_seen: int
    grid: tuple[int, int, int]
    resident_mb: float

    @property
    def token_s(self) -> float:
        """Seconds of work a generated token, vision and prefill included, as the paper counts it."""
        return self.latency_s / max(1, self.num_tokens)


class TimedTurn(SpokenTurn):
    """A turn of a stream, measured; it is submitted as any other."""

    def __init__(self, session: StreamingSession, second: VideoTurn):
        super().__init__(session, second, "", session.sampling_config.max_new_tokens)
        self.token_at: list[float] = []
        self.num_fed = self.num_seen = 0

    def open_(self):
        super().open_()
        self.num_fed = sum(map(len, self.decoder.waiting()))
        self.num_seen = self.decoder.num_tokens

    def take_(self, token: int):
        super().take_(token)
        self.token_at.append(time.perf_counter())


class SynchronisedStats(SessionStats):
    """Counts what a CUDA device does to the stage that asked for it; to wait for it costs what overlap would gain."""

    def spent_(self, name: str, spent_s: float):
        asked = time.perf_counter()
        torch.cuda.synchronize()
        super().spent_(name, spent_s + time.perf_counter() - asked)


def watch_turn(session: StreamingSession, second: VideoTurn) -> TurnFigures:
    """Let a session watch a turn, and measure it."""
    job = TimedTurn(session, second)
    session.engine.submit(job)
    said = session.engine.wait_for(job)
    return TurnFigures(
        start_s=said.start_s,
        latency_s=said.latency_s,
        stages=session.stats.newest,
        between_tokens_s=tuple(later - earlier for earlier, later in pairwise(job.token_at)),
        num_tokens=said.num_tokens,
        num_fed=job.num_fed,
        num_seen=job.num_seen,
        grid=job.turn.grid,
        resident_mb=psutil.Process().memory_info().rss / _BYTES_PER_MB,
    )
