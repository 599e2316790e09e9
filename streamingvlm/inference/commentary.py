"""One line of commentary: the result of one turn."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Commentary:
    """What was said of one turn.

    start_s, end_s: stream time of the turn; text: the words, "" for a silent second; num_tokens: tokens generated;
    latency_s: seconds from the frames to the last word, in an engine with those of waiting for other streams.
    silence: the probability that the model gave to saying nothing, None where it was not asked.
    age_s: how old the newest frame of the turn was when the line was finished; None where it was not live.
    dropped_s, coalesced_s: seconds of a live stream that went by unseen just before the turn, and that it stands for
    beyond its own, as the model was late; detail: the share of pixels and tokens that was spent on it.
    """

    start_s: float
    end_s: float
    text: str
    num_tokens: int = 0
    latency_s: float = 0.0
    silence: float | None = None
    age_s: float | None = None
    dropped_s: float = 0.0
    coalesced_s: float = 0.0
    detail: float = 1.0

    @property
    def is_silent(self) -> bool:
        """Whether nothing was said."""
        return not self.text

    def __str__(self) -> str:
        hours, rest = divmod(int(self.start_s), 3600)
        clock = f"{rest // 60:02d}:{rest % 60:02d}"
        return f"[{hours}:{clock}] {self.text}" if hours else f"[{clock}] {self.text}"
