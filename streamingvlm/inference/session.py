"""StreamingSession: watch one stream of video turn by turn, and say what happens.

Weights and stream are two objects: a StreamingModel may serve many sessions. A session is a stream of an engine
(engine.py), its own or one that serves others, too.
"""

import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future
from dataclasses import replace
from pathlib import Path
from typing import Any, TypeVar, Unpack

import torch

from streamingvlm.cache.layout import CacheLayout
from streamingvlm.config import CacheConfig, LiveConfig, SamplingConfig, VideoConfig, at_least, resolve
from streamingvlm.errors import ConfigError
from streamingvlm.inference.commentary import Commentary
from streamingvlm.inference.engine import Engine
from streamingvlm.inference.fork_requests import ForkQuestion, ScoreChoices
from streamingvlm.inference.pipelining import pipelined
from streamingvlm.inference.requests import ForcedTurn, GenerateTurn
from streamingvlm.inference.snapshot import SnapshotWriter, read_settings, restore
from streamingvlm.inference.stats import SessionStats
from streamingvlm.inference.stream import Stream, StreamView
from streamingvlm.inference.stream_config import SessionSettings, StreamConfig
from streamingvlm.model.loading import StreamingModel, check_is_loaded, load_model
from streamingvlm.model.vision import VisionEncoder
from streamingvlm.turns import TurnFormat
from streamingvlm.video.frame_tensors import Frames, group_frames
from streamingvlm.video.live import LiveReader, PushedFrames, open_source
from streamingvlm.video.reader import VideoReader
from streamingvlm.video.video_turn import VideoTurn

ResultT = TypeVar("ResultT")


