"""The turn format: one second of video as tokens, for training and for inference alike.

This is the only file that knows chat markup. It asks the tokenizer for every id, scans none, and returns with the ids
the segments that they form, so that the cache can tell a query from a time label without looking at a token. The shape
is the released checkpoint's (one user turn a second with an absolute time label, a role named ``previous text``).
"""

from collections.abc import Sequence
from dataclasses import dataclass

from streamingvlm.cache.layout import Kind, Segment

SYSTEM_PROMPT = "You are a helpful assistant."
ELLIPSIS = " ..."
SUPERVISED_KINDS = frozenset({Kind.SPEECH, Kind.TAIL, Kind.REPLY_END})

_END_OF_TURN = "<|im_end|>"
_END_OF_TEXT = "<|endoftext|>"
_VISION_PAD = "<|video_pad|>"


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
    grid: tuple[int, int, int]

    @property
    def num_vision_tokens(self) -> int:
        """Vision tokens of the turn."""
        t, h, w = self.grid
        return t * h * w


class TurnFormat:
    """Turns seconds and words into tokens with one tokenizer.

    tokenizer: a Hugging Face tokenizer whose vocabulary has Qwen's chat and vision markers.
    temporal_step: rotary positions between two temporal steps of a vision grid.
    """

    def __init__(self, tokenizer, *, temporal_step: float):
        self.tokenizer = tokenizer
        self.temporal_step = temporal_step
        self.end_of_turn_id = self._special(_END_OF_TURN)
        self.stop_ids = frozenset({self.end_of_turn_id, self._special(_END_OF_TEXT)})
        self.vision_pad_id = self._special(_VISION_PAD)
        self.ellipsis_ids = self.encode(ELLIPSIS)

    def encode(self, text: str) -> tuple[int, ...]:
        """Token ids of markup written by this project."""
        return tuple(self.tokenizer.encode(text, add_special_tokens=False))

    def encode_plain(self, text: str) -> tuple[int, ...]:
        """Token ids of a user's words, in which special tokens are read as mere characters."""
        return tuple(self.tokenizer.encode(text, add_special_tokens=False, split_special_tokens=True))

    def prologue(self, previous_text: str = "") -> Tokens:
        """What a stream opens with: the system prompt and the text that came before the first second."""
        return self.prologue_from_ids(self.encode_plain(previous_text))

    def prologue_from_ids(self, previous_ids: Sequence[int]) -> Tokens:
        """The same, from the ids of the previous text."""
        return _join(
            (Kind.SYSTEM, self.encode(f"<|im_start|>system\n{SYSTEM_PROMPT}<|im_end|>\n")),
            (Kind.PREVIOUS_OPEN, self.encode("<|im_start|>previous text\n")),
            (Kind.PREVIOUS, previous_ids),
            (Kind.PREVIOUS_CLOSE, self.encode("<|im_end|>\n")),
        )

    def line_feed(self, turn: Turn) -> Tokens:
        """The line feed after a turn that was closed; it is read only when another turn follows."""
        return self._of_turn(turn, (Kind.LINE_FEED, self.encode("\n")))

    def open_turn(self, turn: Turn, query: str = "") -> Tokens:
        """A second of video, up to where the model begins to speak; the query, if any, stands after the vision."""
        vision = Segment(
            Kind.VISION, turn.num_vision_tokens, turn.index, turn.start_s, turn.end_s, turn.grid, self.temporal_step
        )
        before = self._of_turn(
            turn,
            (Kind.USER_OPEN, self.encode("<|im_start|>user\n")),
            (Kind.TIME, self.encode(f"Time={turn.start_s:.1f}-{turn.end_s:.1f}s")),
            (Kind.VISION_START, self.encode("<|vision_start|>")),
        )
        after = self._of_turn(
            turn,
            (Kind.VISION_END, self.encode("<|vision_end|>")),
            (Kind.QUERY, self.encode_plain(query)),
            (Kind.USER_CLOSE, self.encode("<|im_end|>\n")),
            (Kind.REPLY_OPEN, self.encode("<|im_start|>assistant\n")),
        )
        return before + Tokens((self.vision_pad_id,) * turn.num_vision_tokens, (vision,)) + after

    def standing_query(self, turn: Turn, query: str) -> Tokens:
        """What is left of the turn that brought the query once its second has gone by."""
        if not query:
            return Tokens()
        return self._of_turn(
            turn,
            (Kind.USER_OPEN, self.encode("<|im_start|>user\n")),
            (Kind.QUERY, self.encode_plain(query)),
            (Kind.USER_CLOSE, self.encode("<|im_end|>\n")),
        )

    def speech_ids(self, words: str) -> tuple[int, ...]:
        """Ids of the words of a reply, each word with a space before it; none for a silent second."""
        return self.encode_plain("".join(f" {word}" for word in words.split()))

    def reply(self, turn: Turn, words: str) -> Tokens:
        """The reply that says ``words``; an empty string is a silent second."""
        return self.close_turn(turn, (*self.speech_ids(words), *self.ellipsis_ids, self.end_of_turn_id))

    def close_turn(self, turn: Turn, reply_ids: Sequence[int]) -> Tokens:
        """Tell apart the words, the tail and the end of a reply; an end that the model did not write is appended.

        The tail is a trailing `` ...`` and an end-of-text: all that is not speech. Nothing else is cut.
        """
        has_end = bool(reply_ids) and reply_ids[-1] == self.end_of_turn_id
        body = reply_ids[:-1] if has_end else reply_ids
        words = self._words(body)
        return self._of_turn(
            turn,
            (Kind.SPEECH, words),
            (Kind.TAIL, body[len(words) :]),
            (Kind.REPLY_END, (self.end_of_turn_id,)),
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
        assert len(ids) == 1, f"the tokenizer does not know {token} as one token"
        return ids[0]

    def _of_turn(self, turn: Turn, *pieces: tuple[Kind, Sequence[int]]) -> Tokens:
        return _join(*pieces, turn=turn.index, start_s=turn.start_s, end_s=turn.end_s)


def _join(*pieces: tuple[Kind, Sequence[int]], **when) -> Tokens:
    pieces = [(kind, ids) for kind, ids in pieces if len(ids)]
    return Tokens(
        tuple(token for _, ids in pieces for token in ids),
        tuple(Segment(kind, len(ids), **when) for kind, ids in pieces),
    )
