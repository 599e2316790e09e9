"""Pairwise comparison of commentaries by a language model, in both orders, and the win rate.

A judge may prefer the text that is shown first. Each comparison is therefore judged twice, the second time with the
texts swapped: a judge that always answers the same letter gives 50 %, and swapping the candidates gives 1 minus the win
rate. An invalid vote is counted as invalid and for neither text.
"""

import json
import re
from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

from streamingvlm.data.parallel import map_in_threads
from streamingvlm.endpoint import ChatEndpoint, CostEstimate, EndpointRequest
from streamingvlm.evaluation.statistics import bootstrap_interval

Vote = Literal["A", "B"] | None
"""A vote for the first (A) or the second text (B) of a comparison; None for an invalid one."""

MAX_CHARACTERS = 8000
"""Limit of each text that the judge reads, as in the paper's evaluation."""

NO_VOTE = "no vote"

_ONE_LETTER = re.compile(r"[\W_]*([AB])[\W_]*", re.IGNORECASE)
_THOUGHTS = re.compile(r"<(think|thinking|reasoning)>.*?</\1>", re.DOTALL | re.IGNORECASE)
_FENCE = re.compile(r"^```(?:json)?\s*|\s*```$")
_OTHER = {"A": "B", "B": "A", None: None}
_LETTER_TOKENS = 1


@dataclass(frozen=True)
class Comparison:
    """Two texts about the same part of a video.

    name: unique; group: for the bootstrap, usually the video; reference: the true commentary; position: its start as a
    fraction of the video, 0 to 1, None if unknown.
    """

    name: str
    group: str
    reference: str
    text_a: str
    text_b: str
    position: float | None = None


@dataclass(frozen=True)
class Verdict:
    """The votes on a comparison in both orders, both in terms of its texts instead of the letters that were shown."""

    name: str
    group: str
    votes: tuple[Vote, Vote]
    position: float | None = None

    @property
    def is_tie(self) -> bool:
        """Return True if each text has one valid vote, so that the order decided."""
        return set(self.votes) == {"A", "B"}


class Judge:
    """A language model that chooses the better of two texts.

    instructions: the criteria, as the system prompt; max_tokens: limit of an answer. The answer is one letter, but some
    models reason first.
    """

    def __init__(self, endpoint: ChatEndpoint, instructions: str, *, max_tokens: int = 16):
        self.endpoint = endpoint
        self._instructions = instructions
        self._max_tokens = max_tokens

    def judge(self, comparisons: Iterable[Comparison]) -> Iterator[Verdict]:
        """Yield a Verdict for each comparison, in order; requests run in parallel.

        Raises EndpointError. Answers until then are stored and not requested again.
        """
        num_parallel = self.endpoint.config.num_parallel
        return map_in_threads(self._verdict, comparisons, num_parallel)

    def estimate(self, comparisons: Iterable[Comparison]) -> CostEstimate:
        """Estimate the cost of judging: two requests per comparison."""
        requests = (request for comparison in comparisons for request in self._requests(comparison))
        return self.endpoint.estimate("judging", ((request, _LETTER_TOKENS) for request in requests))

    def _verdict(self, comparison: Comparison) -> Verdict:
        first, second = (self.endpoint.ask(request, read_vote) for request in self._requests(comparison))
        return Verdict(comparison.name, comparison.group, (_valid(first), _OTHER[_valid(second)]), comparison.position)

    def _requests(self, comparison: Comparison) -> tuple[EndpointRequest, EndpointRequest]:
        a, b = comparison.text_a, comparison.text_b
        return self._request(comparison.reference, a, b), self._request(comparison.reference, b, a)

    def _request(self, reference: str, shown_as_a: str, shown_as_b: str) -> EndpointRequest:
        blocks = [("Reference", reference), ("Commentary A", shown_as_a), ("Commentary B", shown_as_b)]
        texts = "\n\n".join(f"### {title}\n{text[:MAX_CHARACTERS]}" for title, text in blocks)
        question = f"{texts}\n\n### Your verdict\nWhich commentary is better? Answer with one letter: A or B."
        return self.endpoint.request([("system", self._instructions), ("user", question)], max_tokens=self._max_tokens)


