"""Compare an engine that batches N streams with N sessions that run one after the other."""

import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch

from streamingvlm.benchmark.endless_footage import load_turns, loop_from, with_timestamps
from streamingvlm.benchmark.load import LOOP_OFFSET_TURNS, CacheSettings, turns_to_fill
from streamingvlm.benchmark.mode_summary import percentiles
from streamingvlm.benchmark.modes import StreamSettings
from streamingvlm.config import CacheConfig, VideoConfig, resolve
from streamingvlm.inference.engine import Engine
from streamingvlm.inference.session import StreamingSession
from streamingvlm.model.loading import StreamingModel
from streamingvlm.video.video_turn import VideoTurn

Footage = Sequence[Iterator[VideoTurn]]


def measure_batching(
    model: StreamingModel,
    cache: CacheSettings,
    settings: StreamSettings,
    *,
    num_streams: int,
    num_turns: int,
    num_repeats: int,
) -> dict[str, Any]:
    """Run the same turns on both sides, alternating, with full windows.

    Alternating in one process exposes both sides to the same disturbances of the machine.
    Returns the seconds that one turn of all streams takes on each side, and their ratio in each repeat.
    """
    video = resolve(VideoConfig, settings.video, model.stream_defaults)
    cache = resolve(CacheConfig, cache, model.stream_defaults)
    stream_options = {"cache": cache, "video": video, "sampling": settings.sampling}
    engine = Engine(model, num_slots=num_streams, cache_dtype=cache.dtype)
    batched = [StreamingSession(engine.model, engine=engine, **stream_options) for _ in range(num_streams)]
    sequential = [StreamingSession(model, **stream_options) for _ in range(num_streams)]
    frames = load_turns(settings.source, video, height=settings.height, width=settings.width)
    footage = [
        [with_timestamps(loop_from(frames, LOOP_OFFSET_TURNS * i), video.turn_s) for i in range(num_streams)]
        for _ in range(2)
    ]
    repeats = []
    for turns in (turns_to_fill(cache, video), *[num_turns] * num_repeats):
        sequential_s = _seconds(lambda turns=turns: _run_sequential(sequential, footage[0], turns))
        batched_s = _seconds(lambda turns=turns: _run_batched(engine, batched, footage[1], turns))
        repeats.append((sequential_s / turns, batched_s / turns))
    return _summary(num_streams, repeats[1:])


def _summary(num_streams: int, repeats: Sequence[tuple[float, float]]) -> dict[str, Any]:
    ratios = [sequential_s / batched_s for sequential_s, batched_s in repeats]
    return {
        "num_streams": num_streams,
        "num_threads": torch.get_num_threads(),
        "sequential_s": [round(sequential_s, 6) for sequential_s, _ in repeats],
        "batched_s": [round(batched_s, 6) for _, batched_s in repeats],
        "ratio": percentiles(ratios),
        "ratios": [round(ratio, 4) for ratio in ratios],
    }


def _seconds(work: Callable[[], None]) -> float:
    started = time.perf_counter()
    work()
    return time.perf_counter() - started


def _run_sequential(sessions: Sequence[StreamingSession], footage: Footage, num_turns: int):
    for _ in range(num_turns):
        for session, video_turns in zip(sessions, footage, strict=True):
            session.step(next(video_turns))


def _run_batched(engine: Engine, sessions: Sequence[StreamingSession], footage: Footage, num_turns: int):
    for _ in range(num_turns):
        futures = [session.submit(next(video_turns)) for session, video_turns in zip(sessions, footage, strict=True)]
        engine.run_until_idle()
        for future in futures:
            future.result()
