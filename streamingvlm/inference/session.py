"""One stream of video, watched second by second: the notebook's handle.

The weights and the stream are two objects. A session holds all that changes while a stream runs, and nothing else does.
"""

import logging
import math
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from streamingvlm.cache.eviction import capacity_tokens, plan_eviction
from streamingvlm.cache.layout import CacheLayout, Kind
from streamingvlm.config import CacheConfig, LiveConfig, SamplingConfig, VideoConfig, at_least, resolve
from streamingvlm.inference.decoder import StreamingDecoder
from streamingvlm.inference.sampling import Sampler
from streamingvlm.inference.stats import SessionStats
from streamingvlm.model.attention import STREAMING_ATTENTION
from streamingvlm.model.loading import StreamingModel, load_model
from streamingvlm.model.stream_settings import contradictions
from streamingvlm.turns import Turn, TurnFormat
from streamingvlm.video.clock import Second
from streamingvlm.video.live import LiveReader, open_source
from streamingvlm.video.pushed import PushedFrames
from streamingvlm.video.reader import VideoReader

_LOG = logging.getLogger(__name__)

# The longest time label and turn number that a stream may reach: four months of seconds.
_LAST_TURN_S = 9_999_999.0


@dataclass(frozen=True)
class Commentary:
    """What was said of one turn.

    start_s, end_s: stream time of the turn; text: the words, "" for a silent second; num_tokens: tokens generated;
    latency_s: seconds of work from the frames to the last word.
    age_s: how old the newest frame of the turn was when the line was finished; None where it was not live.
    dropped_s, coalesced_s: seconds of a live stream that went by unseen just before the turn, and that it stands for
    beyond its own, as the model was late; detail: the share of pixels and tokens that was spent on it.
    """

    start_s: float
    end_s: float
    text: str
    num_tokens: int = 0
    latency_s: float = 0.0
    age_s: float | None = None
    dropped_s: float = 0.0
    coalesced_s: float = 0.0
    detail: float = 1.0

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
    on_token: called with each new piece of text as it is decoded.
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
    ):
        self.model = model
        self.cache_config = resolve(CacheConfig, cache, model.stream_defaults)
        self.video_config = resolve(VideoConfig, video, model.stream_defaults)
        self.sampling_config = resolve(SamplingConfig, sampling, model.stream_defaults)
        self.query = query
        self.previous_text = previous_text
        self.on_token = on_token
        self.reader: VideoReader | LiveReader | None = None
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
            capacity=self._capacity_tokens(),
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

    def reset(self):
        """Begin anew: an empty cache, the clock at 0, the random stream of the seed from its start."""
        self.decoder.clear_()
        self.sampler.reset_()
        self.num_turns = 0
        self.stats = SessionStats(capacity_tokens=self._capacity_tokens())

    @property
    def layout(self) -> CacheLayout:
        """What the cache holds; printed, it is a table."""
        return self.decoder.layout

    def stream(
        self,
        source: str | Path | PushedFrames | Iterable[Second],
        *,
        live: LiveConfig | Mapping[str, Any] | None = None,
    ) -> Iterator[Commentary]:
        """Watch a source and yield a Commentary a turn, silent ones included.

        source: a file; an address (rtsp, rtsps, rtmp, http, https); "webcam"; "-", a pipe on standard input; frames
        that are pushed; or seconds from any iterable. live: how what does not wait is received, and what is done when
        the model is late. Raises VideoError before the first turn where the source cannot be watched.
        """
        if not isinstance(source, str | Path | PushedFrames):
            yield from self._follow(iter(source))
            return
        config = self.video_config
        with open_source(
            source,
            fps=config.fps,
            chunk_s=config.chunk_s,
            decoder=config.decoder,
            prefetch=config.prefetch,
            live=resolve(LiveConfig, live, {}),
        ) as self.reader:
            yield from self._follow(self.reader)

    def _follow(self, seconds: Iterator[Second]) -> Iterator[Commentary]:
        while True:
            with self.stats.stage("video"):
                second = next(seconds, None)
            if second is None:
                return
            yield self.step(second)

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
        started = time.perf_counter()
        second = self._as_second(frames)
        turn = self._take_in(second, question)
        reply: list[int] = []
        try:
            self._speak_(reply, max_new_tokens or math.ceil(self.sampling_config.max_new_tokens * second.detail))
        finally:  # after Ctrl-C, too: a turn that was opened is closed with what was said, and the next one can follow
            self.decoder.close_(self.format.close_turn(turn, reply))
            self.num_turns += 1
        return self._turn_done(second, started, self.format.spoken_text(reply), len(reply))

    @torch.inference_mode()
    def hear(self, frames: torch.Tensor | Second, words: str, *, question: str = "") -> Commentary:
        """Take in one turn of video and a reply in given words, "" for silence: they are fed, nothing is generated.

        The cache then holds what it would had the model said these words; no random number is drawn. The rest is as
        in ``step``.
        """
        started = time.perf_counter()
        second = self._as_second(frames)
        turn = self._take_in(second, question)
        try:
            with self.stats.stage("prefill"):
                self.decoder.hear_(*self.format.given_reply(turn, words))
        finally:
            self.num_turns += 1
        return self._turn_done(second, started, " ".join(words.split()), 0)

    def _turn_done(self, second: Second, started: float, text: str, num_tokens: int) -> Commentary:
        line = Commentary(
            second.start_s,
            second.end_s,
            text,
            num_tokens,
            latency_s=time.perf_counter() - started,
            age_s=None if second.captured_s is None else time.monotonic() - second.captured_s,
            dropped_s=second.dropped_s,
            coalesced_s=second.coalesced_s,
            detail=second.detail,
        )
        self.stats.turn_done_(
            stream_s=line.end_s - line.start_s,
            latency_s=line.latency_s,
            num_tokens=num_tokens,
            cache_tokens=self.decoder.num_tokens,
        )
        self.stats.live_turn_done_(age_s=line.age_s, dropped_s=line.dropped_s, coalesced_s=line.coalesced_s)
        return line

    def _as_second(self, frames: torch.Tensor | Second) -> Second:
        if isinstance(frames, Second):
            return frames
        chunk_s = self.video_config.chunk_s
        return Second(self.num_turns, self.num_turns * chunk_s, (self.num_turns + 1) * chunk_s, frames)

    def _take_in(self, second: Second, question: str) -> Turn:
        """From frames to a turn that awaits its reply: encode, evict, append."""
        with self.stats.stage("vision"):
            vision = self.vision.features(second.frames, detail=second.detail)
        turn = Turn(self.num_turns, second.start_s, second.end_s, vision.grid)
        with self.stats.stage("evict"):
            opens = self._make_room(turn)
            self._append(turn, self.query if opens else "", question)
            self.decoder.see_(turn.index, vision)
        return turn

    def _make_room(self, turn: Turn) -> bool:
        """Let go what the policy does not keep; return whether the stream opens, or opens anew, with this turn."""
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

    def _speak_(self, reply: list[int], max_new_tokens: int):
        """Append the reply's ids to ``reply`` one by one, the end of turn included where the model wrote one."""
        with self.stats.stage("prefill"):
            self.sampler.see_only_(self.decoder.ids)
            self.decoder.max_reply_tokens = max_new_tokens
            logits = self.decoder.prefill_()
        said = ""
        with self.stats.stage("decode"):
            while True:
                reply.append(self.sampler.choose_(logits))
                said = self._tell(reply, said)
                if reply[-1] in self.format.stop_ids or len(reply) == max_new_tokens:
                    return
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
