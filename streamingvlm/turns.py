"""The turn format: how turns of video and words become tokens, in training and in inference alike.

This is the only module that knows chat markup. It returns token ids together with the segments that they form, so that
the cache can distinguish a query from a time label without parsing tokens. The format is the released checkpoint's: one
user message per turn, a role named ``previous text``, and absolute times. Time labels have one of two forms:

    time-range-1      one range before all vision of the turn, as in the released checkpoint
    patch-seconds-1   the seconds of each temporal patch before that patch, as in Qwen3-VL
"""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import chain

from streamingvlm.cache.layout import Segment, SegmentKind
from streamingvlm.config import VideoConfig
from streamingvlm.errors import CheckpointError
from streamingvlm.model.family import Family

Grid = tuple[int, int, int]

SYSTEM_PROMPT = "You are a helpful assistant."
ELLIPSIS = " ..."
SUPERVISED_KINDS = frozenset({SegmentKind.SPEECH, SegmentKind.TAIL, SegmentKind.REPLY_END})

_END_OF_TURN = "<|im_end|>"
_END_OF_TEXT = "<|endoftext|>"
_VISION_PAD = "<|video_pad|>"
_MARKUP = {
    SegmentKind.SYSTEM: f"<|im_start|>system\n{SYSTEM_PROMPT}<|im_end|>\n",
    SegmentKind.PREVIOUS_OPEN: "<|im_start|>previous text\n",
    SegmentKind.PREVIOUS_CLOSE: "<|im_end|>\n",
    SegmentKind.USER_OPEN: "<|im_start|>user\n",
    SegmentKind.VISION_START: "<|vision_start|>",
    SegmentKind.VISION_END: "<|vision_end|>",
    SegmentKind.USER_CLOSE: "<|im_end|>\n",
    SegmentKind.REPLY_OPEN: "<|im_start|>assistant\n",
    SegmentKind.REPLY_END: _END_OF_TURN,
    SegmentKind.LINE_FEED: "\n",
}


@dataclass(frozen=True)
class Tokens:
    """Token ids and the segments that they form, in order; the segments have len(ids) tokens in all."""

    ids: tuple[int, ...] = ()
    segments: tuple[Segment, ...] = ()

    def __add__(self, other: "Tokens") -> "Tokens":
        return Tokens(self.ids + other.ids, self.segments + other.segments)

    def __len__(self) -> int:
        return len(self.ids)

    def supervised(self) -> list[bool]:
        """Return per token True if it is a training target: the words of a reply, its tail and its end of turn."""
        return [s.kind in SUPERVISED_KINDS for s in self.segments for _ in range(s.num_tokens)]


@dataclass(frozen=True)
class Turn:
    """A turn: its index, its stream time, and the (t, h, w) grid of its vision after merging."""

    index: int
    start_s: float
    end_s: float
    grid: Grid

    @property
    def num_vision_tokens(self) -> int:
        """Vision tokens of the turn."""
        return math.prod(self.grid)


