"""What an engine does for a stream: a turn of video that the model speaks to, or one whose words are given.

The engine gives a job what its frames show, then opens it, hands it token after token, and closes it. A job that was
opened is closed whatever happens, so that the next one of its stream can follow.
"""

import time
from abc import ABC, abstractmethod
from collections.abc import Sequence
from concurrent.futures import CancelledError, Future
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import torch

from streamingvlm.cache.eviction import plan_eviction, without_query
from streamingvlm.cache.layout import SegmentKind
from streamingvlm.inference.forward import feed_all_
from streamingvlm.model.vision import VisionEncoder, VisionFeatures
from streamingvlm.turns import Tokens, Turn
from streamingvlm.video.clock import VideoTurn

if TYPE_CHECKING:
    from streamingvlm.inference.decoder import StreamingDecoder
    from streamingvlm.inference.sampling import Sampler
    from streamingvlm.inference.session import StreamingSession

_GONE = torch.empty(0)


class Job(ABC):
    """Something to be done for one stream, in its turn among the jobs of that stream.

    future: its result. frames: uint8 [F, 3, H, W] to be seen first, None for nothing; detail: the share of their usual
    pixels to spend on them. max_new_tokens: the most tokens
    of the reply, 0 for none. reply: what was said so far.
    is_fed: whether there is anything to be fed; otherwise the job is done as soon as it is open.
    first_ids: groups of tokens of which the job wants to know how probable they are as the first of the reply.
    """

    frames: torch.Tensor | None = None
    detail = 1.0
    max_new_tokens = 0
    is_fed = True
    first_ids: Sequence[Sequence[int]] = ()

    def __init__(self, session: "StreamingSession"):
        self.session = session
        self.future: Future = Future()
        self.started = time.perf_counter()
        self.opened_at = self.fed_at = 0.0
        self.vision: VisionFeatures | None = None
        self.failure: Exception | None = None  # why the frames cannot be seen
        self.reply: list[int] = []
        self.is_open = False
        self.is_cut = False  # to end with the token that comes next

    @property
    def decoder(self) -> "StreamingDecoder":
        """The stream's cache."""
        return self.session.decoder

    @property
    def sampler(self) -> "Sampler":
        """The stream's choice of tokens."""
        return self.session.sampler

    @property
    def encoder(self) -> VisionEncoder:
        """What makes patches of the frames."""
        return self.session.vision

    @property
    def is_unseen(self) -> bool:
        """Whether there are frames that are still to be seen."""
        return self.frames is not None and self.vision is None and self.failure is None

    @property
    def is_done(self) -> bool:
        """Whether nothing more is to be said."""
        return (
            self.is_cut
            or len(self.reply) >= self.max_new_tokens
            or (bool(self.reply) and self.reply[-1] in self.session.format.stop_ids)
        )

    @abstractmethod
    def open_(self):
        """Append to the stream what is to be fed."""

    def weighed_(self, probabilities: Sequence[float], logits: torch.Tensor) -> bool:
        """Take in how probable each group of ``first_ids`` is; ``logits`` [V], of the first token, may be changed.

        Returns whether more is to be fed before the reply begins.
        """
        return False

    def take_(self, token: int):
        """Take in a token of the reply."""
        self.reply.append(token)

    def spent_(self, stage: str, spent_s: float):
        """Count the seconds that a stage of the job took."""
        self.session.stats.spent_(stage, spent_s)

    @abstractmethod
    def close_(self) -> Any:
        """Leave the stream as the next job wants it, and return the result."""

    def end_(self, error: BaseException | None = None):
        """Close the job, done or failed, and tell whoever waits for it."""
        result = None
        if self.is_open:
            self.is_open = False
            try:
                result = self.close_()
            except Exception as failure:  # noqa: BLE001 - whoever waits is told
                error = error or failure
        if isinstance(error, CancelledError):
            self.future.cancel()  # has no effect on what runs already
        if self.future.cancelled():
            self.future.set_running_or_notify_cancel()
        elif error is None:
            self.future.set_result(result)
        else:
            self.future.set_exception(error)


