"""One stream of video, watched second by second: the notebook's handle.

The weights and the stream are two objects. A session holds all that changes while a stream runs, and nothing else does.
It is a slot of an engine (engine.py): of one of its own, or of one that serves many streams.
"""

import math
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future
from dataclasses import replace
from pathlib import Path
from typing import Any, TypeVar

import torch

from streamingvlm.cache.layout import CacheLayout
from streamingvlm.config import CacheConfig, LiveConfig, SamplingConfig, VideoConfig, at_least, resolve
from streamingvlm.errors import ConfigError
from streamingvlm.inference.ahead import follow_ahead
from streamingvlm.inference.asking import QUESTION_ROOM_TOKENS, AskJob, WeighJob
from streamingvlm.inference.commentary import Commentary
from streamingvlm.inference.decoder import StreamingDecoder
from streamingvlm.inference.engine import Engine
from streamingvlm.inference.job import HeardTurn, SpokenTurn
from streamingvlm.inference.sampling import Sampler
from streamingvlm.inference.setup import StreamSetup
from streamingvlm.inference.snapshot import SaveJob, SnapshotKeeper, read_settings, restore_
from streamingvlm.inference.stats import SessionStats
from streamingvlm.model.loading import StreamingModel, load_model
from streamingvlm.turns import Turn
from streamingvlm.video.clock import VideoTurn
from streamingvlm.video.live import LiveReader, PushedFrames, open_source
from streamingvlm.video.reader import VideoReader

LineT = TypeVar("LineT", bound=Commentary)


