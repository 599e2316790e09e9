"""How much a machine bears: frames a second of one stream, and streams at once in one engine."""

import math
import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import CancelledError, Future
from contextlib import suppress
from dataclasses import dataclass, replace
from itertools import cycle, islice, pairwise
from typing import Any, Literal

import torch

from streamingvlm.benchmark.figures import spread
from streamingvlm.benchmark.footage import numbered, turns_of
from streamingvlm.benchmark.modes import StreamSettings
from streamingvlm.benchmark.search import highest
from streamingvlm.config import CacheConfig, VideoConfig, resolve
from streamingvlm.errors import EngineFull
from streamingvlm.inference.engine import Engine
from streamingvlm.inference.limits import is_out_of_memory
from streamingvlm.inference.session import StreamingSession
from streamingvlm.model.loading import StreamingModel
from streamingvlm.video.video_turn import VideoTurn

Given = Mapping[str, Any] | None
# Turns handed over ahead: while one is spoken to, the next can be seen.
_NUM_IN_FLIGHT = 2
# A trial that is this much behind is given up: it only would take longer to fail.
_HOPELESS = 3.0


@dataclass(frozen=True)
class Trial:
    """What came of one load; times_s: of each turn; ended: why it could not be tried to its end, "" if it could."""

    load: int
    times_s: tuple[float, ...]
    passed: bool
    ended: str = ""

    def figures(self) -> dict[str, Any]:
        """As JSON can hold it."""
        return {"load": self.load, "passed": self.passed, "ended": self.ended, "turn": spread(self.times_s)}


def search(try_load: Callable[[int], Trial], *, step: int, most: int) -> dict[str, Any]:
    """The highest load that passes, with the trials in their order."""
    trials: list[Trial] = []

    def passes(load: int) -> bool:
        trials.append(try_load(load))
        return trials[-1].passed

    found = highest(passes, step=step, most=most)
    return {"highest": found, "is_limit_of_search": found + step > most, "trials": [t.figures() for t in trials]}


def most_frames_per_s(
    model: StreamingModel,
    cache: CacheConfig | Given,
    settings: StreamSettings,
    *,
    most: int,
    trial_s: float,
    window: Literal["tokens", "seconds"] = "tokens",
    on_trial: Callable[[Trial], None] | None = None,
) -> dict[str, Any]:
    """Search the most frames a second at which one stream keeps up: the p95 of a turn is no longer than the turn.

    The turns follow each other without a break, one of them handed over ahead.
    window: what of the vision window stays the same at every rate, its tokens or its seconds.
    """
    kept = resolve(CacheConfig, cache, model.stream_defaults)
    usual = resolve(VideoConfig, settings.video, model.stream_defaults)

    def try_rate(frames_per_s: int) -> Trial:
        video = replace(usual, fps=float(frames_per_s))
        share = usual.fps / frames_per_s if window == "tokens" else 1.0
        narrowed = replace(kept, vision_window_s=max(1.0, kept.vision_window_s * share))
        trial = _reported(lambda: _keep_pace(model, narrowed, video, settings, trial_s), frames_per_s, video.turn_s)
        if on_trial:
            on_trial(trial)
        return trial

    step = math.ceil(model.family.temporal_patch_size / usual.turn_s)  # a turn has whole temporal patches
    return search(try_rate, step=step, most=most) | {"window": window}


def _keep_pace(
    model: StreamingModel, cache: CacheConfig, video: VideoConfig, settings: StreamSettings, trial_s: float
) -> list[float]:
    """Seconds from the end of each turn to the end of the next, once the window is full."""
    frames = turns_of(settings.source, video, height=settings.height, width=settings.width)
    num_fill = math.ceil(cache.vision_window_s / video.turn_s) + 1
    num_turns = num_fill + max(2, round(trial_s / video.turn_s))
    with Engine(model, num_slots=1, cache_dtype=cache.dtype) as engine:
        session = engine.open(cache=cache, video=video, sampling=settings.sampling)
        seconds = islice(numbered(cycle(frames), video.turn_s), num_turns)
        in_flight = deque(session.submit(second) for second in islice(seconds, _NUM_IN_FLIGHT))
        ended_at: list[float] = []
        while in_flight and not _is_hopeless(ended_at[num_fill - 1 :], video.turn_s):
            in_flight.popleft().result()
            ended_at.append(time.perf_counter())
            in_flight.extend(session.submit(second) for second in islice(seconds, 1))
    return [later - earlier for earlier, later in pairwise(ended_at[num_fill - 1 :])]