class StreamingSession:
    """Watches one stream with one model, from a cache of bounded size.

    cache, video, sampling: settings, or a part of them; the checkpoint's own and then the defaults fill the rest. The
        name of a policy, such as cache="window", is short for {"policy": "window"}.
    query: the standing instruction. It may be set at any time, from any thread: it enters the cache with the next turn,
        and the one before leaves.
    previous_text: what was said before the stream began.
    on_token: called with each new piece of text as it is decoded, in the thread that runs the model.
    autosave: a folder with a snapshot of the stream, updated after every turn.
    engine: the engine that serves the stream, by default one of its own.

    Raises ConfigError for wrong settings, EngineFull if the engine has no room.
    """

    def __init__(
        self,
        model: StreamingModel,
        *,
        cache: CacheConfig | Mapping[str, Any] | str | None = None,
        video: VideoConfig | Mapping[str, Any] | None = None,
        sampling: SamplingConfig | Mapping[str, Any] | None = None,
        query: str = "",
        previous_text: str = "",
        on_token: Callable[[str], None] | None = None,
        autosave: str | Path | None = None,
        engine: Engine | None = None,
    ):
        check_is_loaded(model, "StreamingSession.from_pretrained({!r}, ...)")
        if engine is not None and engine.model is not model:
            raise ConfigError("the engine runs another model than the session's; give engine.model as the model")
        config = StreamConfig.resolve(model, cache=cache, video=video, sampling=sampling)
        self.model = model
        self.reader: VideoReader | LiveReader | None = None
        self._autosave = None if autosave is None else SnapshotWriter(autosave)
        self.engine = Engine(model, num_slots=1, cache_dtype=config.cache.dtype) if engine is None else engine
        self._stream = self.engine.add_stream(config, query=query, previous_text=previous_text, on_token=on_token)
        if self._autosave is not None:
            self._stream.on_turn_end.append(self._autosave.autosave)  # holds the writer, not the session

    @classmethod
    def from_pretrained(
        cls,
        name: str | Path,
        *,
        device: str | None = None,
        dtype: str | torch.dtype | None = None,
        quantization: str | None = None,
        cpu_kernels: bool = True,
        **settings: Unpack[SessionSettings],
    ) -> "StreamingSession":
        """Load a model ("pitch", a folder or a hub name) and open a session on it.

        device, dtype, quantization, cpu_kernels: as in `load_model`; settings: as in the constructor.
        Raises CheckpointError and ConfigError, each with its remedy.
        """
        model = load_model(name, device=device, dtype=dtype, quantization=quantization, cpu_kernels=cpu_kernels)
        return cls(model, **settings)

    @classmethod
    def load(cls, path: str | Path, *, model: StreamingModel, **settings) -> "StreamingSession":
        """Continue the stream of a snapshot: its next tokens are those of a stream that was never stopped.

        ``settings`` are those of the constructor that a snapshot does not hold: on_token, engine, and autosave, which
        may be the same folder. Raises SnapshotError for a snapshot of another model or version, or a damaged one.
        """
        check_is_loaded(model, "StreamingSession.load(path, model=load_model({!r}))")
        session = cls(model, **read_settings(path, model), **settings)
        try:
            with session.engine.exclusive(session._stream):
                restore(session._stream, path)
        except BaseException:
            session.close()
            raise
        return session

    def save(self, path: str | Path):
        """Write a snapshot of the stream into a folder, and replace the one that is there.

        From any thread, between two turns. Raises SnapshotError if it cannot be written.
        """
        writer = self._autosave
        if writer is None or writer.path.resolve() != Path(path).resolve():
            writer = SnapshotWriter(path)
        self.run_between_turns(writer.save)

    # --- settings and state

    @property
    def query(self) -> str:
        """The standing instruction."""
        return self._stream.query

    @query.setter
    def query(self, query: str):
        self._stream.query = query

    @property
    def cached_query(self) -> str:
        """The standing instruction that the cache holds: the query as of the last turn."""
        return self._stream.cached_query

    @property
    def previous_text(self) -> str:
        """What was said before the stream began; a change takes effect when the cache starts again, as in ``reset``."""
        return self._stream.previous_text

    @previous_text.setter
    def previous_text(self, previous_text: str):
        self._stream.previous_text = previous_text

    @property
    def on_token(self) -> Callable[[str], None] | None:
        """Called with each new piece of text."""
        return self._stream.on_token

    @on_token.setter
    def on_token(self, on_token: Callable[[str], None] | None):
        self._stream.on_token = on_token

    @property
    def cache_config(self) -> CacheConfig:
        """The cache policy, every setting filled in."""
        return self._stream.config.cache

    @property
    def video_config(self) -> VideoConfig:
        """How video becomes turns, every setting filled in."""
        return self._stream.config.video

    @property
    def sampling_config(self) -> SamplingConfig:
        """How tokens are chosen, every setting filled in."""
        return self._stream.config.sampling

    @property
    def format(self) -> TurnFormat:
        """How a turn is written as tokens."""
        return self._stream.config.turn_format

    @property
    def vision_encoder(self) -> VisionEncoder:
        """The vision encoder, with the pixel limits and the resize of the settings."""
        return self._stream.config.vision_encoder

    @property
    def num_turns(self) -> int:
        """Turns since the start."""
        return self._stream.num_turns

    @property
    def end_s(self) -> float:
        """Stream time at which the last turn ended, 0 before the first."""
        return self._stream.end_s

    @property
    def layout(self) -> CacheLayout:
        """What the cache holds; printed, it is a table, and in a notebook a drawing."""
        return replace(self._stream.sequence.layout, sink_tokens=self.cache_config.text_sink_tokens or 0)

    @property
    def cache_bytes(self) -> int:
        """Memory reserved for the stream's keys and values."""
        return self._stream.sequence.kv.num_bytes

    @property
    def stats(self) -> SessionStats:
        """Latency by stage, cache fill, real-time factor."""
        return self._stream.stats

    @stats.setter
    def stats(self, stats: SessionStats):
        self._stream.stats = stats

    @property
    def slot(self) -> int:
        """The stream's place in its engine."""
        return self._stream.slot

    @property
    def is_closed(self) -> bool:
        """Whether the session was closed."""
        return self._stream.is_closed

    def inspect(self) -> StreamView:
        """Return a read-only view of tokens, positions, keys and values; between two turns."""
        return self._stream.inspect()

    def reset(self):
        """Start again with an empty cache, time 0 and the seed's random numbers; pending requests are cancelled."""
        with self.engine.exclusive(self._stream):
            self._stream.reset()

    def close(self):
        """Leave the engine and free the memory. Requests that are not done are cancelled."""
        self.engine.remove_stream(self._stream)

    def __repr__(self) -> str:
        state = "closed" if self.is_closed else f"{self._stream.sequence.num_tokens} tokens cached"
        return f"StreamingSession({self.model.name}, {self.cache_config.policy}, {self.num_turns} turns, {state})"

    def __enter__(self) -> "StreamingSession":
        return self

    def __exit__(self, *_exception):
        self.close()

    # --- turns

    def stream(
        self,
        source: str | Path | int | PushedFrames | Iterable[VideoTurn | Frames],
        *,
        start_s: float = 0.0,
        live: LiveConfig | Mapping[str, Any] | str | None = None,
        step: Callable[[VideoTurn | Frames], Commentary] | None = None,
    ) -> Iterator[Commentary]:
        """Watch a source and yield a Commentary for each turn, silent ones included.

        source: a file; an address (rtsp, rtsps, rtmp, http, https); "webcam" or a camera's number; "-", a pipe on
            standard input; PushedFrames; or any iterable of frames (a video tensor, a generator of images) or of turns.
        start_s: where in a file to start; ``end_s`` to continue a stream.
        live: how a live source is received, and what happens when the model is late.
        step: called for each turn instead of the session's own ``step``; what it returns is yielded.

        Raises VideoError before the first turn if the source cannot be watched.
        """
        if not isinstance(source, str | Path | int | PushedFrames):
            yield from self._run_turns(group_frames(source, self.video_config.num_frames), step)
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
            yield from self._run_turns(self.reader, step)

    def _run_turns(
        self, turns: Iterator[VideoTurn | Frames], step: Callable[[VideoTurn | Frames], Commentary] | None
    ) -> Iterator[Commentary]:
        if step is None and self.engine.async_vision:
            yield from pipelined(turns, self.engine, self._stream, self.turn_request)
            return
        step = step or self.step
        while True:
            with self.stats.stage("video"):
                turn = next(turns, None)
            if turn is None:
                return
            yield step(turn)

    def step(
        self,
        frames: Frames | VideoTurn,
        *,
        question: str = "",
        max_new_tokens: int | None = None,
        reply: str | None = None,
    ) -> Commentary:
        """Process one turn of video and generate its line.

        frames: RGB, ``fps * turn_s`` of them, which follow the turn before: a uint8 tensor or array [F, 3, H, W] or
            [F, H, W, 3], or a list of such frames or of PIL images; or a VideoTurn, which has its own times.
        question: of this turn, after the video. It leaves the cache with the turn, unlike the query; the answer becomes
            previous text like every reply. The cache grows if the question does not fit.
        max_new_tokens: the most tokens of this reply, instead of the sampling setting.
        reply: the reply's words, "" for silence: they are prefilled and nothing is generated or drawn. The cache then
            holds what it would hold if the model had said them.

        Raises VideoError for frames of another kind or number.
        """
        return self.engine.submit_and_wait(self.turn_request(frames, question, max_new_tokens, reply))

    @property
    def num_appended_tokens(self) -> int:
        """Tokens of prompt, video and text so far, evicted ones included."""
        return self._stream.sequence.num_appended

    def submit(
        self,
        frames: Frames | VideoTurn,
        *,
        question: str = "",
        max_new_tokens: int | None = None,
        reply: str | None = None,
    ) -> Future[Commentary]:
        """Submit one turn, with the arguments of ``step``, and return its future. Turns run in their order.

        The engine's worker runs it, or without a worker the next thread that waits for the engine.
        """
        return self.engine.submit(self.turn_request(frames, question, max_new_tokens, reply))

    def turn_request(
        self,
        frames: Frames | VideoTurn,
        question: str = "",
        max_new_tokens: int | None = None,
        reply: str | None = None,
    ) -> GenerateTurn | ForcedTurn:
        """Return the request of one turn, with the arguments of ``step``, to submit to the engine."""
        if reply is not None:
            return ForcedTurn(self._stream, frames, question, reply)
        if max_new_tokens is None:
            detail = frames.detail if isinstance(frames, VideoTurn) else 1.0
            max_new_tokens = math.ceil(self.sampling_config.max_new_tokens * detail)
        at_least("max_new_tokens", max_new_tokens, 1, "tokens a turn")
        return GenerateTurn(self._stream, frames, question, max_new_tokens)

    # --- questions beside the stream

    def ask(self, question: str, *, max_new_tokens: int | None = None) -> str:
        """Answer a question about what was seen and said so far, from a fork: the stream is not changed.

        From any thread. A running ``stream`` waits for the answer between two turns, then continues token for token as
        without it. max_new_tokens: by default the sampling setting, which keeps that wait short. For a question that
        joins the stream, with its answer, use ``step(question=...)``.
        """
        return self.engine.submit_and_wait(self._question_request(question, max_new_tokens))

    def submit_question(self, question: str, *, max_new_tokens: int | None = None) -> Future[str]:
        """Submit a question, as ``ask`` does, and return its future; turns submitted earlier come first."""
        return self.engine.submit(self._question_request(question, max_new_tokens))

    def score_choices(self, question: str, choices: Sequence[str] = ("yes", "no")) -> list[float]:
        """Return each choice's probability as first token of ``ask``'s answer. ConfigError for equal first tokens."""
        return self.engine.submit_and_wait(ScoreChoices(self._stream, question, choices))

    def run_between_turns(self, function: Callable[[Stream], ResultT]) -> ResultT:
        """Call ``function`` with the session's Stream between two turns, and return its result. From any thread."""
        return self.engine.run_between_turns(self._stream, function)

    def _question_request(self, question: str, max_new_tokens: int | None) -> ForkQuestion:
        limit = self.sampling_config.max_new_tokens if max_new_tokens is None else max_new_tokens
        at_least("max_new_tokens", limit, 1, "tokens an answer")
        return ForkQuestion(self._stream, question, limit)
