"""The contents of a session's cache as a few spans of tokens, for the page to draw to scale."""

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import groupby
from typing import Any

from streamingvlm.cache.layout import PROLOGUE_TURN, CacheLayout, Segment, SegmentKind
from streamingvlm.config import CacheConfig

_VISION = frozenset({SegmentKind.VISION_START, SegmentKind.VISION, SegmentKind.VISION_END})
_QUERY = frozenset({SegmentKind.QUERY, SegmentKind.QUESTION})


@dataclass(frozen=True)
class CacheSpan:
    """Adjacent tokens of one kind.

    kind: ``prompt``; ``sink`` or ``window``, the two parts of the text kept of evicted turns; ``vision``; ``text``, a
        turn's reply and markup; or ``query``. turn: of vision, text and query.
    """

    kind: str
    num_tokens: int
    turn: int | None = None

    def as_json(self) -> list[Any]:
        """Return a compact list: it is sent every turn."""
        return [self.kind, self.num_tokens] + ([] if self.turn is None else [self.turn])


def cache_spans(layout: CacheLayout, config: CacheConfig) -> list[CacheSpan]:
    """Return the spans of a layout in token order."""
    spans = _segment_spans(layout.segments, config.text_sink_tokens)
    return [
        CacheSpan(kind, sum(span.num_tokens for span in group), turn)
        for (kind, turn), group in groupby(spans, key=lambda span: (span.kind, span.turn))
    ]


def _segment_spans(segments: tuple[Segment, ...], sink_tokens: int | None) -> Iterator[CacheSpan]:
    sink_left = sink_tokens or 0
    for segment in segments:
        if segment.kind is SegmentKind.PREVIOUS:
            in_sink = min(sink_left, segment.num_tokens)
            sink_left -= in_sink
            if in_sink:
                yield CacheSpan("sink", in_sink)
            if in_sink < segment.num_tokens:
                yield CacheSpan("window", segment.num_tokens - in_sink)
        elif segment.turn == PROLOGUE_TURN:
            yield CacheSpan("prompt", segment.num_tokens)
        else:
            yield CacheSpan(_span_kind(segment.kind), segment.num_tokens, segment.turn)


def _span_kind(kind: SegmentKind) -> str:
    if kind in _VISION:
        return "vision"
    return "query" if kind in _QUERY else "text"
