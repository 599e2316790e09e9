"""To say nothing until something happens: a condition in words, asked of the stream after every second.

The stream is watched in silence. After each turn a fork of it is asked whether the condition is met, and what counts is
how probable the model finds "yes" against "no": a prefill of the question and nothing more, no token is generated and
no random number drawn. Only when the condition comes true is the fork asked what is to be seen; the stream itself goes
on as if neither had been asked.

A model that was never taught to answer finds neither word probable. Its verdict would be noise, so there is none: such
a turn is *undecided*, raises no alarm, and is counted.
"""

import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import torch

from streamingvlm.config import at_least
from streamingvlm.errors import ConfigError
from streamingvlm.inference.commentary import Commentary
from streamingvlm.inference.session import StreamingSession
from streamingvlm.video.clock import VideoTurn

QUESTION = "Look at the last second of the video. Is this true of it: {condition}? Answer yes or no."
DESCRIBE = "What is to be seen right now? Answer in one short sentence."

# Below this share of the answer for "yes" and "no" together, the model answers something else.
_LEAST_DECIDED = 0.5


@dataclass(frozen=True)
class AlertLine(Commentary):
    """A turn under watch; the text is "" but in the turn in which the condition came true.

    yes, no: how probable each word was as the answer to whether it is met.
    """

    yes: float = 0.0
    no: float = 0.0

    @property
    def is_decided(self) -> bool:
        """Whether the model answered yes or no at all."""
        return self.yes + self.no >= _LEAST_DECIDED

    @property
    def probability(self) -> float:
        """The probability that the condition is met, 0 where the model gave no answer."""
        return self.yes / (self.yes + self.no) if self.is_decided else 0.0


class Alert:
    """Watches a stream for a condition ("a goal is scored") and speaks when it comes true.

    It speaks once for each time: again only after a turn in which the condition was not met.
    threshold: the probability from which it counts as met. Raises ConfigError for a threshold that is none, and for an
    empty condition.
    """

    def __init__(self, session: StreamingSession, condition: str, *, threshold: float = 0.5):
        at_least("alert_threshold", threshold, 0, "a probability")
        if threshold > 1:
            raise ConfigError(f"alert_threshold={threshold} is above 1; give a probability")
        if not condition.strip():
            raise ConfigError("the condition of the alert is empty; say what is to be watched for")
        self.session = session
        self.condition = condition.strip()
        self.threshold = threshold
        self.num_turns = 0
        self.num_undecided = 0
        self._is_met = False

    def stream(self, source: str | Path | Iterable[VideoTurn]) -> Iterator[AlertLine]:
        """Watch a file, or seconds from any iterable, and yield a line a turn, as ``StreamingSession.stream`` does."""
        return self.session.stream(source, step=self.step)

    def step(self, frames: torch.Tensor | VideoTurn) -> AlertLine:
        """Take in one turn in silence, and speak if the condition has come true."""
        started = time.perf_counter()
        line = self.session.hear(frames, "")
        yes, no = self.session.weigh(QUESTION.format(condition=self.condition))
        line = AlertLine(line.start_s, line.end_s, "", yes=yes, no=no)
        self.num_turns += 1
        self.num_undecided += not line.is_decided
        was_met = self._is_met
        if line.is_decided:
            self._is_met = line.probability >= self.threshold
        text = self._say() if self._is_met and not was_met else ""
        return replace(line, text=text, latency_s=time.perf_counter() - started)

    def summary(self) -> str:
        """A line for people: how often the model knew."""
        if not self.num_undecided:
            return f"alert: yes or no was answered in all {self.num_turns} turns"
        return (
            f"alert: neither yes nor no was answered in {self.num_undecided} of {self.num_turns} turns, which raised "
            f"no alarm; {self.session.model.name} may not have learnt to answer questions"
        )

    def _say(self) -> str:
        seen = self.session.ask(DESCRIBE)
        return f"{self.condition}: {seen}" if seen else self.condition
