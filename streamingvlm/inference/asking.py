"""Questions to a stream that goes on as if nobody had asked.

A question is put to a fork of the cache: it is fed past the last token of the stream, into room that the stream does
not use between turns, answered there, and forgotten. It costs the question's and the answer's own tokens. The answer is
drawn from a copy of the stream's random state: a fork is a copy, so the same question at the same moment has the same
answer, and the stream draws what it would have drawn.
"""

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

import torch

from streamingvlm.cache.layout import Segment, SegmentKind
from streamingvlm.errors import ConfigError
from streamingvlm.inference.job import Job
from streamingvlm.inference.sampling import Sampler
from streamingvlm.turns import Tokens, Turn, TurnFormat

if TYPE_CHECKING:
    from streamingvlm.inference.session import StreamingSession

# Room of a cache past what the stream itself needs: a question and an answer of usual length find it there, a longer
# one makes the cache grow, once.
QUESTION_ROOM_TOKENS = 128


class _ForkJob(Job):
    """A question that leaves no trace."""

    def __init__(self, session: "StreamingSession", question: str):
        super().__init__(session)
        self.question = question
        self._spent_s = 0.0

    def open_(self):
        self._before = self.decoder.state
        self.is_open = True
        for tokens in self._message():
            self.decoder.extend_(tokens)

    def close_(self) -> Any:
        self.decoder.state = self._before
        self.session.stats.spent_("ask", self._spent_s)
        return self._answer()

    def spent_(self, stage: str, spent_s: float):
        self._spent_s += spent_s

    def _message(self) -> Iterator[Tokens]:
        turn_format, segments = self.session.format, self.decoder.layout.segments
        last = segments[-1] if segments else Segment(SegmentKind.SYSTEM, 0)
        if not segments:
            yield turn_format.prologue(self.session.previous_text)
        elif last.kind is SegmentKind.REPLY_END:
            yield turn_format.line_feed(_moment(last.turn, last))
        yield turn_format.message(_moment(self.session.num_turns, last), self.question)

    def _answer(self) -> Any:
        raise NotImplementedError


class AskJob(_ForkJob):
    """A question that is answered in at most ``max_new_tokens`` tokens; the result is the text."""

    def __init__(self, session: "StreamingSession", question: str, max_new_tokens: int):
        super().__init__(session, question)
        self.max_new_tokens = max_new_tokens

    def open_(self):
        super().open_()
        # The stream's row of what is in sight is made anew with each of its turns.
        self._fork = self.session.sampler.fork()
        self._fork.see_only_(self.decoder.ids)

    @property
    def sampler(self) -> Sampler:
        """A copy of the stream's."""
        return self._fork

    def _answer(self) -> str:
        return self.session.format.spoken_text(self.reply)


class WeighJob(_ForkJob):
    """A question of which only the first word of the answer matters; the result is how probable each choice is."""

    def __init__(self, session: "StreamingSession", question: str, choices: Sequence[str]):
        super().__init__(session, question)
        self.first_ids = [first_tokens(session.format, choice, choices) for choice in choices]
        self._weights: list[float] = []

    def weighed_(self, probabilities: Sequence[float], logits: torch.Tensor) -> bool:
        self._weights = list(probabilities)
        return False

    def _answer(self) -> list[float]:
        return self._weights


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
