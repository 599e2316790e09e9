"""One stream of video, watched second by second: the notebook's handle.

The weights and the stream are two objects. A session holds all that changes while a stream runs, and nothing else does.
It is a slot of an engine (engine.py): of one of its own, or of one that serves many streams.
"""

import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import Future
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from streamingvlm.cache.layout import CacheLayout
from streamingvlm.config import CacheConfig, SamplingConfig, VideoConfig, at_least
from streamingvlm.errors import ConfigError
from streamingvlm.inference.ahead import follow_ahead
from streamingvlm.inference.decoder import StreamingDecoder
from streamingvlm.inference.engine import Engine
from streamingvlm.inference.job import HeardTurn, SpokenTurn
from streamingvlm.inference.sampling import Sampler
from streamingvlm.inference.setup import StreamSetup
from streamingvlm.inference.stats import SessionStats
from streamingvlm.model.attention import STREAMING_ATTENTION
from streamingvlm.model.loading import StreamingModel, load_model
from streamingvlm.turns import Turn
from streamingvlm.video.clock import Second
from streamingvlm.video.reader import VideoReader, open_video

if TYPE_CHECKING:
    from streamingvlm.inference.job import Job


@dataclass(frozen=True)
class Commentary:
    """What was said of one turn.

    start_s, end_s: stream time of the turn; text: the words, "" for a silent second; num_tokens: tokens generated;
    latency_s: seconds from the frames to the last word, in an engine with those of waiting for other streams.
    """

    start_s: float
    end_s: float
    text: str
    num_tokens: int = 0
    latency_s: float = 0.0

    @property
    def is_silent(self) -> bool:
        """Whether nothing was said."""
        return not self.text

    def __str__(self) -> str:
        hours, rest = divmod(int(self.start_s), 3600)
        clock = f"{rest // 60:02d}:{rest % 60:02d}"
        return f"[{hours}:{clock}] {self.text}" if hours else f"[{clock}] {self.text}"


class StreamingSession:
    """Watches one stream with one model and says what happens, from a cache that stays within its bound.

    query: an instruction that stands for the whole stream; previous_text: what was said before it began;
    on_token: called with each new piece of text as it is decoded, in the thread that runs the model.
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
        engine: Engine | None = None,
    ):
        setup = StreamSetup.of(
            model, cache=cache, video=video, sampling=sampling, query=query, previous_text=previous_text
        )
        self.model = model
        self.cache_config, self.video_config, self.sampling_config = setup.cache, setup.video, setup.sampling
        self.query = query
        self.previous_text = previous_text
        self.on_token = on_token
        self.reader: VideoReader | None = None
        self.vision = setup.vision
        self.format = setup.format
        self._capacity_tokens = setup.capacity_tokens()
        self.engine = Engine(model, num_slots=1, cache_dtype=setup.cache.dtype) if engine is None else engine
        if setup.cache.dtype not in (None, self.engine.cache_dtype):
            raise ConfigError(f"cache.dtype={setup.cache.dtype} is not that of the engine; give it to the engine, too")
        kv, self.slot = self.engine.admit_(self, self._capacity_tokens)
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
        return cls(load_model(name, **weights, attention=STREAMING_ATTENTION), **settings)

    def reset(self):
        """Begin anew: an empty cache, the clock at 0, the random stream of the seed from its start.

        What was submitted and is not done yet is cancelled.
        """
        with self.engine.without(self):
            self.decoder.clear_()
            self.sampler.reset_()
            self.num_turns = 0
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

    def stream(self, source: str | Path | Iterable[Second]) -> Iterator[Commentary]:
        """Watch a file, or seconds from any iterable, and yield a Commentary a turn, silent ones included.

        Raises VideoError before the first turn where the file cannot be watched.
        """
        if not isinstance(source, str | Path):
            yield from self._follow(iter(source))
            return
        config = self.video_config
        with open_video(
            source, fps=config.fps, chunk_s=config.chunk_s, decoder=config.decoder, prefetch=config.prefetch
        ) as self.reader:
            yield from self._follow(self.reader)

    def _follow(self, seconds: Iterator[Second]) -> Iterator[Commentary]:
        if self.engine.looks_ahead:
            yield from follow_ahead(self, seconds)
            return
        while True:
            with self.stats.stage("video"):
                second = next(seconds, None)
            if second is None:
                return
            yield self.step(second)

    def step(
        self, frames: torch.Tensor | Second, *, question: str = "", max_new_tokens: int | None = None
    ) -> Commentary:
        """Take in one turn of video and speak.

        frames: uint8 [F, 3, H, W], RGB, ``fps * chunk_s`` of them; they are taken to follow the turn before. A Second
        brings its own times. Raises VideoError for frames of another shape.
        question: asked in this turn, after the video; it goes from the cache with the turn, unlike the query, and the
        answer becomes previous text as all that is said. The cache grows where the question does not fit.
        max_new_tokens: the most tokens of this turn's reply, where they are not as many as in other turns.
        """
        return self._do(self.spoken_turn(frames, question, max_new_tokens))

    def submit(
        self, frames: torch.Tensor | Second, *, question: str = "", max_new_tokens: int | None = None
    ) -> Future[Commentary]:
        """Hand over one turn, as ``step`` does, and go on; turns of a stream are taken in the order of their coming.

        The turn is done by the engine's worker, or where there is none by whoever next waits for the engine.
        """
        return self.engine.submit(self.spoken_turn(frames, question, max_new_tokens))

    def hear(self, frames: torch.Tensor | Second, words: str, *, question: str = "") -> Commentary:
        """Take in one turn of video and a reply in given words, "" for silence: they are fed, nothing is generated.

        The cache then holds what it would had the model said these words; no random number is drawn. The rest is as
        in ``step``.
        """
        return self._do(HeardTurn(self, frames, words, question))

    def spoken_turn(
        self, frames: torch.Tensor | Second, question: str = "", max_new_tokens: int | None = None
    ) -> SpokenTurn:
        """Return the job of one turn, as ``step`` takes it, to be submitted to the engine."""
        if max_new_tokens is not None:
            at_least("max_new_tokens", max_new_tokens, 1, "tokens a turn")
        return SpokenTurn(self, frames, question, max_new_tokens or self.sampling_config.max_new_tokens)

    def _do(self, job: "Job") -> Any:
        self.engine.submit(job)
        return self.engine.wait_for(job)

    def turn_done_(self, turn: Turn, started: float, text: str, num_tokens: int) -> Commentary:
        """Count a turn that was closed; ``started``: when it was handed over, by the performance counter."""
        self.num_turns += 1
        latency_s = time.perf_counter() - started
        self.stats.turn_done_(
            stream_s=turn.end_s - turn.start_s,
            latency_s=latency_s,
            num_tokens=num_tokens,
            cache_tokens=self.decoder.num_tokens,
        )
        return Commentary(turn.start_s, turn.end_s, text, num_tokens, latency_s)
