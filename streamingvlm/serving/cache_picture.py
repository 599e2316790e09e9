"""The cache of a session as a few runs of tokens, for a page to draw to scale."""

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import groupby
from typing import Any

from streamingvlm.cache.layout import PROLOGUE_TURN, CacheLayout, Segment, SegmentKind
from streamingvlm.config import CacheConfig

_VISION = frozenset({SegmentKind.VISION_START, SegmentKind.VISION, SegmentKind.VISION_END})
_ASKED = frozenset({SegmentKind.QUERY, SegmentKind.QUESTION})


@dataclass(frozen=True)
class Run:
    """Neighbouring tokens that are of one sort to a person.

    what: ``prompt``, ``sink`` and ``window`` (the two parts of the text that has left its turn), ``vision``, ``text``
        (a turn's words and markup) or ``query``; turn: of vision, text and query.
    """

    what: str
    num_tokens: int
    turn: int | None = None

    def as_json(self) -> list[Any]:
        """As short as it can be: it is sent every second."""
        return [self.what, self.num_tokens] + ([] if self.turn is None else [self.turn])


def cache_picture(layout: CacheLayout, config: CacheConfig) -> list[Run]:
    """The runs of a layout, in the order of its tokens."""
    runs = _runs(layout.segments, config.text_sink_tokens)
    return [
        Run(what, sum(run.num_tokens for run in group), turn)
        for (what, turn), group in groupby(runs, key=lambda run: (run.what, run.turn))
    ]


def _runs(segments: tuple[Segment, ...], sink_tokens: int | None) -> Iterator[Run]:
    left_in_sink = sink_tokens or 0
    for segment in segments:
        if segment.kind is SegmentKind.PREVIOUS:
            in_sink = min(left_in_sink, segment.num_tokens)
            left_in_sink -= in_sink
            if in_sink:
                yield Run("sink", in_sink)
            if in_sink < segment.num_tokens:
                yield Run("window", segment.num_tokens - in_sink)
        elif segment.turn == PROLOGUE_TURN:
            yield Run("prompt", segment.num_tokens)
        else:
            yield Run(_sort(segment.kind), segment.num_tokens, segment.turn)


def _sort(kind: SegmentKind) -> str:
    if kind in _VISION:
        return "vision"
    return "query" if kind in _ASKED else "text"
