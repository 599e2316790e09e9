"""One stream of video, watched second by second: the notebook's handle.

The weights and the stream are two objects. A session holds all that changes while a stream runs, and nothing else does.
"""

import logging
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import torch

from streamingvlm.cache.eviction import capacity_tokens, plan_eviction, without_query
from streamingvlm.cache.layout import CacheLayout, Kind
from streamingvlm.config import CacheConfig, SamplingConfig, VideoConfig, at_least, resolve
from streamingvlm.inference.asking import QUESTION_ROOM_TOKENS, Fork
from streamingvlm.inference.decoder import StreamingDecoder
from streamingvlm.inference.fair_lock import FairLock
from streamingvlm.inference.sampling import Sampler
from streamingvlm.inference.silence import decide_silence_, silence_probability
from streamingvlm.inference.snapshot import SnapshotKeeper, read_settings, restore_
from streamingvlm.inference.stats import SessionStats
from streamingvlm.model.attention import STREAMING_ATTENTION
from streamingvlm.model.loading import StreamingModel, load_model
from streamingvlm.model.stream_settings import contradictions
from streamingvlm.turns import Turn, TurnFormat
from streamingvlm.video.clock import Second
from streamingvlm.video.reader import VideoReader, open_video

_LOG = logging.getLogger(__name__)

# The longest time label and turn number that a stream may reach: four months of seconds.
_LAST_TURN_S = 9_999_999.0


@dataclass(frozen=True)
class Commentary:
    """What was said of one turn.

    start_s, end_s: stream time of the turn; text: the words, "" for a silent second; num_tokens: tokens generated;
    latency_s: seconds of work from the frames to the last word; silence: the probability that the model gave to saying
    nothing, None where it was not asked.
    """

    start_s: float
    end_s: float
    text: str
    num_tokens: int = 0
    latency_s: float = 0.0
    silence: float | None = None

    @property
    def is_silent(self) -> bool:
        """Whether nothing was said."""
        return not self.text

    def __str__(self) -> str:
        hours, rest = divmod(int(self.start_s), 3600)
        clock = f"{rest // 60:02d}:{rest % 60:02d}"
        return f"[{hours}:{clock}] {self.text}" if hours else f"[{clock}] {self.text}"


LineT = TypeVar("LineT", bound=Commentary)


