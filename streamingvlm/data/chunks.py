"""Chunks: overlapping spans of a recording, the unit of training.

An endless stream cannot be trained on whole. Sec. 3.2 of the StreamingVLM paper trains on short overlapping chunks with
full attention inside each. The commentary before a chunk goes into the ``previous text``, trimmed as the cache of a
stream would trim it.
"""

from collections.abc import Sequence
from functools import lru_cache

from streamingvlm.cache.eviction import kept_text_ranges
from streamingvlm.errors import ConfigError
from streamingvlm.turns import Tokens, Turn, TurnFormat

_MAX_LINE_CHARACTERS = 512


class CachedTokenizer:
    """A tokenizer for `TurnFormat` with an LRU cache, since overlapping chunks encode the same lines many times.

    Few texts longer than a line are kept: previous texts have thousands of words, and each example may have its own.
    """

    def __init__(self, tokenizer):
        self.decode = tokenizer.decode
        self._encode_text = lru_cache(maxsize=32)(tokenizer.encode)
        self._encode_line = lru_cache(maxsize=2**16)(tokenizer.encode)

    def encode(self, text: str, **options) -> list[int]:
        """Return the ids of a text, as the tokenizer does."""
        encode = self._encode_line if len(text) <= _MAX_LINE_CHARACTERS else self._encode_text
        return encode(text, **options)


def plan_chunks(num_turns: int, *, chunk_turns: int = 24, overlap_turns: int = 12) -> list[range]:
    """Cut ``num_turns`` turns into chunks of ``chunk_turns``, each sharing ``overlap_turns`` with the one before.

    The last chunk may be shorter; no chunk lies wholly inside the one before. Raises ConfigError if the overlap is not
    shorter than the chunk.
    """
    if not 0 <= overlap_turns < chunk_turns:
        raise ConfigError(
            f"chunks of {chunk_turns} turns cannot share {overlap_turns}; give an overlap from 0 to {chunk_turns - 1}"
        )
    step = chunk_turns - overlap_turns
    starts = range(0, max(num_turns - overlap_turns, min(num_turns, 1)), step)
    return [range(start, min(start + chunk_turns, num_turns)) for start in starts]


def previous_ids(
    turn_format: TurnFormat,
    previous_text: str,
    lines: Sequence[str],
    *,
    sink_tokens: int,
    window_tokens: int,
    step_tokens: int = 1,
    num_left_out: int = 0,
) -> tuple[int, ...]:
    """Return the ids of a chunk's previous text: the text from before the stream, then every earlier line.

    The middle is dropped as in the cache (`kept_text_ranges`): the first ``sink_tokens`` stay, and at the
    end at most ``window_tokens`` and at least ``window_tokens - step_tokens + 1``. num_left_out: tokens of lines that
    the caller has left out because they lie in the dropped middle; leaving out any other line gives wrong ids.
    """
    ids = turn_format.encode_plain(previous_text)
    for line in lines:
        ids += turn_format.speech_ids(line)
    first, *rest = kept_text_ranges(len(ids) + num_left_out, sink_tokens, window_tokens, step_tokens)
    kept = [first, *((start - num_left_out, stop - num_left_out) for start, stop in rest)]
    return tuple(token for start, stop in kept for token in ids[start:stop])


def chunk_tokens(
    turn_format: TurnFormat, turns: Sequence[Turn], lines: Sequence[str], previous: Sequence[int], *, query: str = ""
) -> Tokens:
    """Return the tokens of a chunk: the prologue with the ``previous`` ids, then each turn with its line as the reply.

    The query is part of turn 0. In a later chunk it follows the prologue, where the cache of a stream keeps it.
    """
    tokens = turn_format.prologue_from_ids(previous)
    if turns[0].index > 0:
        tokens += turn_format.standing_query(turns[0], query)
    for number, (turn, line) in enumerate(zip(turns, lines, strict=True)):
        if number:
            tokens += turn_format.line_feed(turns[number - 1])
        tokens += turn_format.open_turn(turn, query if turn.index == 0 else "") + turn_format.reply(turn, line)
    return tokens
