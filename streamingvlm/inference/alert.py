"""Alerts: stay silent until a condition in words comes true.

After each silent turn, a fork of the stream is asked if the condition holds. The answer is not generated but scored:
the probability of "yes" against "no". That costs one prefill of the question and draws no random number. When the
condition comes true, the fork is asked what can be seen. The stream itself continues as if it had not been asked.

A model that was never trained to answer gives neither word a high probability. Such a turn is *undecided*: it raises no
alert and is counted.
"""

import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import cast

from streamingvlm.config import at_least
from streamingvlm.errors import ConfigError
from streamingvlm.inference.commentary import Commentary
from streamingvlm.inference.session import StreamingSession
from streamingvlm.video.frame_tensors import Frames
from streamingvlm.video.live import PushedFrames
from streamingvlm.video.video_turn import VideoTurn

QUESTION = "Look at the last second of the video. Is this true of it: {condition}? Answer yes or no."
DESCRIBE = "What is to be seen right now? Answer in one short sentence."

# If "yes" and "no" together have a smaller probability than this, the model did not answer the question.
_MIN_DECIDED = 0.5


@dataclass(frozen=True, repr=False)
class AlertLine(Commentary):
    """A turn under an alert; its text is "" except in the turn in which the condition comes true.

    yes, no: probability of each word as the answer.
    """

    yes: float = 0.0
    no: float = 0.0

    @property
    def is_decided(self) -> bool:
        """Whether the model answered yes or no."""
        return self.yes + self.no >= _MIN_DECIDED

    @property
    def probability(self) -> float:
        """The probability that the condition is true, 0 if the model gave no answer."""
        return self.yes / (self.yes + self.no) if self.is_decided else 0.0


class Alert:
    """Watches a stream for a condition ("a goal is scored") and speaks when it comes true.

    It speaks again only after a turn in which the condition was false.
    threshold: the probability from which the condition counts as true.

    Raises ConfigError for a threshold outside [0, 1] and for an empty condition.
    """

    def __init__(self, session: StreamingSession, condition: str, *, threshold: float = 0.5):
        at_least("alert_threshold", threshold, 0, "a probability")
        if threshold > 1:
            raise ConfigError(f"alert_threshold={threshold} is above 1; give a probability")
        if not condition.strip():
            raise ConfigError("the condition of the alert is empty; say what to watch for")
        self.session = session
        self.condition = condition.strip()
        self.threshold = threshold
        self.num_turns = 0
        self.num_undecided = 0
        self._is_true = False

    def stream(self, source: str | Path | int | PushedFrames | Iterable[VideoTurn | Frames]) -> Iterator[AlertLine]:
        """Watch a source and yield a line for each turn, as ``StreamingSession.stream`` does."""
        return cast(Iterator[AlertLine], self.session.stream(source, step=self.step))

    def step(self, frames: Frames | VideoTurn) -> AlertLine:
        """Process one turn in silence, and speak if the condition has come true."""
        started_at = time.perf_counter()
        line = self.session.step(frames, reply="")
        yes, no = self.session.score_choices(QUESTION.format(condition=self.condition))
        line = AlertLine(line.start_s, line.end_s, "", yes=yes, no=no)
        self.num_turns += 1
        self.num_undecided += not line.is_decided
        was_true = self._is_true
        if line.is_decided:
            self._is_true = line.probability >= self.threshold
        text = self._describe() if self._is_true and not was_true else ""
        return replace(line, text=text, latency_s=time.perf_counter() - started_at)

    def summary(self) -> str:
        """Return a line for people: how often the model gave an answer."""
        if not self.num_undecided:
            return f"alert: the model answered yes or no in all {self.num_turns} turns"
        return (
            f"alert: the model answered neither yes nor no in {self.num_undecided} of {self.num_turns} turns, which "
            f"raised no alert; {self.session.model.name} may not be trained to answer questions"
        )

    def _describe(self) -> str:
        description = self.session.ask(DESCRIBE)
        return f"{self.condition}: {description}" if description else self.condition