class TurnFormat:
    """Converts turns of video and words into tokens, with one tokenizer.

    tokenizer: a Hugging Face tokenizer whose vocabulary has Qwen's chat and vision markers; otherwise CheckpointError.
    temporal_step: rotary positions between two temporal steps of a vision grid.
    name: one of TURN_FORMATS.
    fps, frames_per_patch: frames per second and frames per temporal patch, from which patch-seconds-1 computes times.
    """

    def __init__(
        self,
        tokenizer,
        *,
        temporal_step: float,
        name: str = "time-range-1",
        fps: float = 2.0,
        frames_per_patch: int = 2,
    ):
        self.tokenizer = tokenizer
        self.temporal_step = temporal_step
        self.name = name
        self.fps = fps
        self.frames_per_patch = frames_per_patch
        self._vision_spans = {"time-range-1": self._one_span, "patch-seconds-1": self._span_each_patch}[name]
        self.end_of_turn_id = self._special(_END_OF_TURN)
        self.stop_ids = frozenset({self.end_of_turn_id, self._special(_END_OF_TEXT)})
        self.vision_pad_id = self._special(_VISION_PAD)
        self.ellipsis_ids = self.encode(ELLIPSIS)
        self._markup = {kind: self.encode(text) for kind, text in _MARKUP.items()}

    @classmethod
    def of(cls, tokenizer, family: Family, video: VideoConfig) -> "TurnFormat":
        """Return the turn format for a family's checkpoints, in training and in streams."""
        return cls(
            tokenizer,
            temporal_step=family.temporal_step(family.temporal_patch_size / video.fps),
            name=video.turn_format or family.turn_format,
            fps=video.fps,
            frames_per_patch=family.temporal_patch_size,
        )

    def encode(self, text: str) -> tuple[int, ...]:
        """Tokenize markup, with special tokens."""
        return tuple(self.tokenizer.encode(text, add_special_tokens=False))

    def encode_plain(self, text: str) -> tuple[int, ...]:
        """Tokenize text from a user; special tokens in it become ordinary characters."""
        if not text:  # common, and a tokenizer call is slow
            return ()
        return tuple(self.tokenizer.encode(text, add_special_tokens=False, split_special_tokens=True))

    def prologue(self, previous_text: str = "") -> Tokens:
        """The start of a stream: the system prompt and the text before the first turn."""
        return self.prologue_from_ids(self.encode_plain(previous_text))

    def prologue_from_ids(self, previous_ids: Sequence[int]) -> Tokens:
        """The start of a stream, from the token ids of the previous text."""
        return _join(
            self._piece(SegmentKind.SYSTEM),
            self._piece(SegmentKind.PREVIOUS_OPEN),
            (SegmentKind.PREVIOUS, previous_ids),
            self._piece(SegmentKind.PREVIOUS_CLOSE),
        )

    def line_feed(self, turn: Turn) -> Tokens:
        """The line feed after a closed turn. It is appended when another turn follows."""
        return self._of_turn(turn, self._piece(SegmentKind.LINE_FEED))

    def open_turn(self, turn: Turn, query: str = "", question: str = "") -> Tokens:
        """A turn of video, up to the start of the model's reply.

        query: for the whole stream. question: for this turn. Both follow the vision.
        """
        tokens = self._of_turn(turn, self._piece(SegmentKind.USER_OPEN))
        for label, grid in self._vision_spans(turn):
            tokens += self._vision(turn, label, grid)
        return tokens + self._of_turn(
            turn,
            (SegmentKind.QUERY, self.encode_plain(query)),
            (SegmentKind.QUESTION, self.encode_plain(f"\n{question}" if query and question else question)),
            self._piece(SegmentKind.USER_CLOSE),
            self._piece(SegmentKind.REPLY_OPEN),
        )

    def message(self, turn: Turn, words: str) -> Tokens:
        """A user message of words without video, up to the start of the model's reply."""
        return self._of_turn(
            turn,
            self._piece(SegmentKind.USER_OPEN),
            (SegmentKind.QUESTION, self.encode_plain(words)),
            self._piece(SegmentKind.USER_CLOSE),
            self._piece(SegmentKind.REPLY_OPEN),
        )

    def fill_video(self, chat_ids: Sequence[int], turn: Turn) -> tuple[int, ...]:
        """Expand the video placeholder of an ordinary chat to the vision of ``turn``, as Hugging Face processors do.

        patch-seconds-1 writes the time of each patch before it; time-range-1 writes no time. Raises CheckpointError
        unless the chat has exactly one placeholder.
        """
        chat_ids = tuple(chat_ids)
        if chat_ids.count(self.vision_pad_id) != 1:
            raise CheckpointError("the chat template has no placeholder for one video; give an instruct checkpoint")
        start = chat_ids.index(self.vision_pad_id)
        if self.name == "time-range-1":
            return chat_ids[:start] + (self.vision_pad_id,) * turn.num_vision_tokens + chat_ids[start + 1 :]
        spans = [self._vision(turn, label, grid).ids for label, grid in self._vision_spans(turn)]
        return chat_ids[: start - 1] + tuple(chain(*spans)) + chat_ids[start + 2 :]

    def _vision(self, turn: Turn, label: str, grid: Grid) -> Tokens:
        """A time label, and vision between its markers."""
        num_tokens = math.prod(grid)
        vision = Segment(SegmentKind.VISION, num_tokens, turn.index, turn.start_s, turn.end_s, grid, self.temporal_step)
        before = self._of_turn(turn, (SegmentKind.TIME, self.encode(label)), self._piece(SegmentKind.VISION_START))
        pads = Tokens((self.vision_pad_id,) * num_tokens, (vision,))
        return before + pads + self._of_turn(turn, self._piece(SegmentKind.VISION_END))

    def _one_span(self, turn: Turn) -> Iterator[tuple[str, Grid]]:
        yield f"Time={turn.start_s:.1f}-{turn.end_s:.1f}s", turn.grid

    def _span_each_patch(self, turn: Turn) -> Iterator[tuple[str, Grid]]:
        """The label is the mean time of the patch's first and last frame, as in the processor of Qwen3-VL."""
        num_patches, height, width = turn.grid
        num_frames = round((turn.end_s - turn.start_s) * self.fps)
        num_shown = max(1, min(num_frames, num_patches * self.frames_per_patch))
        for first in range(0, num_patches * self.frames_per_patch, self.frames_per_patch):
            # An incomplete patch is filled by repeating its last frame, which keeps its time. A turn that spans more
            # frames than it shows (after live.policy=coalesce) shows the last frame of each of `num_shown` equal parts.
            last = max(first, min(first + self.frames_per_patch, num_shown) - 1)
            frames = ((index + 1) * num_frames / num_shown - 1 for index in (first, last))
            first_s, last_s = (turn.start_s + frame / self.fps for frame in frames)
            yield f"<{(first_s + last_s) / 2:.1f} seconds>", (1, height, width)

    def standing_query(self, turn: Turn, query: str) -> Tokens:
        """The part of the query's turn that stays in the cache after the rest of the turn is evicted."""
        if not query:
            return Tokens()
        return self._of_turn(
            turn,
            self._piece(SegmentKind.USER_OPEN),
            (SegmentKind.QUERY, self.encode_plain(query)),
            self._piece(SegmentKind.USER_CLOSE),
        )

    def speech_ids(self, words: str) -> tuple[int, ...]:
        """Token ids of the words of a reply, each preceded by a space; empty for a silent turn."""
        return self.encode_plain("".join(f" {word}" for word in words.split()))

    def reply(self, turn: Turn, words: str) -> Tokens:
        """A complete reply with these words; an empty string is a silent reply."""
        return self.close_turn(turn, (*self.speech_ids(words), *self.ellipsis_ids, self.end_of_turn_id))

    @property
    def silent_ids(self) -> tuple[int, ...]:
        """Token ids that a silent reply can start with: the first token of `` ...``, or a stop token."""
        return (self.ellipsis_ids[0], *self.stop_ids)

    def given_reply(self, turn: Turn, words: str) -> tuple[Tokens, Tokens]:
        """A complete reply in two parts: the tokens in the cache after a model generated it, and the last token."""
        reply = self.reply(turn, words)
        return Tokens(reply.ids[:-1], reply.segments[:-1]), Tokens(reply.ids[-1:], reply.segments[-1:])

    def close_turn(self, turn: Turn, reply_ids: Sequence[int]) -> Tokens:
        """Split generated tokens into words, tail and end of turn; append an end of turn if the model wrote none.

        The tail is a trailing `` ...`` and any end-of-text token. No token is removed.
        """
        has_end = bool(reply_ids) and reply_ids[-1] == self.end_of_turn_id
        body = reply_ids[:-1] if has_end else reply_ids
        words = self._words(body)
        return self._of_turn(
            turn,
            (SegmentKind.SPEECH, words),
            (SegmentKind.TAIL, body[len(words) :]),
            self._piece(SegmentKind.REPLY_END),
        )

    def spoken_text(self, reply_ids: Sequence[int]) -> str:
        """The words of a complete or partial reply, as text."""
        return self.decode(self._words(reply_ids)).strip()

    def _words(self, reply_ids: Sequence[int]) -> Sequence[int]:
        """The reply without stop tokens at its end and without one trailing `` ...``."""
        words = reply_ids
        while words and words[-1] in self.stop_ids:
            words = words[:-1]
        has_tail = tuple(words[-len(self.ellipsis_ids) :]) == self.ellipsis_ids
        return words[: -len(self.ellipsis_ids)] if has_tail else words

    def decode(self, ids: Sequence[int]) -> str:
        """Decode token ids to text, without special tokens."""
        return self.tokenizer.decode(list(ids), skip_special_tokens=True)

    def _special(self, token: str) -> int:
        ids = self.encode(token)
        if len(ids) != 1:
            name = self.tokenizer.name_or_path or "the tokenizer"
            raise CheckpointError(f"{name} has no single token for {token}; give a checkpoint of a Qwen chat model")
        return ids[0]

    def _piece(self, kind: SegmentKind) -> tuple[SegmentKind, tuple[int, ...]]:
        return kind, self._markup[kind]

    def _of_turn(self, turn: Turn, *pieces: tuple[SegmentKind, Sequence[int]]) -> Tokens:
        return _join(*pieces, turn=turn.index, start_s=turn.start_s, end_s=turn.end_s)


def _join(*pieces: tuple[SegmentKind, Sequence[int]], **when) -> Tokens:
    pieces = [(kind, ids) for kind, ids in pieces if len(ids)]
    segments = tuple(Segment(kind, len(ids), **when) for kind, ids in pieces)
    return Tokens(tuple(token for _, ids in pieces for token in ids), segments)
