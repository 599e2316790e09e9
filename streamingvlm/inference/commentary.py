"""One line of commentary: the result of one turn."""

from dataclasses import dataclass


@dataclass(frozen=True, repr=False)
class Commentary:
    """What the model said of one turn.

    start_s, end_s: stream time of the turn.
    text: the words, "" for a silent turn; num_tokens: tokens generated.
    latency_s: seconds from the frames to the last word, waiting for other streams of the engine included.
    silence: the model's probability of saying nothing; None if it was not computed.
    age_s: age of the turn's newest frame when the line was complete; None if the source was not live.
    dropped_s, coalesced_s: seconds of a live stream that the lag policy skipped just before the turn, and that it
        merged into the turn beyond the turn's own length.
    detail: share of the usual frames, and of a frame's pixels, that the model saw.
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

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.start_s:.1f}-{self.end_s:.1f} s, {self.text!r})"

    def __str__(self) -> str:
        hours, rest = divmod(int(self.start_s), 3600)
        clock = f"{rest // 60:02d}:{rest % 60:02d}"
        return f"[{hours}:{clock}] {self.text}" if hours else f"[{clock}] {self.text}"
