"""Eviction policies: pure functions from the layout of a cache to the tokens that stay in it.

`plan_eviction` runs before each turn is appended. The plan holds the new layout and, for every kept token, its index in
the old layout, so that one gather both drops and moves tokens.
"""

import math
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace
from functools import cached_property
from operator import attrgetter

from streamingvlm.cache.layout import PROLOGUE_TURN, CacheLayout, Segment, SegmentKind, Span
from streamingvlm.config import TIME_SLACK_S, CacheConfig

_VISION_KINDS = frozenset({SegmentKind.VISION_START, SegmentKind.VISION, SegmentKind.VISION_END})
_SPOKEN_KINDS = frozenset({SegmentKind.SPEECH, SegmentKind.TAIL})
_TRANSIENT_KINDS = frozenset({SegmentKind.TIME, SegmentKind.QUESTION})
_REPLY_KINDS = frozenset(
    {SegmentKind.REPLY_OPEN, SegmentKind.SPEECH, SegmentKind.TAIL, SegmentKind.REPLY_END, SegmentKind.LINE_FEED}
)


@dataclass(frozen=True)
class EvictionPlan:
    """The kept tokens: spans of the old layout, in the order of the new layout.

    restart: the policy drops everything; the caller appends the prologue and the query again.
    """

    spans: tuple[Span, ...]
    restart: bool = False

    @cached_property
    def layout(self) -> CacheLayout:
        """The layout after eviction."""
        return CacheLayout(tuple(map(attrgetter("segment"), self.spans)))

    @cached_property
    def runs(self) -> list[range]:
        """Indices of the kept tokens in the old layout, in the new order, as the fewest possible ranges."""
        runs: list[range] = []
        for _, start, stop in self.spans:
            if runs and runs[-1].stop == start:
                runs[-1] = range(runs[-1].start, stop)
            else:
                runs.append(range(start, stop))
        return runs


def plan_eviction(layout: CacheLayout, config: CacheConfig, *, turn: int, start_s: float, end_s: float) -> EvictionPlan:
    """Decide which tokens stay when turn number ``turn``, from ``start_s`` to ``end_s``, is about to be appended.

    ``streaming`` follows Sec. 3.1 of the paper (arXiv 2510.09608), ``reference`` the released code at a940d8c.
    """
    spans = layout.spans()
    if config.policy == "streaming":
        return EvictionPlan(tuple(_streaming(spans, config, end_s)))
    if config.policy == "reference":
        return EvictionPlan(tuple(_reference(spans, config, turn, end_s - start_s)))
    if config.policy == "window" and _is_window_full(layout, config, end_s):
        return EvictionPlan((), restart=True)
    return EvictionPlan(spans)


def without_query(layout: CacheLayout) -> EvictionPlan:
    """Plan to drop the standing query, so that another can replace it; its turn is then evicted like any other."""
    return EvictionPlan(tuple(span for span in layout.spans() if span.segment.kind is not SegmentKind.QUERY))


def kept_text_ranges(
    num_tokens: int, sink_tokens: int, window_tokens: int, step_tokens: int = 1
) -> list[tuple[int, int]]:
    """Return which of ``num_tokens`` of text stay: the first ``sink_tokens``, and at most ``window_tokens`` at the end.

    Between them, whole steps of min(step_tokens, window_tokens) tokens are dropped: as few as leave at most
    ``window_tokens``. A text that is cut after each addition therefore keeps the same tokens as one that is cut once.
    """
    num_over = num_tokens - sink_tokens - window_tokens
    if num_over <= 0:
        return [(0, num_tokens)]
    step = max(1, min(step_tokens, window_tokens))
    return [(0, sink_tokens), (sink_tokens + math.ceil(num_over / step) * step, num_tokens)]


def capacity_tokens(
    config: CacheConfig, *, markup_tokens: int, previous_tokens: int, turn_tokens: int, turn_s: float
) -> int | None:
    """Return the most tokens that the cache can hold, with the newest turn and its reply; None if it is unbounded.

    markup_tokens: the standing query, and the prologue without its previous text.
    previous_tokens: the previous text that the stream begins with.
    turn_tokens: the largest turn with its reply.
    turn_s: seconds per turn.
    """
    if not config.is_bounded:
        return None
    window_s = (
        config.vision_window_s if config.policy == "window" else max(config.vision_window_s, config.turn_window_s)
    )
    num_turns = max(1, math.floor(window_s / turn_s + TIME_SLACK_S))
    text_tokens = previous_tokens
    if config.policy != "window":
        kept_tokens = config.text_sink_tokens + config.text_window_tokens
        # `reference` does not cut the previous text in the first turn.
        text_tokens = kept_tokens if config.policy == "streaming" else max(previous_tokens, kept_tokens)
    return markup_tokens + text_tokens + num_turns * turn_tokens


