"""The turn format: one second of video as tokens, for training and for inference alike.

This is the only file that knows chat markup. It asks the tokenizer for every id, scans none, and returns with the ids
the segments that they form, so that the cache can tell a query from a time label without looking at a token. The shape
is the released checkpoint's: one user turn a second, a role named ``previous text``, absolute times. The time of vision
is told in one of two forms: a range before all vision of the turn (``time-range-1``), as the released checkpoint knows
it, or the seconds of each temporal patch before that patch (``patch-seconds-1``), as Qwen3-VL does.
"""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import chain
from typing import TYPE_CHECKING

from streamingvlm.cache.layout import Segment, SegmentKind
from streamingvlm.config import VideoConfig
from streamingvlm.errors import CheckpointError

if TYPE_CHECKING:
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
    """Token ids and the segments that they form, in order; ``sum`` of the segments' tokens == len(ids)."""

    ids: tuple[int, ...] = ()
    segments: tuple[Segment, ...] = ()

    def __add__(self, other: "Tokens") -> "Tokens":
        return Tokens(self.ids + other.ids, self.segments + other.segments)

    def __len__(self) -> int:
        return len(self.ids)

    def supervised(self) -> list[bool]:
        """Per token, whether training asks the model for it: the assistant's words, their tail and the end of turn."""
        return [s.kind in SUPERVISED_KINDS for s in self.segments for _ in range(s.num_tokens)]


@dataclass(frozen=True)
class Turn:
    """One second of the chat: when it is, and the merged (t, h, w) grid of its vision."""

    index: int
    start_s: float
    end_s: float
    grid: Grid

    @property
    def num_vision_tokens(self) -> int:
        """Vision tokens of the turn."""
        return math.prod(self.grid)


