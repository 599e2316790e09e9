"""Requests that leave the stream as it is: questions answered from a fork of the cache.

A fork appends its tokens after the stream's own and removes them at the end, so it costs only the tokens of question
and answer. It samples from a copy of the random state: the stream continues, token for token, as if there had been no
question.
"""

from abc import abstractmethod
from collections.abc import Iterator, Sequence
from typing import Any

import torch

from streamingvlm.cache.layout import Segment, SegmentKind
from streamingvlm.errors import ConfigError
from streamingvlm.inference.requests import PrefillPending, Request
from streamingvlm.inference.sampling import Sampler
from streamingvlm.inference.stream import Stream
from streamingvlm.turns import Tokens, Turn, TurnFormat

# Cache tokens reserved for a fork, in addition to the stream's own; a longer fork grows the cache.
FORK_RESERVE_TOKENS = 128


class _Fork(Request):
    """A question whose tokens are removed from the cache afterwards."""

    def __init__(self, stream: Stream, question: str):
        super().__init__(stream)
        self.question = question
        self._duration_s = 0.0

    def _on_begin(self, prefill_pending: PrefillPending):
        self._state_before = self.sequence.state
        self._has_begun = True  # from here on, finish() rolls back
        for tokens in self._message():
            self.sequence.append(tokens)

    def _message(self) -> Iterator[Tokens]:
        turn_format, segments = self.stream.config.turn_format, self.sequence.layout.segments
        last = segments[-1] if segments else Segment(SegmentKind.SYSTEM, 0)
        if not segments:
            yield turn_format.prologue(self.stream.previous_text)
        elif last.kind is SegmentKind.REPLY_END:
            yield turn_format.line_feed(_zero_length_turn(last.turn, last))
        yield turn_format.message(_zero_length_turn(self.stream.num_turns, last), self.question)

    def record_stage(self, stage: str, duration_s: float):
        self._duration_s += duration_s

    def _finish(self) -> Any:
        self.sequence.state = self._state_before
        self.stream.stats.record_stage("ask", self._duration_s)
        return self._answer()

    @abstractmethod
    def _answer(self) -> Any:
        """Return the result."""


class ForkQuestion(_Fork):
    """Answers a question in at most ``max_new_tokens`` tokens; the result is the text."""

    def __init__(self, stream: Stream, question: str, max_new_tokens: int):
        super().__init__(stream, question)
        self.max_new_tokens = max_new_tokens

    def _on_begin(self, prefill_pending: PrefillPending):
        super()._on_begin(prefill_pending)
        # Sharing the stream's row of the penalty mask is safe: every turn resets it.
        self._sampler = self.stream.sampler.fork()
        self._sampler.reset_penalty(self.sequence.ids)

    @property
    def sampler(self) -> Sampler:
        """A copy of the stream's."""
        return self._sampler

    def _answer(self) -> str:
        return self.stream.config.turn_format.spoken_text(self.reply)


class ScoreChoices(_Fork):
    """Scores only the first token of an answer; the result is a probability for each choice."""

    def __init__(self, stream: Stream, question: str, choices: Sequence[str]):
        super().__init__(stream, question)
        turn_format = stream.config.turn_format
        self.score_token_ids = [first_token_ids(turn_format, choice, choices) for choice in choices]
        self._probabilities: list[float] = []

    def on_first_logits(self, probabilities: Sequence[float], logits: torch.Tensor) -> bool:
        self._probabilities = list(probabilities)
        return False

    def _answer(self) -> list[float]:
        return self._probabilities


def first_token_ids(turn_format: TurnFormat, choice: str, choices: Sequence[str]) -> list[int]:
    """Return the token ids that can start ``choice``, in any case and spacing, but none of the other ``choices``.

    Raises ConfigError if there are none.
    """
    own = _first_ids(turn_format, choice)
    others = (_first_ids(turn_format, other) for other in choices if other != choice)
    if not (ids := own.difference(*others)):
        raise ConfigError(
            f"choice {choice!r} has no first token of its own among {', '.join(map(repr, choices))}; give choices that "
            "start with different letters"
        )
    return sorted(ids)


def _first_ids(turn_format: TurnFormat, choice: str) -> set[int]:
    spellings = {choice, choice.lower(), choice.capitalize(), choice.upper()}
    ids = (turn_format.encode_plain(space + spelling) for spelling in spellings for space in ("", " "))
    return {encoded[0] for encoded in ids if encoded}


def _zero_length_turn(index: int, last: Segment) -> Turn:
    return Turn(index, last.end_s, last.end_s, (0, 0, 0))
