"""The highest load a machine sustains: frames per second of one stream, and concurrent streams of one engine."""

import math
import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import CancelledError, Future
from contextlib import suppress
from dataclasses import dataclass, replace
from functools import partial
from itertools import cycle, islice, pairwise
from typing import Any, Literal

import torch

from streamingvlm.benchmark.endless_footage import load_turns, loop_from, with_timestamps
from streamingvlm.benchmark.mode_summary import percentiles
from streamingvlm.benchmark.modes import StreamSettings
from streamingvlm.benchmark.search import highest_passing
from streamingvlm.config import CacheConfig, VideoConfig, resolve
from streamingvlm.errors import EngineFull
from streamingvlm.inference.engine import Engine
from streamingvlm.inference.limits import is_out_of_memory
from streamingvlm.inference.session import StreamingSession
from streamingvlm.model.loading import StreamingModel
from streamingvlm.video.video_turn import VideoTurn

CacheSettings = CacheConfig | Mapping[str, Any] | None
# Turns submitted ahead, so that the vision of the next turn can overlap with the decoding of this one.
_NUM_IN_FLIGHT = 2
# A trial stops once it is this many times slower than allowed: it cannot pass any more.
_GIVE_UP_FACTOR = 3.0
# Streams of one engine start their loops this many turns apart.
LOOP_OFFSET_TURNS = 7


@dataclass(frozen=True)
class Trial:
    """The result of one load.

    latencies_s: of each turn. stop_reason: why the trial stopped early, "" if it did not.
    """

    load: int
    latencies_s: tuple[float, ...]
    passed: bool
    stop_reason: str = ""

    def summary(self) -> dict[str, Any]:
        """Return the trial as values that JSON can hold."""
        return {
            "load": self.load,
            "passed": self.passed,
            "stop_reason": self.stop_reason,
            "turn": percentiles(self.latencies_s),
        }


def search_load(try_load: Callable[[int], Trial], *, step: int, limit: int) -> dict[str, Any]:
    """Search the highest load that passes; return it with all trials, in the order in which they ran."""
    trials: list[Trial] = []

    def passes(load: int) -> bool:
        trials.append(try_load(load))
        return trials[-1].passed

    found = highest_passing(passes, step=step, limit=limit)
    return {"highest": found, "is_limit_of_search": found + step > limit, "trials": [t.summary() for t in trials]}


def max_frames_per_s(
    model: StreamingModel,
    cache: CacheSettings,
    settings: StreamSettings,
    *,
    search_limit: int,
    trial_s: float,
    window: Literal["tokens", "seconds"] = "tokens",
    on_trial: Callable[[Trial], None] | None = None,
) -> dict[str, Any]:
    """Search the highest frame rate at which the p95 latency of one stream is at most the duration of a turn.

    Turns follow each other without a pause, one of them submitted ahead.
    window: what the vision window keeps constant at every rate, its tokens or its seconds.
    """
    full_cache = resolve(CacheConfig, cache, model.stream_defaults)
    base_video = resolve(VideoConfig, settings.video, model.stream_defaults)

    def try_rate(frames_per_s: int) -> Trial:
        video = replace(base_video, fps=float(frames_per_s))
        share = base_video.fps / frames_per_s if window == "tokens" else 1.0
        scaled = replace(full_cache, vision_window_s=max(1.0, full_cache.vision_window_s * share))
        measure = partial(_stream_back_to_back, model, scaled, video, settings, trial_s)
        trial = _run_trial(measure, frames_per_s, video.turn_s)
        if on_trial:
            on_trial(trial)
        return trial

    step = math.ceil(model.family.temporal_patch_size / base_video.turn_s)  # a turn has whole temporal patches
    return search_load(try_rate, step=step, limit=search_limit) | {"window": window}


def _stream_back_to_back(
    model: StreamingModel, cache: CacheConfig, video: VideoConfig, settings: StreamSettings, trial_s: float
) -> list[float]:
    """Return the seconds from the end of each turn to the end of the next, once the window is full."""
    frames = load_turns(settings.source, video, height=settings.height, width=settings.width)
    num_fill = turns_to_fill(cache, video)
    num_turns = num_fill + max(2, round(trial_s / video.turn_s))
    with Engine(model, num_slots=1, cache_dtype=cache.dtype) as engine:
        session = StreamingSession(engine.model, engine=engine, cache=cache, video=video, sampling=settings.sampling)
        footage = islice(with_timestamps(cycle(frames), video.turn_s), num_turns)
        in_flight = deque(session.submit(video_turn) for video_turn in islice(footage, _NUM_IN_FLIGHT))
        finished_at: list[float] = []
        while in_flight and not _cannot_pass(finished_at[num_fill - 1 :], video.turn_s):
            in_flight.popleft().result()
            finished_at.append(time.perf_counter())
            in_flight.extend(session.submit(video_turn) for video_turn in islice(footage, 1))
    return [later - earlier for earlier, later in pairwise(finished_at[num_fill - 1 :])]


def turns_to_fill(cache: CacheConfig, video: VideoConfig) -> int:
    """Return the number of turns after which the vision window is full and evicts."""
    return math.ceil(cache.vision_window_s / video.turn_s) + 1