def _streaming(spans: tuple[Span, ...], config: CacheConfig, end_s: float) -> Iterator[Span]:
    query_turns = {span.segment.turn for span in spans if span.segment.kind is SegmentKind.QUERY}

    def is_kept(segment: Segment) -> bool:
        age_s = end_s - segment.start_s - TIME_SLACK_S
        in_vision, in_turns = age_s <= config.vision_window_s, age_s <= config.turn_window_s
        if in_vision and in_turns:
            return True
        if segment.kind in _VISION_KINDS:
            return in_vision
        if segment.kind in _REPLY_KINDS:
            return in_turns
        # The standing query is never evicted: its turn shrinks to a user message with the query alone. A question is
        # answered in its own turn and evicted with it; the answer becomes previous text like any other speech.
        holds_query = segment.turn in query_turns and segment.kind not in _TRANSIENT_KINDS
        return holds_query or in_vision or in_turns

    retired = [s for s in spans if s.segment.kind is SegmentKind.SPEECH and not is_kept(s.segment)]
    previous = _previous_text(spans, retired)
    num_tokens = sum(span.segment.num_tokens for span in previous)
    kept = kept_text_ranges(num_tokens, *config.text_limits)
    return _assemble(spans, _cut(previous, kept), is_kept)


def _reference(spans: tuple[Span, ...], config: CacheConfig, turn: int, turn_s: float) -> Iterator[Span]:
    """Evict as the released code does.

    Unlike `_streaming`, it counts turns instead of seconds, drops the last token of a retired reply, whether text or
    markup, and has a text window one token shorter.
    """
    num_turns_kept, num_vision_turns_kept = (round(s / turn_s) for s in (config.turn_window_s, config.vision_window_s))

    def is_kept(segment: Segment) -> bool:
        age = turn - segment.turn
        if segment.kind in _REPLY_KINDS:
            return age < num_turns_kept
        if segment.kind in _VISION_KINDS:
            return age < num_vision_turns_kept
        if segment.kind is SegmentKind.TIME and num_vision_turns_kept > num_turns_kept:
            return age < num_turns_kept
        return age < max(num_vision_turns_kept, num_turns_kept)

    retired = _without_last_token(s for s in spans if s.segment.kind in _SPOKEN_KINDS and not is_kept(s.segment))
    previous = _previous_text(spans, retired)
    num_tokens = sum(span.segment.num_tokens for span in previous)
    kept = [(0, num_tokens)]
    if (
        config.text_sink_tokens is not None
        and turn > 0
        and config.text_sink_tokens <= num_tokens - config.text_window_tokens
    ):
        kept = kept_text_ranges(num_tokens, config.text_sink_tokens, config.text_window_tokens - 1)
    return _assemble(spans, _cut(previous, kept), is_kept)


def _is_window_full(layout: CacheLayout, config: CacheConfig, end_s: float) -> bool:
    turns = [segment for segment in layout.segments if segment.turn != PROLOGUE_TURN]
    return bool(turns) and end_s - turns[0].start_s > config.vision_window_s + TIME_SLACK_S


def _assemble(spans: tuple[Span, ...], previous: Iterable[Span], is_kept: Callable[[Segment], bool]) -> Iterator[Span]:
    """Yield the kept spans in order: the prologue with the previous text inside it, then the turns."""
    for span in spans:
        if span.segment.kind is SegmentKind.PREVIOUS_CLOSE:
            yield from previous
        is_prologue = span.segment.turn == PROLOGUE_TURN
        if span.segment.kind is not SegmentKind.PREVIOUS and (is_prologue or is_kept(span.segment)):
            yield span


def _previous_text(spans: Iterable[Span], retired: Iterable[Span]) -> list[Span]:
    """Return the previous text, with the speech of the retired turns appended."""
    moved = [span._replace(segment=replace(span.segment, kind=SegmentKind.PREVIOUS)) for span in retired]
    return [span for span in spans if span.segment.kind is SegmentKind.PREVIOUS] + moved


def _cut(spans: Iterable[Span], kept: list[tuple[int, int]]) -> Iterator[Span]:
    """Yield the parts of ``spans`` in the kept ranges; these count tokens from the start of the first span."""
    start = 0
    for span in spans:
        stop = start + span.segment.num_tokens
        for first, last in kept:
            low, high = max(first, start), min(last, stop)
            if low < high:
                yield span.cut(low - start, high - start)
        start = stop


def _without_last_token(spans: Iterable[Span]) -> Iterator[Span]:
    """Yield the spans, without the last token of each turn."""
    by_turn: dict[int, list[Span]] = {}
    for span in spans:
        by_turn.setdefault(span.segment.turn, []).append(span)
    for reply in by_turn.values():
        num_tokens = sum(span.segment.num_tokens for span in reply)
        yield from _cut(reply, [(0, num_tokens - 1)])
