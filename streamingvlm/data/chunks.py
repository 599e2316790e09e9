"""Chunks: pieces of a transcript as the model will meet them in a stream.

A stream cannot be trained on whole. Sec. 3.2 of the paper cuts it into overlapped chunks, full attention inside each,
and puts the commentary of all that came before in the ``previous text``, cut as the cache would cut it.
"""

from collections.abc import Sequence
from functools import lru_cache

from streamingvlm.cache.eviction import kept_text_ranges
from streamingvlm.errors import ConfigError
from streamingvlm.turns import Tokens, Turn, TurnFormat


class RememberingTokenizer:
    """A tokenizer for `TurnFormat` that remembers what it has encoded: the same markup and lines, again and again."""

    def __init__(self, tokenizer):
        self.encode = lru_cache(maxsize=2**16)(tokenizer.encode)
        self.decode = tokenizer.decode


def plan_chunks(num_turns: int, *, chunk_turns: int = 24, overlap_turns: int = 12) -> list[range]:
    """Cut ``num_turns`` turns into chunks of ``chunk_turns``, each sharing ``overlap_turns`` with the one before.

    The last chunk is shorter where the turns run out; none lies wholly inside the one before. Raises ConfigError for an
    overlap that is not shorter than the chunk.
    """
    if not 0 <= overlap_turns < chunk_turns:
        raise ConfigError(
            f"chunks of {chunk_turns} turns cannot share {overlap_turns}; give an overlap from 0 to {chunk_turns - 1}"
        )
    step = chunk_turns - overlap_turns
    starts = range(0, max(num_turns - overlap_turns, min(num_turns, 1)), step)
    return [range(start, min(start + chunk_turns, num_turns)) for start in starts]


def previous_ids(
    turns: TurnFormat,
    previous_text: str,
    lines: Sequence[str],
    *,
    sink_tokens: int,
    window_tokens: int,
    step_tokens: int = 1,
    num_left_out: int = 0,
) -> tuple[int, ...]:
    """Ids of the previous text at the start of a chunk: what stood before the stream, then every earlier line.

    Its middle is cut out as the cache does it, which keeps the first ``sink_tokens`` and of the last ``window_tokens``
    all but an incomplete step. num_left_out: tokens of the middle that ``lines`` are already without.
    """
    ids = turns.encode_plain(previous_text)
    for line in lines:
        ids += turns.speech_ids(line)
    first, *rest = kept_text_ranges(len(ids) + num_left_out, sink_tokens, window_tokens, step_tokens)
    here = [first, *((start - num_left_out, stop - num_left_out) for start, stop in rest)]
    return tuple(token for start, stop in here for token in ids[start:stop])


def chunk_tokens(
    turns: TurnFormat, seconds: Sequence[Turn], lines: Sequence[str], previous: Sequence[int], *, query: str = ""
) -> Tokens:
    """Tokens of a chunk: the prologue with ``previous`` ids, then each turn with its line as the reply.

    The query is asked in turn 0; a later chunk has it standing behind the prologue, as the cache keeps it.
    """
    tokens = turns.prologue_from_ids(previous)
    if seconds[0].index > 0:
        tokens += turns.standing_query(seconds[0], query)
    for number, (turn, line) in enumerate(zip(seconds, lines, strict=True)):
        if number:
            tokens += turns.line_feed(seconds[number - 1])
        tokens += turns.open_turn(turn, query if turn.index == 0 else "") + turns.reply(turn, line)
    return tokens