class StreamingSession:
    """Watches one stream with one model and says what happens, from a cache that stays within its bound.

    query: an instruction that stands for the whole stream; it may be set anew at any time, from any thread, and is told
    with the next turn, in which the one before it leaves the cache.
    previous_text: what was said before the stream began; on_token: called with each new piece of text as it is decoded.
    autosave: a folder in which a snapshot is kept, up to date after every turn.

    One thread streams; others may ask, instruct and save meanwhile: they are let in between two turns.
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
    ):
        self.model = model
        self.cache_config = resolve(CacheConfig, cache, model.stream_defaults)
        self.video_config = resolve(VideoConfig, video, model.stream_defaults)
        self.sampling_config = resolve(SamplingConfig, sampling, model.stream_defaults)
        self.query = query
        self.previous_text = previous_text
        self.on_token = on_token
        self._keeper = None if autosave is None else SnapshotKeeper(autosave)
        self.reader: VideoReader | None = None
        self._lock = FairLock()
        self.vision = model.vision_encoder(
            min_pixels=self.video_config.min_pixels,
            max_pixels=self.video_config.max_pixels,
            resize=self.video_config.resize,
        )
        self.format = TurnFormat.of(model.tokenizer, model.family, self.video_config)
        if differing := contradictions(self.video_config, model.stream_defaults):
            _LOG.warning("%s is shown turns unlike those of its training: %s", model.name, ", ".join(differing))
        self.decoder = StreamingDecoder(
            model,
            self.cache_config,
            capacity=self._allocated_tokens(),
            max_reply_tokens=self.sampling_config.max_new_tokens,
        )
        self.sampler = Sampler(self.sampling_config, model.device)
        self.reset()

    @classmethod
    def from_pretrained(
        cls, name: str | Path, *, device: str | None = None, dtype: str | torch.dtype | None = None, **settings
    ) -> "StreamingSession":
        """Load a model ("pitch", a folder or a hub name) and open a session on it.

        ``settings`` are those of the constructor. Raises CheckpointError and ConfigError, each with its remedy.
        """
        return cls(load_model(name, device=device, dtype=dtype, attention=STREAMING_ATTENTION), **settings)

    @classmethod
    def load(cls, path: str | Path, *, model: StreamingModel, **settings) -> "StreamingSession":
        """Take up the stream of a snapshot: the tokens to come are those of a stream that was never stopped.

        ``settings`` are those of the constructor that a snapshot does not hold (on_token, autosave); autosave may be
        the folder itself. Raises SnapshotError for a snapshot of another model or version, and for a damaged one.
        """
        session = cls(model, **read_settings(path, model), **settings)
        restore_(session, path)
        return session

    def save(self, path: str | Path):
        """Write a snapshot of the stream into a folder, in place of the one that is there.

        From any thread, between two turns. Raises SnapshotError where it cannot be written.
        """
        with self._lock.turn():
            is_kept = self._keeper is not None and self._keeper.path.resolve() == Path(path).resolve()
            (self._keeper if is_kept else SnapshotKeeper(path)).save_(self)

    @property
    def end_s(self) -> float:
        """Stream time at which the last turn ended, 0 before the first."""
        return self.layout.segments[-1].end_s if self.num_turns else 0.0

    def reset(self):
        """Begin anew: an empty cache, the clock at 0, the random stream of the seed from its start."""
        with self._lock.turn():
            self.decoder.clear_()
            self.sampler.reset_()
            self.num_turns = 0
            self.stats = SessionStats(capacity_tokens=self._capacity_tokens())
            self.told_query = ""  # the query that the stream knows of

    @property
    def layout(self) -> CacheLayout:
        """What the cache holds; printed, it is a table."""
        return self.decoder.layout

    def stream(
        self,
        source: str | Path | Iterable[Second],
        *,
        start_s: float = 0.0,
        step: Callable[[Second], LineT] | None = None,
    ) -> Iterator[LineT]:
        """Watch a file, or seconds from any iterable, and yield a Commentary a turn, silent ones included.

        start_s: where in a file to begin, ``end_s`` for a stream that is taken up again; step: what to do with each
        second, and what to yield, in place of the session's own ``step``. Raises VideoError before the first turn where
        the file cannot be watched.
        """
        if not isinstance(source, str | Path):
            yield from self._follow(iter(source), step or self.step)
            return
        config = self.video_config
        with open_video(
            source,
            fps=config.fps,
            chunk_s=config.chunk_s,
            decoder=config.decoder,
            prefetch=config.prefetch,
            start_s=start_s,
        ) as self.reader:
            yield from self._follow(self.reader, step or self.step)

    def _follow(self, seconds: Iterator[Second], step: Callable[[Second], LineT]) -> Iterator[LineT]:
        while True:
            with self.stats.stage("video"):
                second = next(seconds, None)
            if second is None:
                return
            yield step(second)

    @torch.inference_mode()
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
        if max_new_tokens is not None:
            at_least("max_new_tokens", max_new_tokens, 1, "tokens a turn")
        with self._lock.turn():
            started = time.perf_counter()
            turn = self._take_in(frames, question)
            reply: list[int] = []
            try:
                limit = max_new_tokens or self.sampling_config.max_new_tokens
                silence = self._speak_(reply, limit, is_asked=bool(question))
            finally:  # after Ctrl-C, too: an opened turn is closed with what was said, and the next one can follow
                self.decoder.close_(self.format.close_turn(turn, reply))
                self.num_turns += 1
            return self._turn_done(turn, started, self.format.spoken_text(reply), len(reply), silence)

    @torch.inference_mode()
    def hear(self, frames: torch.Tensor | Second, words: str, *, question: str = "") -> Commentary:
        """Take in one turn of video and a reply in given words, "" for silence: they are fed, nothing is generated.

        The cache then holds what it would had the model said these words; no random number is drawn. The rest is as
        in ``step``.
        """
        with self._lock.turn():
            started = time.perf_counter()
            turn = self._take_in(frames, question)
            try:
                with self.stats.stage("prefill"):
                    self.decoder.hear_(*self.format.given_reply(turn, words))
            finally:
                self.num_turns += 1
            return self._turn_done(turn, started, " ".join(words.split()), 0)

    @torch.inference_mode()
    def ask(self, question: str, *, max_new_tokens: int | None = None) -> str:
        """Answer a question of what was seen and said so far; the stream goes on as if nobody had asked.

        From any thread: the answer comes between two turns of a running ``stream``, which waits meanwhile and then goes
        on token for token. max_new_tokens: by default as many as of a turn, for the sake of that wait. A question that
        is to join the stream, answer and all, is ``step(question=...)``.
        """
        limit = self.sampling_config.max_new_tokens if max_new_tokens is None else max_new_tokens
        at_least("max_new_tokens", limit, 1, "tokens an answer")
        with self._lock.turn(), self.stats.stage("ask"):
            return self._fork().answer(question, max_new_tokens=limit)

    @torch.inference_mode()
    def weigh(self, question: str, choices: Sequence[str] = ("yes", "no")) -> list[float]:
        """How probable each choice is as the first word of the answer that ``ask`` would get; the rest is in between.

        Raises ConfigError for choices that begin alike.
        """
        with self._lock.turn(), self.stats.stage("ask"):
            return self._fork().weigh(question, choices)

    def _fork(self) -> Fork:
        prologue = self.format.prologue(self.previous_text)
        return Fork(self.decoder, self.sampler, self.format, turn=self.num_turns, prologue=prologue)

    def _turn_done(
        self, turn: Turn, started: float, text: str, num_tokens: int, silence: float | None = None
    ) -> Commentary:
        latency_s = time.perf_counter() - started
        self.stats.turn_done_(
            stream_s=turn.end_s - turn.start_s,
            latency_s=latency_s,
            num_tokens=num_tokens,
            cache_tokens=self.decoder.num_tokens,
        )
        if self._keeper:
            with self.stats.stage("autosave"):
                self._keeper.save_(self)
        return Commentary(turn.start_s, turn.end_s, text, num_tokens, latency_s, silence)

    def _next_second(self, frames: torch.Tensor) -> Second:
        chunk_s = self.video_config.chunk_s
        return Second(self.num_turns, self.num_turns * chunk_s, (self.num_turns + 1) * chunk_s, frames)

    def _take_in(self, frames: torch.Tensor | Second, question: str) -> Turn:
        """From frames to a turn that awaits its reply: encode, evict, append."""
        second = frames if isinstance(frames, Second) else self._next_second(frames)
        with self.stats.stage("vision"):
            vision = self.vision.features(second.frames)
        turn = Turn(self.num_turns, second.start_s, second.end_s, vision.grid)
        query = self.query  # other threads may set it at any moment
        with self.stats.stage("evict"):
            opens = self._make_room(turn, query)
            self._append(turn, query if opens or query != self.told_query else "", question)
            self.decoder.see_(turn.index, vision)
            self.told_query = query
        return turn

    def _make_room(self, turn: Turn, query: str) -> bool:
        """Let go what the policy does not keep; return whether the stream opens, or opens anew, with this turn."""
        if query != self.told_query:
            self.decoder.evict_(without_query(self.layout))
            self.stats.capacity_tokens = self._capacity_tokens()
        opens = not self.layout.segments
        if opens:
            self.decoder.extend_(self.format.prologue(self.previous_text))
        eviction = plan_eviction(
            self.layout, self.cache_config, turn=turn.index, start_s=turn.start_s, end_s=turn.end_s
        )
        self.decoder.evict_(eviction)
        if eviction.restart:
            self.decoder.extend_(self.format.prologue(self.previous_text))
        return opens or eviction.restart

    def _append(self, turn: Turn, query: str, question: str):
        last = self.layout.segments[-1]
        if last.kind is Kind.REPLY_END:
            self.decoder.extend_(self.format.line_feed(Turn(last.turn, last.start_s, last.end_s, (0, 0, 0))))
        self.decoder.extend_(self.format.open_turn(turn, query, question))

    def _speak_(self, reply: list[int], max_new_tokens: int, *, is_asked: bool) -> float:
        """Append the reply's ids to ``reply`` one by one, the end of turn included where the model wrote one.

        is_asked: whether a question waits for the answer, to which no threshold of silence applies. Returns how
        probable silence was.
        """
        with self.stats.stage("prefill"):
            self.sampler.see_only_(self.decoder.ids)
            self.decoder.max_reply_tokens = max_new_tokens
            logits = self.decoder.prefill_()
            silence = silence_probability(logits, self.format)
        given = () if is_asked else decide_silence_(logits, silence, self.sampling_config, self.format)
        said = ""
        with self.stats.stage("decode"):
            while True:
                reply.append(given[len(reply)] if given else self.sampler.choose_(logits))
                said = self._tell(reply, said)
                if reply[-1] in self.format.stop_ids or len(reply) == max_new_tokens:
                    return silence
                logits = self.decoder.speak_(reply[-1])

    def _tell(self, reply: list[int], said: str) -> str:
        """Hand what is new of the reply's text to ``on_token``; half a character waits for its other half."""
        if self.on_token is None:
            return said
        text = self.format.spoken_text(reply)
        if text == said or text.endswith("\ufffd"):
            return said
        self.on_token(text[len(said) :])
        return text

    def _allocated_tokens(self) -> int | None:
        bound = self._capacity_tokens()
        return bound and bound + QUESTION_ROOM_TOKENS

    def _capacity_tokens(self) -> int | None:
        """The most tokens that the cache will hold, from the largest turn that these settings allow."""
        turn = Turn(0, _LAST_TURN_S, _LAST_TURN_S, self.vision.largest_grid(self.video_config.num_frames))
        previous_tokens = len(self.format.encode_plain(self.previous_text))
        markup_tokens = len(self.format.prologue()) + len(self.format.standing_query(turn, self.query))
        reply_tokens = self.sampling_config.max_new_tokens + 1
        turn_tokens = len(self.format.line_feed(turn) + self.format.open_turn(turn)) + reply_tokens
        return capacity_tokens(
            self.cache_config,
            markup_tokens=markup_tokens,
            previous_tokens=previous_tokens,
            turn_tokens=turn_tokens,
            chunk_s=self.video_config.chunk_s,
        )
