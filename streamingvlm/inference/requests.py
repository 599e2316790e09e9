"""What an engine can do for a stream: one class for each kind of request.

    GenerateTurn        prefill a turn of video and generate the reply
    ForcedTurn          prefill a turn of video with a given reply
    RunBetweenTurns     call a function between two turns

fork_requests.py has those that leave the stream unchanged: ForkQuestion and ScoreChoices.

The life of a request:

    1. The vision runner encodes its frames.
    2. `begin` evicts tokens and appends new ones, which are pending.
    3. The runner prefills them; `on_first_logits` gets scores before the first token is sampled.
    4. `append` gets each sampled token.
    5. `finish` resolves the future. It is called for every request, also for one that failed or never began.

A request holds its Stream; a Stream holds no requests.
"""

import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from concurrent.futures import CancelledError, Future
from dataclasses import replace
from typing import Any

import torch

from streamingvlm.cache.eviction import plan_eviction, without_query
from streamingvlm.cache.layout import SegmentKind
from streamingvlm.config import VideoConfig
from streamingvlm.device import on_device
from streamingvlm.errors import VideoError
from streamingvlm.inference.sampling import Sampler
from streamingvlm.inference.sequence import TokenSequence
from streamingvlm.inference.stream import Stream
from streamingvlm.model.vision import VisionFeatures
from streamingvlm.turns import Tokens, Turn
from streamingvlm.video.frame_tensors import Frames, to_frames
from streamingvlm.video.video_turn import VideoTurn

# Prefills all pending tokens of one sequence now, in a pass of its own.
PrefillPending = Callable[[TokenSequence], None]

_NO_FRAMES = torch.empty(0)


class Request(ABC):
    """Work for one stream. The requests of a stream run in order.

    future: the result.
    frames: uint8 [F, 3, H, W] to encode, or None; detail: pixel budget as a fraction of the usual one.
    max_new_tokens: maximum length of the reply; 0 if nothing is generated.
    score_token_ids: groups of token ids; `on_first_logits` gets the probability of each group as first token.
    has_prefill: False if `begin` does all the work.
    """

    frames: torch.Tensor | None = None
    detail = 1.0
    max_new_tokens = 0
    score_token_ids: Sequence[Sequence[int]] = ()
    has_prefill = True

    def __init__(self, stream: Stream):
        self.stream = stream
        self.future: Future = Future()
        self.created_at = time.perf_counter()
        self.prefill_started_at = self.decode_started_at = 0.0
        self.num_prefill_tokens = self.num_context_tokens = 0
        self.token_times: list[float] = []
        self.vision: VisionFeatures | None = None
        self.vision_error: Exception | None = None
        self.reply: list[int] = []
        self.abort_requested = False  # stop after the next token
        self._has_begun = False

    @property
    def sequence(self) -> TokenSequence:
        """The stream's tokens."""
        return self.stream.sequence

    @property
    def sampler(self) -> Sampler:
        """The sampler that chooses the reply."""
        return self.stream.sampler

    @property
    def needs_vision(self) -> bool:
        """Whether there are frames that are not encoded yet."""
        return self.frames is not None and self.vision is None and self.vision_error is None

    @property
    def is_complete(self) -> bool:
        """Whether generation should stop."""
        return (
            self.abort_requested
            or len(self.reply) >= self.max_new_tokens
            or (bool(self.reply) and self.reply[-1] in self.stream.config.turn_format.stop_ids)
        )

    def begin(self, prefill_pending: PrefillPending):
        """Evict, append tokens, and apply the rotary embedding of the new positions to the cached keys.

        Raises the error of encoding the frames, and EngineFull if the cache cannot grow enough.
        """
        if self.vision_error is not None:
            raise self.vision_error
        self._on_begin(prefill_pending)
        self._has_begun = True
        if self.has_prefill:
            self.prefill_started_at = time.perf_counter()
            self.num_prefill_tokens, self.num_context_tokens = self.sequence.num_pending, self.sequence.num_tokens
            self.sequence.prepare_positions(self.max_new_tokens)

    @abstractmethod
    def _on_begin(self, prefill_pending: PrefillPending):
        """Append the tokens to prefill."""

    def on_first_logits(self, probabilities: Sequence[float], logits: torch.Tensor) -> bool:
        """Receive the probability of each group of ``score_token_ids``; may modify ``logits`` [V] in place.

        Returns True if it appended more tokens, which are prefilled before the reply starts.
        """
        return False

    def start_decoding(self):
        """Record the end of the prefill."""
        self.decode_started_at = time.perf_counter()
        self.record_stage("prefill", self.decode_started_at - self.prefill_started_at)

    def append(self, token: int):
        """Append a sampled token to the reply."""
        self.reply.append(token)
        self.token_times.append(time.perf_counter())

    def record_stage(self, stage: str, duration_s: float):
        """Record the duration of one stage of the request."""
        self.stream.stats.record_stage(stage, duration_s)

    @abstractmethod
    def _finish(self) -> Any:
        """Clean up the sequence for the next request, and return the result."""

    def finish(self, error: BaseException | None = None):
        """Clean up and resolve the future with the result or with ``error``."""
        result = None
        if self._has_begun:
            self._has_begun = False
            try:
                result = self._finish()
            except Exception as failure:  # noqa: BLE001 - raised again by future.result()
                error = error or failure
        if isinstance(error, CancelledError):
            self.future.cancel()  # no effect on a running future, whose error is set below
        if self.future.cancelled():
            self.future.set_running_or_notify_cancel()
        elif error is None:
            self.future.set_result(result)
        else:
            self.future.set_exception(error)