def _cannot_pass(finished_at: Sequence[float], turn_s: float) -> bool:
    num_turns = len(finished_at) - 1
    return num_turns > 1 and finished_at[-1] - finished_at[0] > _GIVE_UP_FACTOR * turn_s * num_turns


def _run_trial(measure: Callable[[], list[float]], load: int, limit_s: float) -> Trial:
    """Run a trial; running out of memory fails the trial instead of the benchmark."""
    try:
        latencies_s = measure()
    except Exception as error:
        if not is_out_of_memory(error):
            raise
        return Trial(load, (), False, str(error).splitlines()[0])
    return Trial(load, tuple(latencies_s), percentiles(latencies_s)["p95"] <= limit_s)


def max_streams(
    model: StreamingModel,
    cache: CacheSettings,
    settings: StreamSettings,
    *,
    search_limit: int,
    trial_s: float,
    p95_s: float,
    memory_share: float = 0.9,
    on_trial: Callable[[Trial], None] | None = None,
) -> dict[str, Any]:
    """Search the highest number of live streams of one engine with the p95 latency of all turns below ``p95_s``.

    Each stream submits a turn every ``turn_s`` seconds of wall-clock time, whether or not its previous turn has
    finished; the streams are spread evenly over the turn. memory_share: of the free memory of a CUDA device, for the
    caches.
    """
    memory_bytes = None
    if model.device.type == "cuda":
        memory_bytes = int(torch.cuda.mem_get_info(model.device)[0] * memory_share)

    cache = resolve(CacheConfig, cache, model.stream_defaults)
    with Engine(model, num_slots=search_limit, memory_bytes=memory_bytes, cache_dtype=cache.dtype) as engine:
        generator = LoadGenerator(engine, cache, settings)

        def try_number(num_streams: int) -> Trial:
            give_up_s = _GIVE_UP_FACTOR * p95_s
            trial = _run_trial(partial(generator.run, num_streams, trial_s, give_up_s), num_streams, p95_s)
            if on_trial:
                on_trial(trial)
            return trial

        return search_load(try_number, step=1, limit=search_limit) | {"p95_limit_s": p95_s}


class LoadGenerator:
    """A variable number of live streams on one engine."""

    def __init__(self, engine: Engine, cache: CacheConfig, settings: StreamSettings):
        self.engine, self.cache, self.settings = engine, cache, settings
        self.video = resolve(VideoConfig, settings.video, engine.model.stream_defaults)
        self.frames = load_turns(settings.source, self.video, height=settings.height, width=settings.width)
        self.streams: list[tuple[StreamingSession, Iterator[VideoTurn]]] = []

    def run(self, num_streams: int, duration_s: float, give_up_s: float) -> list[float]:
        """Return the latency of each turn, from its scheduled start to its end.

        A turn that exceeds ``give_up_s`` ends the run; pending turns then count with the time they have waited.
        """
        self.resize(num_streams)
        turn_s, latencies_s = self.video.turn_s, []
        first_at = time.perf_counter()
        due_at_of: dict[Future, float] = {}
        for turn in range(max(1, round(duration_s / turn_s))):
            for index, (session, footage) in enumerate(self.streams):
                due_at = first_at + (turn + index / num_streams) * turn_s
                time.sleep(max(0.0, due_at - time.perf_counter()))
                future = session.submit(next(footage))
                due_at_of[future] = due_at
                future.add_done_callback(lambda _, due_at=due_at: latencies_s.append(time.perf_counter() - due_at))
            if _any_late(due_at_of, give_up_s):
                self.close()
                break
        for future in due_at_of:
            with suppress(CancelledError):
                future.result()
        return latencies_s

    def resize(self, num_streams: int):
        """Open streams and fill their windows, or close some. Raises EngineFull and keeps the number of streams."""
        self._close_from(num_streams)
        num_open = len(self.streams)
        try:
            while len(self.streams) < num_streams:
                self.streams.append(self._open_stream())
        except EngineFull:
            self._close_from(num_open)
            raise
        opened = self.streams[num_open:]
        num_fill = turns_to_fill(self.cache, self.video)
        filling = [session.submit(next(footage)) for _ in range(num_fill) for session, footage in opened]
        for future in filling:
            future.result()

    def close(self):
        """Close all streams and cancel their pending turns."""
        self._close_from(0)

    def _open_stream(self) -> tuple[StreamingSession, Iterator[VideoTurn]]:
        session = StreamingSession(
            self.engine.model, engine=self.engine, cache=self.cache, video=self.video, sampling=self.settings.sampling
        )
        return session, with_timestamps(
            loop_from(self.frames, LOOP_OFFSET_TURNS * len(self.streams)), self.video.turn_s
        )

    def _close_from(self, first: int):
        for session, _ in self.streams[first:]:
            session.close()
        del self.streams[first:]


def _any_late(due_at_of: Mapping[Future, float], give_up_s: float) -> bool:
    return any(time.perf_counter() - due_at > give_up_s for future, due_at in due_at_of.items() if not future.done())