class StreamingSession:
    """Watches one stream with one model and says what happens, from a cache that stays within its bound.

    query: an instruction that stands for the whole stream; it may be set anew at any time, from any thread, and is told
    with the next turn, in which the one before it leaves the cache.
    previous_text: what was said before the stream began.
    on_token: called with each new piece of text as it is decoded, in the thread that runs the model.
    autosave: a folder in which a snapshot is kept, up to date after every turn.
    engine: the engine that serves the stream, by default one of its own; ``Engine.open`` gives it.
    """

    def __init__(
        self,
        model: StreamingModel,
        *,
        cache: CacheConfig | Mapping[str, Any] | None = None,
        video: VideoConfig | Mapping[str, Any] | None = None,
        sampling: SamplingConfig | Mapping[str, Any] | None = None,
        query: str = "",
        previous_text: str = "",
        on_token: Callable[[str], None] | None = None,
        autosave: str | Path | None = None,
        engine: Engine | None = None,
    ):
        setup = StreamSetup.of(
            model, cache=cache, video=video, sampling=sampling, query=query, previous_text=previous_text
        )
        self.model = model
        self.video_config, self.sampling_config = setup.video, setup.sampling
        self.query = query
        self.previous_text = previous_text
        self.on_token = on_token
        self.reader: VideoReader | LiveReader | None = None
        self.vision = setup.vision
        self.format = setup.format
        self._setup = setup
        self._capacity_tokens = setup.capacity_tokens()
        self._keeper = None if autosave is None else SnapshotKeeper(autosave)
        self.is_closed = False  # written by the engine
        self.engine = Engine(model, num_slots=1, cache_dtype=setup.cache.dtype) if engine is None else engine
        if setup.cache.dtype not in (None, self.engine.cache_dtype):
            raise ConfigError(f"cache.dtype={setup.cache.dtype} is not that of the engine; give it to the engine, too")
        self.cache_config = replace(setup.cache, dtype=self.engine.cache_dtype)
        kv, self.slot = self.engine.admit_(self, self._capacity_tokens and self._capacity_tokens + QUESTION_ROOM_TOKENS)
        self.decoder = StreamingDecoder(model, self.cache_config, kv)
        self.sampler = Sampler(self.sampling_config, self.engine.runner.seen, self.slot)
        self.reset()
        self.engine.warm_(self)

    @classmethod
    def from_pretrained(
        cls,
        name: str | Path,
        *,
        device: str | None = None,
        dtype: str | torch.dtype | None = None,
        quantization: str | None = None,
        **settings,
    ) -> "StreamingSession":
        """Load a model ("pitch", a folder or a hub name) and open a session on it.

        device, dtype, quantization: as `load_model` takes them; ``settings`` are those of the constructor. Raises
        CheckpointError and ConfigError, each with its remedy.
        """
        weights = {"device": device, "dtype": dtype, "quantization": quantization}
        return cls(load_model(name, **weights), **settings)

    @classmethod
    def load(cls, path: str | Path, *, model: StreamingModel, **settings) -> "StreamingSession":
        """Take up the stream of a snapshot: the tokens to come are those of a stream that was never stopped.

        ``settings`` are those of the constructor that a snapshot does not hold: on_token, engine, and autosave, which
        may be the folder itself. Raises SnapshotError for a snapshot of another model or version, and a damaged one.
        """
        session = cls(model, **read_settings(path, model), **settings)
        try:
            with session.engine.without(session):
                restore_(session, path)
        except BaseException:
            session.close()
            raise
        return session

    def save(self, path: str | Path):
        """Write a snapshot of the stream into a folder, in place of the one that is there.

        From any thread, between two turns. Raises SnapshotError where it cannot be written.
        """
        is_kept = self._keeper is not None and self._keeper.path.resolve() == Path(path).resolve()
        self.engine.do(SaveJob(self, self._keeper if is_kept else SnapshotKeeper(path)))

    @property
    def end_s(self) -> float:
        """Stream time at which the last turn ended, 0 before the first."""
        return self.layout.segments[-1].end_s if self.num_turns else 0.0

    def reset(self):
        """Begin anew: an empty cache, the clock at 0, the random stream of the seed from its start.

        What was submitted and is not done yet is cancelled.
        """
        with self.engine.without(self):
            self.decoder.clear_()
            self.sampler.reset_()
            self.num_turns = 0
            self.told_query = ""  # the query that the stream knows of
            self.stats = SessionStats(capacity_tokens=self._capacity_tokens)

    def close(self):
        """Leave the engine: its memory is another stream's. What was submitted and is not done yet is cancelled."""
        self.engine.dismiss_(self)

    def __enter__(self) -> "StreamingSession":
        return self

    def __exit__(self, *_exception):
        self.close()

    @property
    def layout(self) -> CacheLayout:
        """What the cache holds; printed, it is a table."""
        return self.decoder.layout

    def stream(
        self,
        source: str | Path | PushedFrames | Iterable[VideoTurn],
        *,
        start_s: float = 0.0,
        live: LiveConfig | Mapping[str, Any] | None = None,
        step: Callable[[VideoTurn], LineT] | None = None,
    ) -> Iterator[LineT]:
        """Watch a source and yield a Commentary a turn, silent ones included.

        source: a file; an address (rtsp, rtsps, rtmp, http, https); "webcam"; "-", a pipe on standard input; frames
        that are pushed; or seconds from any iterable. start_s: where in a file to begin, ``end_s`` for a stream that is
        taken up again. live: how what does not wait is received, and what is done when the model is late. step: what to
        do with each second, and what to yield, in place of the session's own ``step``. Raises VideoError before the
        first turn where the source cannot be watched.
        """
        if not isinstance(source, str | Path | PushedFrames):
            yield from self._follow(iter(source), step)
            return
        config = self.video_config
        with open_source(
            source,
            fps=config.fps,
            turn_s=config.turn_s,
            decoder=config.decoder,
            prefetch=config.prefetch,
            start_s=start_s,
            live=resolve(LiveConfig, live, {}),
        ) as self.reader:
            yield from self._follow(self.reader, step)

    def _follow(self, seconds: Iterator[VideoTurn], step: Callable[[VideoTurn], LineT] | None) -> Iterator[LineT]:
        if step is None and self.engine.looks_ahead:
            yield from follow_ahead(self, seconds)
            return
        step = step or self.step
        while True:
            with self.stats.stage("video"):
                second = next(seconds, None)
            if second is None:
                return
            yield step(second)

    def step(
        self, frames: torch.Tensor | VideoTurn, *, question: str = "", max_new_tokens: int | None = None
    ) -> Commentary:
        """Take in one turn of video and speak.

        frames: uint8 [F, 3, H, W], RGB, ``fps * turn_s`` of them; they are taken to follow the turn before. A Second
        brings its own times. Raises VideoError for frames of another shape.
        question: asked in this turn, after the video; it goes from the cache with the turn, unlike the query, and the
        answer becomes previous text as all that is said. The cache grows where the question does not fit.
        max_new_tokens: the most tokens of this turn's reply, where they are not as many as in other turns.
        """
        return self.engine.do(self.spoken_turn(frames, question, max_new_tokens))

    def submit(
        self, frames: torch.Tensor | VideoTurn, *, question: str = "", max_new_tokens: int | None = None
    ) -> Future[Commentary]:
        """Hand over one turn, as ``step`` does, and go on; turns of a stream are taken in the order of their coming.

        The turn is done by the engine's worker, or where there is none by whoever next waits for the engine.
        """
        return self.engine.submit(self.spoken_turn(frames, question, max_new_tokens))

    def hear(self, frames: torch.Tensor | VideoTurn, words: str, *, question: str = "") -> Commentary:
        """Take in one turn of video and a reply in given words, "" for silence: they are fed, nothing is generated.

        The cache then holds what it would had the model said these words; no random number is drawn. The rest is as
        in ``step``.
        """
        return self.engine.do(HeardTurn(self, frames, words, question))

    def submit_heard(self, frames: torch.Tensor | VideoTurn, words: str, *, question: str = "") -> Future[Commentary]:
        """Hand over one turn with its words, as ``hear`` does, and go on."""
        return self.engine.submit(HeardTurn(self, frames, words, question))

    def ask(self, question: str, *, max_new_tokens: int | None = None) -> str:
        """Answer a question of what was seen and said so far; the stream goes on as if nobody had asked.

        From any thread: the answer comes between two turns of a running ``stream``, which waits meanwhile and then goes
        on token for token. max_new_tokens: by default as many as of a turn, for the sake of that wait. A question that
        is to join the stream, answer and all, is ``step(question=...)``.
        """
        return self.engine.do(self._ask_job(question, max_new_tokens))

    def submit_question(self, question: str, *, max_new_tokens: int | None = None) -> Future[str]:
        """Hand over a question, as ``ask`` does, and go on; the turns that were handed over before it come first."""
        return self.engine.submit(self._ask_job(question, max_new_tokens))

    def weigh(self, question: str, choices: Sequence[str] = ("yes", "no")) -> list[float]:
        """How probable each choice is as the first word of the answer that ``ask`` would get; nothing is drawn.

        From any thread, as ``ask``. Raises ConfigError for choices that begin alike.
        """
        return self.engine.do(WeighJob(self, question, choices))

    def _ask_job(self, question: str, max_new_tokens: int | None) -> AskJob:
        limit = self.sampling_config.max_new_tokens if max_new_tokens is None else max_new_tokens
        at_least("max_new_tokens", limit, 1, "tokens an answer")
        return AskJob(self, question, limit)

    def spoken_turn(
        self, frames: torch.Tensor | VideoTurn, question: str = "", max_new_tokens: int | None = None
    ) -> SpokenTurn:
        """Return the job of one turn, as ``step`` takes it, to be submitted to the engine."""
        if max_new_tokens is None:
            detail = frames.detail if isinstance(frames, VideoTurn) else 1.0
            max_new_tokens = math.ceil(self.sampling_config.max_new_tokens * detail)
        at_least("max_new_tokens", max_new_tokens, 1, "tokens a turn")
        return SpokenTurn(self, frames, question, max_new_tokens)

    def query_told_(self, query: str):
        """Take note that the stream knows of a standing query, which may be longer than the one before."""
        if query != self.told_query:
            self._capacity_tokens = replace(self._setup, query=query).capacity_tokens()
            self.stats.capacity_tokens = self._capacity_tokens
        self.told_query = query

    def turn_done_(
        self,
        turn: Turn,
        started: float,
        text: str,
        num_tokens: int,
        *,
        silence: float | None = None,
        shown: VideoTurn | None = None,
    ) -> Commentary:
        """Count a turn that was closed.

        started: when it was handed over, by the performance counter; shown: the Second that was seen, its frames gone.
        """
        self.num_turns += 1
        line = Commentary(
            turn.start_s, turn.end_s, text, num_tokens, time.perf_counter() - started, silence, **_lag_of(shown)
        )
        self.stats.turn_done_(
            stream_s=turn.end_s - turn.start_s,
            latency_s=line.latency_s,
            num_tokens=num_tokens,
            cache_tokens=self.decoder.num_tokens,
        )
        self.stats.live_turn_done_(age_s=line.age_s, dropped_s=line.dropped_s, coalesced_s=line.coalesced_s)
        if self._keeper:
            with self.stats.stage("autosave"):
                self._keeper.save_(self)
        return line


def _lag_of(shown: VideoTurn | None) -> dict[str, float | None]:
    """What a line tells of how late it is."""
    if shown is None:
        return {}
    return {
        "age_s": None if shown.captured_s is None else time.monotonic() - shown.captured_s,
        "dropped_s": shown.dropped_s,
        "coalesced_s": shown.coalesced_s,
        "detail": shown.detail,
    }