class RunBetweenTurns(Request):
    """Call a function with the stream between two turns; the result is its return value."""

    has_prefill = False

    def __init__(self, stream: Stream, function: Callable[[Stream], Any]):
        super().__init__(stream)
        self._function = function
        self._result: Any = None

    def _on_begin(self, prefill_pending: PrefillPending):
        self._result = self._function(self.stream)

    def _finish(self) -> Any:
        return self._result


class TurnRequest(Request):
    """A turn of video: frames, or a VideoTurn with timestamps of its own. question: for this turn only.

    Raises VideoError for frames of another number or kind.
    """

    def __init__(self, stream: Stream, frames: Frames | VideoTurn, question: str):
        super().__init__(stream)
        self.video_turn = None
        if isinstance(frames, VideoTurn):
            # Without the frames, so that `self.frames = None` frees them.
            self.video_turn, self.detail = replace(frames, frames=_NO_FRAMES), frames.detail
            frames = frames.frames
        self.frames = to_frames(frames)
        _check_num_frames(len(self.frames), stream.config.video, self.detail)
        self.question = question
        self.turn: Turn | None = None

    def _on_begin(self, prefill_pending: PrefillPending):
        stream = self.stream
        query = stream.query  # other threads may set it at any moment
        with stream.stats.stage("evict"):
            self.turn = self._new_turn()
            is_new_query = query != stream.cached_query
            if is_new_query:
                self.sequence.evict(without_query(self.sequence.layout))
            is_first = self._evict(prefill_pending)
            self._append_turn(query if is_first or is_new_query else "")
            self.sequence.attach_vision(self.turn.index, self.vision)
            stream.set_cached_query(query)
        self.frames = None

    def _new_turn(self) -> Turn:
        index, turn_s, video_turn = self.stream.num_turns, self.stream.config.video.turn_s, self.video_turn
        times_s = (video_turn.start_s, video_turn.end_s) if video_turn else (index * turn_s, (index + 1) * turn_s)
        return Turn(index, *times_s, self.vision.grid)

    def _evict(self, prefill_pending: PrefillPending) -> bool:
        """Apply the cache policy; return True if the cache starts, or restarts, with this turn."""
        sequence, turn = self.sequence, self.turn
        is_first = not sequence.layout.segments
        if is_first:
            self._append_prologue()
        plan = plan_eviction(sequence.layout, sequence.config, turn=turn.index, start_s=turn.start_s, end_s=turn.end_s)
        if sequence.moves_pending(plan):
            prefill_pending(sequence)
        sequence.evict(plan)
        if plan.restart:
            self._append_prologue()
        return is_first or plan.restart

    def _append_prologue(self):
        self.sequence.append(self.stream.config.turn_format.prologue(self.stream.previous_text))

    def _append_turn(self, query: str):
        turn_format, sequence = self.stream.config.turn_format, self.sequence
        last = sequence.layout.segments[-1]
        if last.kind is SegmentKind.REPLY_END:
            sequence.append(turn_format.line_feed(Turn(last.turn, last.start_s, last.end_s, (0, 0, 0))))
        sequence.append(turn_format.open_turn(self.turn, query, self.question))