class TurnFormat:
    """Turns seconds and words into tokens with one tokenizer.

    tokenizer: a Hugging Face tokenizer whose vocabulary has Qwen's chat and vision markers; CheckpointError otherwise.
    temporal_step: rotary positions between two temporal steps of a vision grid.
    name: one of TURN_FORMATS, how the time of the vision is told.
    fps, frames_per_patch: frames a second, and frames in a temporal patch: where a patch lies in its turn.
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
    def of(cls, tokenizer, family: "Family", video: VideoConfig) -> "TurnFormat":
        """The format in which checkpoints of a family are shown video, in training and in a stream."""
        return cls(
            tokenizer,
            temporal_step=family.temporal_step(family.temporal_patch_size / video.fps),
            name=video.turn_format or family.turn_format,
            fps=video.fps,
            frames_per_patch=family.temporal_patch_size,
        )

    def encode(self, text: str) -> tuple[int, ...]:
        """Token ids of markup written by this project."""
        return tuple(self.tokenizer.encode(text, add_special_tokens=False))

    def encode_plain(self, text: str) -> tuple[int, ...]:
        """Token ids of a user's words, in which special tokens are read as mere characters."""
        if not text:  # most turns have neither query nor question, and a tokenizer takes its time over nothing
            return ()
        return tuple(self.tokenizer.encode(text, add_special_tokens=False, split_special_tokens=True))

    def prologue(self, previous_text: str = "") -> Tokens:
        """What a stream opens with: the system prompt and the text that came before the first second."""
        return self.prologue_from_ids(self.encode_plain(previous_text))

    def prologue_from_ids(self, previous_ids: Sequence[int]) -> Tokens:
        """The same, from the ids of the previous text."""
        return _join(
            self._piece(SegmentKind.SYSTEM),
            self._piece(SegmentKind.PREVIOUS_OPEN),
            (SegmentKind.PREVIOUS, previous_ids),
            self._piece(SegmentKind.PREVIOUS_CLOSE),
        )

    def line_feed(self, turn: Turn) -> Tokens:
        """The line feed after a turn that was closed; it is read only when another turn follows."""
        return self._of_turn(turn, self._piece(SegmentKind.LINE_FEED))

    def open_turn(self, turn: Turn, query: str = "", question: str = "") -> Tokens:
        """A second of video, up to where the model begins to speak.

        After the vision stand the query, which is for the whole stream, and a question, which is for this turn.
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
        """A user's message of words alone, without video, up to where the model begins to answer."""
        return self._of_turn(
            turn,
            self._piece(SegmentKind.USER_OPEN),
            (SegmentKind.QUESTION, self.encode_plain(words)),
            self._piece(SegmentKind.USER_CLOSE),
            self._piece(SegmentKind.REPLY_OPEN),
        )

    def fill_video(self, chat_ids: Sequence[int], turn: Turn) -> tuple[int, ...]:
        """Put the vision of ``turn`` where an ordinary chat has the place of its one video, as the processors do.

        Qwen3-VL has the seconds of each patch before it; the others have no time in their text. Raises CheckpointError
        where the chat has not one such place.
        """
        chat_ids = tuple(chat_ids)
        if chat_ids.count(self.vision_pad_id) != 1:
            raise CheckpointError("the chat template has no place for one video; give an instruct checkpoint")
        place = chat_ids.index(self.vision_pad_id)
        if self.name == "time-range-1":
            return chat_ids[:place] + (self.vision_pad_id,) * turn.num_vision_tokens + chat_ids[place + 1 :]
        spans = [self._vision(turn, label, grid).ids for label, grid in self._vision_spans(turn)]
        return chat_ids[: place - 1] + tuple(chain(*spans)) + chat_ids[place + 2 :]

    def _vision(self, turn: Turn, label: str, grid: Grid) -> Tokens:
        """A span of vision between its markers, its time before it."""
        num_tokens = math.prod(grid)
        vision = Segment(SegmentKind.VISION, num_tokens, turn.index, turn.start_s, turn.end_s, grid, self.temporal_step)
        before = self._of_turn(turn, (SegmentKind.TIME, self.encode(label)), self._piece(SegmentKind.VISION_START))
        pads = Tokens((self.vision_pad_id,) * num_tokens, (vision,))
        return before + pads + self._of_turn(turn, self._piece(SegmentKind.VISION_END))

    def _one_span(self, turn: Turn) -> Iterator[tuple[str, Grid]]:
        yield f"Time={turn.start_s:.1f}-{turn.end_s:.1f}s", turn.grid

    def _span_each_patch(self, turn: Turn) -> Iterator[tuple[str, Grid]]:
        """The label is the mean time of the patch's first and last frame, as the processor of Qwen3-VL writes it."""
        num_patches, height, width = turn.grid
        num_frames = round((turn.end_s - turn.start_s) * self.fps)
        num_shown = max(1, min(num_frames, num_patches * self.frames_per_patch))
        for first in range(0, num_patches * self.frames_per_patch, self.frames_per_patch):
            # An incomplete patch is filled with its last frame, which is shown at its own time. Of a turn that stands
            # for several seconds, the last frame of each of `num_shown` equal parts is shown.
            last = max(first, min(first + self.frames_per_patch, num_shown) - 1)
            frames = ((place + 1) * num_frames / num_shown - 1 for place in (first, last))
            first_s, last_s = (turn.start_s + frame / self.fps for frame in frames)
            yield f"<{(first_s + last_s) / 2:.1f} seconds>", (1, height, width)

    def standing_query(self, turn: Turn, query: str) -> Tokens:
        """What is left of the turn that brought the query once its second has gone by."""
        if not query:
            return Tokens()
        return self._of_turn(
            turn,
            self._piece(SegmentKind.USER_OPEN),
            (SegmentKind.QUERY, self.encode_plain(query)),
            self._piece(SegmentKind.USER_CLOSE),
        )

    def speech_ids(self, words: str) -> tuple[int, ...]:
        """Ids of the words of a reply, each word with a space before it; none for a silent second."""
        return self.encode_plain("".join(f" {word}" for word in words.split()))

    def reply(self, turn: Turn, words: str) -> Tokens:
        """The reply that says ``words``; an empty string is a silent second."""
        return self.close_turn(turn, (*self.speech_ids(words), *self.ellipsis_ids, self.end_of_turn_id))

    @property
    def silent_reply(self) -> tuple[int, ...]:
        """Ids of the reply of a silent second."""
        return (*self.ellipsis_ids, self.end_of_turn_id)

    @property
    def silent_ids(self) -> tuple[int, ...]:
        """Ids with which a reply begins that says nothing; of a `` ...`` of several tokens the first."""
        return (self.ellipsis_ids[0], *self.stop_ids)

    def given_reply(self, turn: Turn, words: str) -> tuple[Tokens, Tokens]:
        """The reply that says ``words``, in two parts: what a model that has said them has read, and the end."""
        reply = self.reply(turn, words)
        return Tokens(reply.ids[:-1], reply.segments[:-1]), Tokens(reply.ids[-1:], reply.segments[-1:])

    def close_turn(self, turn: Turn, reply_ids: Sequence[int]) -> Tokens:
        """Tell apart the words, the tail and the end of a reply; an end that the model did not write is appended.

        The tail is a trailing `` ...`` and an end-of-text: all that is not speech. Nothing else is cut.
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
        """The words of a reply, finished or not, as a person reads them."""
        return self.decode(self._words(reply_ids)).strip()

    def _words(self, reply_ids: Sequence[int]) -> Sequence[int]:
        """The reply without its end and one trailing `` ...``."""
        words = reply_ids
        while words and words[-1] in self.stop_ids:
            words = words[:-1]
        has_tail = tuple(words[-len(self.ellipsis_ids) :]) == self.ellipsis_ids
        return words[: -len(self.ellipsis_ids)] if has_tail else words

    def decode(self, ids: Sequence[int]) -> str:
        """The words that ``ids`` spell, without special tokens."""
        return self.tokenizer.decode(list(ids), skip_special_tokens=True)

    def _special(self, token: str) -> int:
        ids = self.encode(token)
        if len(ids) != 1:
            name = self.tokenizer.name_or_path or "the tokenizer"
            raise CheckpointError(f"{name} does not know {token} as one token; give a checkpoint of a Qwen chat model")
        return ids[0]

    def _piece(self, kind: SegmentKind) -> tuple[SegmentKind, tuple[int, ...]]:
        return kind, self._markup[kind]

    def _of_turn(self, turn: Turn, *pieces: tuple[SegmentKind, Sequence[int]]) -> Tokens:
        return _join(*pieces, turn=turn.index, start_s=turn.start_s, end_s=turn.end_s)


def _join(*pieces: tuple[SegmentKind, Sequence[int]], **when) -> Tokens:
    pieces = [(kind, ids) for kind, ids in pieces if len(ids)]
    return Tokens(
        tuple(token for _, ids in pieces for token in ids),
        tuple(Segment(kind, len(ids), **when) for kind, ids in pieces),
    )