def _is_hopeless(ended_at: Sequence[float], turn_s: float) -> bool:
    return len(ended_at) > 2 and ended_at[-1] - ended_at[0] > _HOPELESS * turn_s * (len(ended_at) - 1)


def _reported(measure: Callable[[], list[float]], load: int, limit_s: float) -> Trial:
    """Run a trial; memory that is spent is what it found out."""
    try:
        times_s = measure()
    except Exception as error:
        if not is_out_of_memory(error):
            raise
        return Trial(load, (), False, str(error).splitlines()[0])
    return Trial(load, tuple(times_s), spread(times_s)["p95"] <= limit_s)


def most_streams(
    model: StreamingModel,
    cache: CacheConfig | Given,
    settings: StreamSettings,
    *,
    most: int,
    trial_s: float,
    p95_s: float,
    memory_share: float = 0.9,
    on_trial: Callable[[Trial], None] | None = None,
) -> dict[str, Any]:
    """Search the most live streams of one engine with the p95 of all their turns below ``p95_s``.

    Each stream brings a turn every ``turn_s`` seconds of the wall clock, at a moment of its own, whether or not the
    one before is done. memory_share: of what a CUDA device has free, for the caches.
    """
    memory_bytes = None
    if model.device.type == "cuda":
        memory_bytes = int(torch.cuda.mem_get_info(model.device)[0] * memory_share)

    kept = resolve(CacheConfig, cache, model.stream_defaults)
    with Engine(model, num_slots=most, memory_bytes=memory_bytes, cache_dtype=kept.dtype) as engine:
        crowd = Crowd(engine, kept, settings)

        def try_number(num_streams: int) -> Trial:
            give_up_s = _HOPELESS * p95_s
            trial = _reported(lambda: crowd.watch_(num_streams, trial_s, give_up_s), num_streams, p95_s)
            if on_trial:
                on_trial(trial)
            return trial

        return search(try_number, step=1, most=most) | {"p95_limit_s": p95_s}


class Crowd:
    """Live streams of one engine."""

    def __init__(self, engine: Engine, cache: CacheConfig, settings: StreamSettings):
        self.engine, self.cache, self.settings = engine, cache, settings
        self.video = resolve(VideoConfig, settings.video, engine.model.stream_defaults)
        self.frames = turns_of(settings.source, self.video, height=settings.height, width=settings.width)
        self.streams: list[tuple[StreamingSession, Iterator[VideoTurn]]] = []

    def watch_(self, num_streams: int, duration_s: float, give_up_s: float) -> list[float]:
        """Seconds from when each turn was there to its last word; a turn that was given up counts as it stands."""
        self.resize_(num_streams)
        turn_s, times_s = self.video.turn_s, []
        first_at = time.perf_counter()
        turns: dict[Future, float] = {}
        for turn in range(max(1, round(duration_s / turn_s))):
            for place, (session, seconds) in enumerate(self.streams):
                due_at = first_at + (turn + place / num_streams) * turn_s
                time.sleep(max(0.0, due_at - time.perf_counter()))
                future = session.submit(next(seconds))
                turns[future] = due_at
                future.add_done_callback(lambda _, due_at=due_at: times_s.append(time.perf_counter() - due_at))
            if any(time.perf_counter() - due_at > give_up_s for future, due_at in turns.items() if not future.done()):
                self.leave_()
                break
        for future in turns:
            with suppress(CancelledError):
                future.result()
        return times_s

    def resize_(self, num_streams: int):
        """Open streams and fill their windows, or close some. Raises EngineFull, with as many as before."""
        self._close_but(num_streams)
        num_open = len(self.streams)
        try:
            while len(self.streams) < num_streams:
                self.streams.append(self._opened())
        except EngineFull:
            self._close_but(num_open)
            raise
        num_fill = math.ceil(self.cache.vision_window_s / self.video.turn_s) + 1
        filling = [
            session.submit(next(seconds)) for _ in range(num_fill) for session, seconds in self.streams[num_open:]
        ]
        for future in filling:
            future.result()

    def _opened(self) -> tuple[StreamingSession, Iterator[VideoTurn]]:
        session = self.engine.open(cache=self.cache, video=self.video, sampling=self.settings.sampling)
        return session, numbered(cycle(_from(self.frames, 7 * len(self.streams))), self.video.turn_s)

    def _close_but(self, num_streams: int):
        for session, _ in self.streams[num_streams:]:
            session.close()
        del self.streams[num_streams:]

    def leave_(self):
        """Close all streams, with what they wait for."""
        self._close_but(0)