def _check_num_frames(num_frames: int, video: VideoConfig, detail: float):
    """Raise VideoError unless a turn has as many frames as the settings say; with less detail, it may have fewer."""
    if num_frames != video.num_frames and not (detail < 1 and num_frames < video.num_frames):
        raise VideoError(
            f"the frames of a turn are {num_frames}, expected {video.num_frames}: video.fps={video.fps:g} times "
            f"video.turn_s={video.turn_s:g}; give that many, or set video.fps"
        )


class GenerateTurn(TurnRequest):
    """A turn with a generated reply, or a forced silent one if P(silence) is at least ``silence_threshold``.

    Below the threshold, silence is ruled out. Without a threshold, or with a question, it is sampled like any token.
    VideoLLM-online (arXiv 2406.11816) uses such a threshold to adjust how often the model speaks.
    """

    def __init__(self, stream: Stream, frames: Frames | VideoTurn, question: str, max_new_tokens: int):
        super().__init__(stream, frames, question)
        self.max_new_tokens = max_new_tokens
        self.score_token_ids = (stream.config.turn_format.silent_ids,)
        self.silence: float | None = None
        self._reply_end: Tokens | None = None
        self._sent_text = ""

    def _on_begin(self, prefill_pending: PrefillPending):
        super()._on_begin(prefill_pending)
        self.sampler.reset_penalty(self.sequence.ids)

    def on_first_logits(self, probabilities: Sequence[float], logits: torch.Tensor) -> bool:
        (self.silence,) = probabilities
        threshold = self.stream.config.sampling.silence_threshold
        if threshold is None or self.question:  # with a question, silence is neither forced nor ruled out
            return False
        if self.silence >= threshold:
            self._force_silence()
            return True
        silent_ids = on_device(self.stream.config.turn_format.silent_ids, torch.long, logits.device)
        logits.index_fill_(0, silent_ids, -torch.inf)
        return False

    def _force_silence(self):
        """Append the silent reply, which is prefilled; generate nothing."""
        reply, self._reply_end = self.stream.config.turn_format.given_reply(self.turn, "")
        self.max_new_tokens, self.score_token_ids = 0, ()
        self.sequence.append(reply)
        self.sequence.prepare_positions()

    def append(self, token: int):
        super().append(token)
        if self.stream.on_token is not None:
            self._send_text()

    def _send_text(self):
        """Call ``on_token`` with the new text; hold back an incomplete UTF-8 character."""
        text = self.stream.config.turn_format.spoken_text(self.reply)
        if text != self._sent_text and not text.endswith("\ufffd"):
            new, self._sent_text = text[len(self._sent_text) :], text
            self.stream.on_token(new)

    def _finish(self):
        turn_format = self.stream.config.turn_format
        # A forced silent reply is in the layout already: only its end is added.
        self.sequence.commit_reply(self._reply_end or turn_format.close_turn(self.turn, self.reply))
        text = turn_format.spoken_text(self.reply)
        return self.stream.finish_turn(
            self.turn, self.created_at, text, len(self.reply), silence=self.silence, video_turn=self.video_turn
        )


class ForcedTurn(TurnRequest):
    """A turn with a given reply, which is prefilled instead of generated.

    Its last tokens stay pending until the next turn, as those of a generated reply do.
    """

    def __init__(self, stream: Stream, frames: Frames | VideoTurn, question: str, reply: str):
        super().__init__(stream, frames, question)
        self.text = reply

    def _on_begin(self, prefill_pending: PrefillPending):
        super()._on_begin(prefill_pending)
        reply, self._reply_end = self.stream.config.turn_format.given_reply(self.turn, self.text)
        self.sequence.append(reply)

    def _finish(self):
        self.sequence.append(self._reply_end)
        text = " ".join(self.text.split())
        return self.stream.finish_turn(self.turn, self.created_at, text, 0, video_turn=self.video_turn)
