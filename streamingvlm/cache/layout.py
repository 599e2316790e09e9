"""The layout of a cache: its contents in order, as plain integers on the host.

A layout is a list of segments; the tokens of a segment have one kind and one turn. It holds neither tensors nor token
ids, so that every decision about the cache is arithmetic that can be tested alone.
"""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field, replace
from enum import Enum
from functools import cached_property
from html import escape
from itertools import accumulate, takewhile
from operator import attrgetter
from typing import NamedTuple

from streamingvlm.cache.cache_bar import CacheSpan, bar_html, merged

PROLOGUE_TURN = -1


class SegmentKind(Enum):
    """Role of a segment in the chat; the value is its name in the printed table."""

    SYSTEM = "system"
    PREVIOUS_OPEN = "previous open"
    PREVIOUS = "previous text"
    PREVIOUS_CLOSE = "previous close"
    USER_OPEN = "user open"
    TIME = "time"
    VISION_START = "vision start"
    VISION = "vision"
    VISION_END = "vision end"
    QUERY = "query"
    QUESTION = "question"
    USER_CLOSE = "user close"
    REPLY_OPEN = "reply open"
    SPEECH = "speech"
    TAIL = "tail"
    REPLY_END = "reply end"
    LINE_FEED = "line feed"

    # Enum hashes its name in Python code, which is slow; kinds are looked up thousands of times per turn.
    __hash__ = object.__hash__


@dataclass(frozen=True)
class Segment:
    """``num_tokens`` consecutive tokens of one kind.

    turn: index of the turn that it was appended in, PROLOGUE_TURN before the first.
    start_s, end_s: stream time of that turn.
    grid: (t, h, w) of a vision segment after merging, t * h * w == num_tokens.
    temporal_step: rotary positions between two temporal steps of that grid.
    """

    kind: SegmentKind
    num_tokens: int
    turn: int = PROLOGUE_TURN
    start_s: float = 0.0
    end_s: float = 0.0
    grid: tuple[int, int, int] | None = None
    temporal_step: float = 0.0

    def cut(self, start: int, stop: int) -> "Segment":
        """Return the tokens [start, stop) of a segment without vision."""
        assert self.grid is None, "a vision segment is kept or dropped whole"
        return replace(self, num_tokens=stop - start)


@dataclass(frozen=True, repr=False)
class CacheLayout:
    """The segments of the cache in the order of its tokens.

    sink_tokens: tokens of the previous text that always stay, for drawing alone.
    """

    segments: tuple[Segment, ...] = ()
    sink_tokens: int = field(default=0, compare=False)

    @property
    def num_tokens(self) -> int:
        """Tokens in all segments."""
        return self._stops[-1] if self.segments else 0

    def append(self, segments: Iterable[Segment]) -> "CacheLayout":
        """Return the layout with ``segments`` appended."""
        return CacheLayout((*self.segments, *segments))

    def spans(self) -> tuple["Span", ...]:
        """Return each segment with its token range."""
        return self._spans

    def spans_of(self, kind: SegmentKind) -> Iterator["Span"]:
        """Yield each segment of one kind with its token range."""
        for segment, stop in zip(self.segments, self._stops, strict=True):
            if segment.kind is kind:
                yield Span(segment, stop - segment.num_tokens, stop)

    def count(self, *kinds: SegmentKind) -> int:
        """Count the tokens of the given kinds."""
        return sum(segment.num_tokens for segment in self.segments if segment.kind in kinds)

    @property
    def prologue(self) -> "CacheLayout":
        """The part before the first turn: the system message and the previous text."""
        return CacheLayout(tuple(takewhile(_is_prologue, self.segments)))

    @cached_property
    def _stops(self) -> list[int]:
        return list(accumulate(map(attrgetter("num_tokens"), self.segments)))

    @cached_property
    def _spans(self) -> tuple["Span", ...]:
        return tuple(map(Span, self.segments, [0, *self._stops], self._stops))

    def __repr__(self) -> str:
        return "\n".join(_table_row(*row) for row in _table_rows(self))

    def cache_spans(self) -> list[CacheSpan]:
        """Return the contents in token order as a few spans, for drawing."""
        return merged(_cache_spans(self.segments, self.sink_tokens))

    def _repr_html_(self) -> str:
        bar = bar_html(self.cache_spans())
        return f"{bar}<details><summary>segments</summary><pre>{escape(repr(self))}</pre></details>"


def _is_prologue(segment: Segment) -> bool:
    return segment.turn == PROLOGUE_TURN or segment.kind is SegmentKind.PREVIOUS


class Span(NamedTuple):
    """A segment and its token range [start, stop) in a layout."""

    segment: Segment
    start: int
    stop: int

    def cut(self, start: int, stop: int) -> "Span":
        """Return the tokens [start, stop), counted from the start of the span."""
        if (start, stop) == (0, self.segment.num_tokens):
            return self
        return Span(self.segment.cut(start, stop), self.start + start, self.start + stop)


_VISION = frozenset({SegmentKind.VISION_START, SegmentKind.VISION, SegmentKind.VISION_END})
_QUERY = frozenset({SegmentKind.QUERY, SegmentKind.QUESTION})


def _cache_spans(segments: Iterable[Segment], sink_left: int) -> Iterator[CacheSpan]:
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


def _table_rows(layout: CacheLayout) -> Iterator[tuple[str, str, str, str]]:
    """Group neighbours of one turn: the table shows windows and turns, not markup."""
    yield "tokens", "range", "seconds", "holds"
    run: list[Span] = []
    for span in layout.spans():
        if run and _group(run[-1].segment) != _group(span.segment):
            yield _run_row(run)
            run = []
        run.append(span)
    if run:
        yield _run_row(run)


def _group(segment: Segment) -> object:
    return SegmentKind.PREVIOUS if segment.kind is SegmentKind.PREVIOUS else segment.turn


def _run_row(run: list[Span]) -> tuple[str, str, str, str]:
    first, last = run[0].segment, run[-1].segment
    names = list(dict.fromkeys(span.segment.kind.value for span in run))
    seconds = "" if first.turn == PROLOGUE_TURN == last.turn else f"{first.start_s:.1f}-{last.end_s:.1f}"
    return str(run[-1].stop - run[0].start), f"{run[0].start}-{run[-1].stop - 1}", seconds, ", ".join(names)


def _table_row(tokens: str, where: str, seconds: str, holds: str) -> str:
    return f"{tokens:>7}  {where:>13}  {seconds:>17}  {holds}"
