"""Questions to a stream that goes on as if nobody had asked.

A question is put to a fork of the cache: it is fed past the last token of the stream, into room that the stream does
not use between turns, answered there, and forgotten. It costs the question's and the answer's own tokens. The answer is
drawn from a copy of the stream's random state: a fork is a copy, so the same question at the same moment has the same
answer, and the stream draws what it would have drawn.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch

from streamingvlm.cache.layout import Kind, Segment
from streamingvlm.errors import ConfigError
from streamingvlm.inference.decoder import StreamingDecoder
from streamingvlm.inference.sampling import Sampler
from streamingvlm.turns import Turn, TurnFormat

# Room of the cache past what the stream itself needs: a question and an answer of usual length find it there, a longer
# one makes the cache grow, once.
QUESTION_ROOM_TOKENS = 256


class Fork:
    """A fork of one stream between two turns, to be asked once.

    turn: the number that the next turn of the stream will have; prologue: what the stream opens with, for a question
    before its first turn.
    """

    def __init__(self, decoder: StreamingDecoder, sampler: Sampler, turn_format: TurnFormat, *, turn: int, prologue):
        self._decoder = decoder
        self._sampler = sampler
        self._format = turn_format
        self._turn = turn
        self._prologue = prologue

    def answer(self, question: str, *, max_new_tokens: int) -> str:
        """What the model answers, in at most so many tokens."""
        with self._asked(question, max_new_tokens) as logits:
            sampler = self._sampler.fork()
            sampler.see_only_(self._decoder.ids)
            reply = [sampler.choose_(logits)]
            while reply[-1] not in self._format.stop_ids and len(reply) < max_new_tokens:
                reply.append(sampler.choose_(self._decoder.speak_(reply[-1])))
        return self._format.spoken_text(reply)

    def weigh(self, question: str, choices: Sequence[str]) -> list[float]:
        """How probable it is that the answer begins with each choice, as in `first_tokens`; nothing is drawn."""
        ids = [first_tokens(self._format, choice, choices) for choice in choices]
        with self._asked(question, 1) as logits:
            probabilities = logits.float().softmax(-1)
            return [float(probabilities[own].sum()) for own in ids]

    @contextmanager
    def _asked(self, question: str, max_new_tokens: int) -> Iterator[torch.Tensor]:
        """Feed the question; give the logits [V] of the answer's first token."""
        with self._decoder.fork():
            for tokens in self._message(question):
                self._decoder.extend_(tokens)
            self._decoder.max_reply_tokens = max_new_tokens
            yield self._decoder.prefill_()

    def _message(self, question: str):
        segments = self._decoder.layout.segments
        last = segments[-1] if segments else Segment(Kind.SYSTEM, 0)
        if not segments:
            yield self._prologue
        elif last.kind is Kind.REPLY_END:
            yield self._format.line_feed(_moment(last.turn, last))
        yield self._format.message(_moment(self._turn, last), question)


def first_tokens(turn_format: TurnFormat, choice: str, choices: Sequence[str]) -> list[int]:
    """Ids of the tokens with which an answer can begin that says ``choice`` and none of the other ``choices``.

    Small or capital, with or without a space before it. Raises ConfigError where there is no such token.
    """
    own = _openings(turn_format, choice)
    others = (_openings(turn_format, other) for other in choices if other != choice)
    if not (ids := own.difference(*others)):
        raise ConfigError(
            f"an answer {choice!r} begins like another of {', '.join(map(repr, choices))} in this model's tokens; "
            "give choices that differ from the first letter on"
        )
    return sorted(ids)


def _openings(turn_format: TurnFormat, choice: str) -> set[int]:
    spellings = {choice, choice.lower(), choice.capitalize(), choice.upper()}
    ids = (turn_format.encode_plain(space + spelling) for spelling in spellings for space in ("", " "))
    return {spelt[0] for spelt in ids if spelt}


def _moment(index: int, last: Segment) -> Turn:
    return Turn(index, last.end_s, last.end_s, (0, 0, 0))
