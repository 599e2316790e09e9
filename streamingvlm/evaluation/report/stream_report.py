"""The content of a report: a stream, turn by turn, independent of the benchmark that fills it in."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import torch

from streamingvlm.cache.layout import CacheLayout, SegmentKind
from streamingvlm.config import CacheConfig

_VISION = (SegmentKind.VISION_START, SegmentKind.VISION, SegmentKind.VISION_END)
_PROLOGUE = (SegmentKind.SYSTEM, SegmentKind.PREVIOUS_OPEN, SegmentKind.PREVIOUS_CLOSE)


@dataclass(frozen=True, slots=True)
class CacheFill:
    """Tokens in the cache by kind; their sum is the whole cache.

    sink_tokens: system prompt and text sink; window_tokens: text window; turn_tokens: replies and markup of the turns
    that are kept whole, and the query; vision_tokens: vision tokens and their delimiters.
    """

    sink_tokens: int = 0
    window_tokens: int = 0
    turn_tokens: int = 0
    vision_tokens: int = 0

    @classmethod
    def of(cls, layout: CacheLayout, config: CacheConfig) -> "CacheFill":
        """Count the tokens of a cache with this policy; without a sink size all previous text counts as window."""
        previous, vision, prologue = (
            layout.count(SegmentKind.PREVIOUS),
            layout.count(*_VISION),
            layout.count(*_PROLOGUE),
        )
        sink = min(previous, config.text_sink_tokens or 0)
        turns = layout.num_tokens - previous - vision - prologue
        return cls(prologue + sink, previous - sink, turns, vision)

    @property
    def num_tokens(self) -> int:
        """The sum of all kinds."""
        return self.sink_tokens + self.window_tokens + self.turn_tokens + self.vision_tokens


@dataclass(frozen=True, slots=True)
class ReportTurn:
    """One turn of a stream.

    said: the commentary, "" for silence, None after the stream ended; truth: the true line, "" for silence, None if
    unknown; latency_s: seconds of work; fill: the cache after the turn; fault: from 0 (right) to 1 (wrong), None if
    unjudged.
    """

    start_s: float
    said: str | None
    truth: str | None = None
    latency_s: float = 0.0
    fill: CacheFill | None = None
    fault: float | None = None


@dataclass(frozen=True)
class Thumbnail:
    """A frame of the turn that starts at ``start_s``: uint8 [3, H, W], RGB."""

    start_s: float
    picture: torch.Tensor


@dataclass(frozen=True)
class StreamReport:
    """A stream with its figures and settings.

    figures: short names to short values, the most important first; settings: groups of names and values; turn_s:
    seconds of video per turn, the real-time bound of latency; capacity_tokens: the bound of the cache; note: a
    sentence at the top, for example that the stream ended early.
    """

    title: str
    turns: Sequence[ReportTurn]
    subtitle: str = ""
    figures: Mapping[str, str] = field(default_factory=dict)
    settings: Mapping[str, Mapping[str, object]] = field(default_factory=dict)
    thumbnails: Sequence[Thumbnail] = ()
    turn_s: float = 1.0
    capacity_tokens: int | None = None
    note: str = ""