class _TurnJob(Job):
    """A turn of video: frames, or a Second that brings its own times; a question of this turn alone."""

    def __init__(self, session: "StreamingSession", frames: torch.Tensor | VideoTurn, question: str):
        super().__init__(session)
        self.frames, self.second = frames, None
        if isinstance(frames, VideoTurn):
            self.frames, self.detail = frames.frames, frames.detail
            self.second = replace(frames, frames=_GONE)  # frames are held no longer than they are needed
        self.question = question
        self.turn: Turn | None = None

    def open_(self):
        session = self.session
        query = session.query  # other threads may set it at any moment
        with session.stats.stage("evict"):
            self.turn = self._turn()
            is_new = query != session.told_query
            if is_new:
                self.decoder.evict_(without_query(self.decoder.layout))
            opens = self._make_room()
            self._append(query if opens or is_new else "")
            self.decoder.see_(self.turn.index, self.vision)
            session.query_told_(query)
        self.frames = None
        self.is_open = True

    def _turn(self) -> Turn:
        index, turn_s = self.session.num_turns, self.session.video_config.turn_s
        start_s, end_s = index * turn_s, (index + 1) * turn_s
        if self.second is not None:
            start_s, end_s = self.second.start_s, self.second.end_s
        return Turn(index, start_s, end_s, self.vision.grid)

    def _make_room(self) -> bool:
        """Let go what the policy does not keep; return whether the stream opens, or opens anew, with this turn."""
        session, decoder, turn = self.session, self.decoder, self.turn
        opens = not decoder.layout.segments
        if opens:
            decoder.extend_(session.format.prologue(session.previous_text))
        eviction = plan_eviction(
            decoder.layout, session.cache_config, turn=turn.index, start_s=turn.start_s, end_s=turn.end_s
        )
        if decoder.moves_pending(eviction):
            feed_all_(session.model, decoder)
        decoder.evict_(eviction)
        if eviction.restart:
            decoder.extend_(session.format.prologue(session.previous_text))
        return opens or eviction.restart

    def _append(self, query: str):
        turn_format, decoder = self.session.format, self.decoder
        last = decoder.layout.segments[-1]
        if last.kind is SegmentKind.REPLY_END:
            decoder.extend_(turn_format.line_feed(Turn(last.turn, last.start_s, last.end_s, (0, 0, 0))))
        decoder.extend_(turn_format.open_turn(self.turn, query, self.question))


class SpokenTurn(_TurnJob):
    """A turn that the model speaks to, or, under a threshold of silence, does not.

    A threshold on the silent token is how VideoLLM-online (arXiv 2406.11816) corrects a model that is too quiet.
    """

    def __init__(
        self, session: "StreamingSession", frames: torch.Tensor | VideoTurn, question: str, max_new_tokens: int
    ):
        super().__init__(session, frames, question)
        self.max_new_tokens = max_new_tokens
        self.first_ids = (session.format.silent_ids,)
        self.silence: float | None = None
        self._end: Tokens | None = None
        self._said = ""

    def open_(self):
        super().open_()
        self.sampler.see_only_(self.decoder.ids)

    def weighed_(self, probabilities: Sequence[float], logits: torch.Tensor) -> bool:
        (self.silence,) = probabilities
        threshold = self.session.sampling_config.silence_threshold
        if threshold is None or self.question:  # a question is answered
            return False
        if self.silence >= threshold:
            self._hush_()
            return True
        logits[list(self.session.format.silent_ids)] = -torch.inf
        return False

    def _hush_(self):
        """Let the reply be the silent one: it is fed, and nothing is generated."""
        said, self._end = self.session.format.given_reply(self.turn, "")
        self.max_new_tokens, self.first_ids = 0, ()
        self.decoder.extend_(said)
        self.decoder.prepare_()

    def take_(self, token: int):
        super().take_(token)
        if self.session.on_token is not None:
            self._tell()

    def close_(self):
        self.decoder.close_(self._end or self.session.format.close_turn(self.turn, self.reply))
        text = self.session.format.spoken_text(self.reply)
        return self.session.turn_done_(
            self.turn, self.started, text, len(self.reply), silence=self.silence, shown=self.second
        )

    def _tell(self):
        """Hand what is new of the reply's text to ``on_token``; half a character waits for its other half."""
        text = self.session.format.spoken_text(self.reply)
        if text != self._said and not text.endswith("\ufffd"):
            new, self._said = text[len(self._said) :], text
            self.session.on_token(new)


class HeardTurn(_TurnJob):
    """A turn whose words are given: they are fed as if they had been said, and the end waits as then."""

    def __init__(self, session: "StreamingSession", frames: torch.Tensor | VideoTurn, words: str, question: str):
        super().__init__(session, frames, question)
        self.words = words

    def open_(self):
        super().open_()
        said, self._end = self.session.format.given_reply(self.turn, self.words)
        self.decoder.extend_(said)

    def close_(self):
        self.decoder.extend_(self._end)
        return self.session.turn_done_(self.turn, self.started, " ".join(self.words.split()), 0, shown=self.second)