def _from(frames: Sequence[torch.Tensor], first: int) -> list[torch.Tensor]:
    """The same turns, begun at another: streams do not speak at the same time."""
    first %= len(frames)
    return [*frames[first:], *frames[:first]]


def measure_batching(
    model: StreamingModel,
    cache: CacheConfig | Given,
    settings: StreamSettings,
    *,
    num_streams: int,
    num_turns: int,
    num_repeats: int,
) -> dict[str, Any]:
    """Measure an engine of so many streams against as many sessions in turn, by turns, their windows full.

    Returns the seconds of work that a turn of all streams takes on either side, and the ratio in each repeat.
    """
    video = resolve(VideoConfig, settings.video, model.stream_defaults)
    frames = turns_of(settings.source, video, height=settings.height, width=settings.width)
    kept = resolve(CacheConfig, cache, model.stream_defaults)
    opening = {"cache": kept, "video": video, "sampling": settings.sampling}
    engine = Engine(model, num_slots=num_streams, cache_dtype=kept.dtype)
    together = [engine.open(**opening) for _ in range(num_streams)]
    alone = [StreamingSession(model, **opening) for _ in range(num_streams)]
    footage = [
        [numbered(cycle(_from(frames, 7 * place)), video.turn_s) for place in range(num_streams)] for _ in range(2)
    ]
    num_fill = math.ceil(together[0].cache_config.vision_window_s / video.turn_s) + 1
    repeats = []
    for turns in (num_fill, *[num_turns] * num_repeats):
        in_turn_s = _timed(lambda turns=turns: _in_turn(alone, footage[0], turns))
        batched_s = _timed(lambda turns=turns: _batched(engine, together, footage[1], turns))
        repeats.append((in_turn_s / turns, batched_s / turns))
    measured = repeats[1:]
    return {
        "num_streams": num_streams,
        "num_threads": torch.get_num_threads(),
        "in_turn_s": [round(in_turn_s, 6) for in_turn_s, _ in measured],
        "batched_s": [round(batched_s, 6) for _, batched_s in measured],
        "ratio": spread(in_turn_s / batched_s for in_turn_s, batched_s in measured),
        "ratios": [round(in_turn_s / batched_s, 4) for in_turn_s, batched_s in measured],
    }


def _timed(work: Callable[[], None]) -> float:
    started = time.perf_counter()
    work()
    return time.perf_counter() - started


def _in_turn(sessions: Sequence[StreamingSession], footage: Sequence[Iterator[VideoTurn]], num_turns: int):
    for _ in range(num_turns):
        for session, seconds in zip(sessions, footage, strict=True):
            session.step(next(seconds))


def _batched(
    engine: Engine, sessions: Sequence[StreamingSession], footage: Sequence[Iterator[VideoTurn]], num_turns: int
):
    for _ in range(num_turns):
        futures = [session.submit(next(seconds)) for session, seconds in zip(sessions, footage, strict=True)]
        engine.run()
        for future in futures:
            future.result()
