"""What an engine does for a stream: a turn of video that the model speaks to, or one whose words are given.

The engine gives a job what its frames show, then opens it, hands it token after token, and closes it. A job that was
opened is closed whatever happens, so that the next one of its stream can follow.
"""

import time
from abc import ABC, abstractmethod
from concurrent.futures import CancelledError, Future
from typing import TYPE_CHECKING, Any

import torch

from streamingvlm.cache.eviction import plan_eviction
from streamingvlm.cache.layout import Kind
from streamingvlm.inference.forward import feed_all_
from streamingvlm.model.vision import VisionEncoder, VisionFeatures
from streamingvlm.turns import Turn
from streamingvlm.video.clock import Second

if TYPE_CHECKING:
    from streamingvlm.inference.decoder import StreamingDecoder
    from streamingvlm.inference.sampling import Sampler
    from streamingvlm.inference.session import StreamingSession


class Job(ABC):
    """Something to be done for one stream, in its turn among the jobs of that stream.

    future: its result. frames: uint8 [F, 3, H, W] to be seen first, None for nothing. max_new_tokens: the most tokens
    of the reply, 0 for none. reply: what was said so far.
    """

    frames: torch.Tensor | None = None
    max_new_tokens = 0

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

    def take_(self, token: int):
        """Take in a token of the reply."""
        self.reply.append(token)

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

    def __init__(self, session: "StreamingSession", frames: torch.Tensor | Second, question: str):
        super().__init__(session)
        self.second = frames if isinstance(frames, Second) else None
        self.frames = frames.frames if isinstance(frames, Second) else frames
        self.question = question
        self.turn: Turn | None = None

    def open_(self):
        session = self.session
        with session.stats.stage("evict"):
            self.turn = self._turn()
            opens = self._make_room()
            self._append(session.query if opens else "")
            self.decoder.see_(self.turn.index, self.vision)
        self.frames = self.second = None
        self.is_open = True

    def _turn(self) -> Turn:
        index, chunk_s = self.session.num_turns, self.session.video_config.chunk_s
        start_s, end_s = index * chunk_s, (index + 1) * chunk_s
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
        if last.kind is Kind.REPLY_END:
            decoder.extend_(turn_format.line_feed(Turn(last.turn, last.start_s, last.end_s, (0, 0, 0))))
        decoder.extend_(turn_format.open_turn(self.turn, query, self.question))


class SpokenTurn(_TurnJob):
    """A turn that the model speaks to."""

    def __init__(self, session: "StreamingSession", frames: torch.Tensor | Second, question: str, max_new_tokens: int):
        super().__init__(session, frames, question)
        self.max_new_tokens = max_new_tokens
        self._said = ""

    def open_(self):
        super().open_()
        self.sampler.see_only_(self.decoder.ids)

    def take_(self, token: int):
        super().take_(token)
        if self.session.on_token is not None:
            self._tell()

    def close_(self):
        self.decoder.close_(self.session.format.close_turn(self.turn, self.reply))
        text = self.session.format.spoken_text(self.reply)
        return self.session.turn_done_(self.turn, self.started, text, len(self.reply))

    def _tell(self):
        """Hand what is new of the reply's text to ``on_token``; half a character waits for its other half."""
        text = self.session.format.spoken_text(self.reply)
        if text != self._said and not text.endswith("\ufffd"):
            new, self._said = text[len(self._said) :], text
            self.session.on_token(new)


class HeardTurn(_TurnJob):
    """A turn whose words are given: they are fed as if they had been said, and the end waits as then."""

    def __init__(self, session: "StreamingSession", frames: torch.Tensor | Second, words: str, question: str):
        super().__init__(session, frames, question)
        self.words = words

    def open_(self):
        super().open_()
        said, self._end = self.session.format.given_reply(self.turn, self.words)
        self.decoder.extend_(said)

    def close_(self):
        self.decoder.extend_(self._end)
        return self.session.turn_done_(self.turn, self.started, " ".join(self.words.split()), 0)