def read_vote(answer: str) -> str:
    """Return the letter of an answer, and NO_VOTE for any other text.

    The answer is one letter, punctuation apart, or JSON with one such value; reasoning in think tags comes before it.
    Raises ValueError for an empty answer, which is worth another attempt.
    """
    if not answer.strip():
        raise ValueError("an empty answer")
    verdict = _THOUGHTS.sub("", answer)
    match = _ONE_LETTER.fullmatch(verdict) or _ONE_LETTER.fullmatch(_json_value(verdict))
    return match[1].upper() if match else NO_VOTE


def _json_value(text: str) -> str:
    """Return the only letter among the values of a JSON object; "" if there is none, or more than one."""
    try:
        document = json.loads(_FENCE.sub("", text.strip()))
    except (ValueError, RecursionError):
        return ""
    values = document.values() if isinstance(document, dict) else ()
    letters = [value for value in values if isinstance(value, str) and _ONE_LETTER.fullmatch(value)]
    return letters[0] if len(letters) == 1 else ""


def _valid(answer: str | None) -> Vote:
    return answer if answer in ("A", "B") else None


@dataclass(frozen=True)
class WinRate:
    """The share of votes for the first candidate.

    rate: its votes over all valid votes, NaN without any; low, high: the 95 % interval of the bootstrap over groups,
    NaN for fewer than two groups. num_ties: comparisons in which each candidate got one of the two votes.
    """

    rate: float
    low: float
    high: float
    num_comparisons: int
    num_groups: int
    num_wins: int
    num_losses: int
    num_invalid: int
    num_ties: int

    def __str__(self) -> str:
        if not self.num_wins + self.num_losses:
            return f"no win rate: none of {self.num_invalid:,} votes is valid"
        interval = f" (95 % interval {self.low:.2%} to {self.high:.2%})" if self.low == self.low else ""
        return (
            f"win rate {self.rate:.2%}{interval}: {self.num_wins:,} of {self.num_wins + self.num_losses:,} votes, "
            f"{self.num_comparisons:,} comparisons over {self.num_groups:,} videos, {self.num_ties:,} ties, "
            f"{self.num_invalid:,} invalid votes"
        )


def win_rate(verdicts: Sequence[Verdict], *, num_resamples: int = 10_000, seed: int = 0) -> WinRate:
    """Return the share of votes for the first candidate, with an interval by resampling groups."""
    wins_by_group: dict[str, list[float]] = defaultdict(list)
    for verdict in verdicts:
        wins_by_group[verdict.group] += [vote == "A" for vote in verdict.votes if vote is not None]
    wins = [win for group in wins_by_group.values() for win in group]
    low, high = bootstrap_interval(wins_by_group, num_resamples=num_resamples, seed=seed)
    return WinRate(
        rate=sum(wins) / len(wins) if wins else float("nan"),
        low=low,
        high=high,
        num_comparisons=len(verdicts),
        num_groups=len(wins_by_group),
        num_wins=sum(wins),
        num_losses=len(wins) - sum(wins),
        num_invalid=2 * len(verdicts) - len(wins),
        num_ties=sum(verdict.is_tie for verdict in verdicts),
    )


def win_rates_by_part(verdicts: Sequence[Verdict], num_parts: int = 5) -> list[WinRate]:
    """Return the win rate in each part of the videos, first to last, over verdicts with a known position."""
    parts: list[list[Verdict]] = [[] for _ in range(num_parts)]
    for verdict in verdicts:
        if verdict.position is not None:
            parts[min(int(verdict.position * num_parts), num_parts - 1)].append(verdict)
    return [win_rate(of_part) for of_part in parts]
