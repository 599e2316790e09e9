"""A stream that was watched, second by second: what a report shows, whatever the benchmark.

Nothing here knows a match from any other video: a benchmark fills these rows with what it has.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import torch

from streamingvlm.cache.layout import CacheLayout, SegmentKind
from streamingvlm.config import CacheConfig

_VISION = (SegmentKind.VISION_START, SegmentKind.VISION, SegmentKind.VISION_END)
_PROLOGUE = (SegmentKind.SYSTEM, SegmentKind.PREVIOUS_OPEN, SegmentKind.PREVIOUS_CLOSE)


@dataclass(frozen=True, slots=True)
class CacheFill:
    """Tokens in the cache by what they are there for; together they are all of it.

    sink_tokens: the system prompt, and what the text sink keeps; window_tokens: the text after it, which has left its
    turn; turn_tokens: words and markup of the turns that are still whole, and the query; vision_tokens: the pictures.
    """

    sink_tokens: int = 0
    window_tokens: int = 0
    turn_tokens: int = 0
    vision_tokens: int = 0

    @classmethod
    def of(cls, layout: CacheLayout, config: CacheConfig) -> "CacheFill":
        """Count what a cache with this policy holds; without a sink's size all previous text is the window's."""
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
        """All tokens."""
        return self.sink_tokens + self.window_tokens + self.turn_tokens + self.vision_tokens


@dataclass(frozen=True, slots=True)
class WatchedSecond:
    """One turn of a stream.

    said: the words, "" for silence, None where nobody watched any more.
    truth: what was to be said, "" for silence, None where nobody knows.
    latency_s: seconds of work; fill: of the cache afterwards; fault: from 0 (right) to 1 (wrong), None if unjudged.
    """

    start_s: float
    said: str | None
    truth: str | None = None
    latency_s: float = 0.0
    fill: CacheFill | None = None
    fault: float | None = None


@dataclass(frozen=True)
class Thumbnail:
    """A picture of a second: uint8 [3, H, W], RGB."""

    start_s: float
    picture: torch.Tensor


@dataclass(frozen=True)
class Watched:
    """A stream, with what a report says of it.

    figures: short names to short values, the most important first; settings: groups of names and values.
    turn_s: seconds of video a turn, the line that latency must stay below; capacity_tokens: the cache's bound.
    note: a sentence that the reader must not miss (the stream ended early, say).
    """

    title: str
    seconds: Sequence[WatchedSecond]
    subtitle: str = ""
    figures: Mapping[str, str] = field(default_factory=dict)
    settings: Mapping[str, Mapping[str, object]] = field(default_factory=dict)
    thumbnails: Sequence[Thumbnail] = ()
    turn_s: float = 1.0
    capacity_tokens: int | None = None
    note: str = ""
