"""The eviction policies over many random streams: their guarantees must hold in every turn."""

import random
from itertools import pairwise

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from streamingvlm.cache.eviction import capacity_tokens, kept_text_ranges, plan_eviction
from streamingvlm.cache.layout import CacheLayout, Segment, SegmentKind
from streamingvlm.cache.positions import contiguous_positions
from streamingvlm.config import CacheConfig

NUM_RANDOM_TURNS = 100_000
TURNS_PER_STREAM = 200


def kept_indices(eviction):
    """The index in the old layout of each kept token, in the new order."""
    assert all(first.stop != then.start for first, then in pairwise(eviction.runs))
    return [index for run in eviction.runs for index in run]


class FakeStream:
    """Random turns in the shape of the turn format; each token has a unique id."""

    def __init__(self, dice: random.Random, **config):
        self.dice = dice
        self.turn_s = dice.choice([0.5, 1.0, 1.0, 1.0, 1.5, 2.0, 2 / 3])
        self.config = CacheConfig(
            text_sink_tokens=dice.randrange(0, 12),
            text_window_tokens=dice.randrange(0, 16),
            text_step_tokens=dice.choice([1, 1, 2, 5, 20]),
            vision_window_s=dice.choice([1.0, 1.5, 2.0, 4.0, 6.5]),
            turn_window_s=dice.choice([1.0, 2.0, 2.5, 5.0]),
            **config,
        )
        self.grid = (dice.randrange(1, 3), dice.randrange(1, 4), dice.randrange(1, 4))
        self.num_spans = dice.choice([1, 1, 1, 2])
        self.num_previous = dice.randrange(0, 24)
        self.num_query = dice.randrange(0, 5)
        self.max_reply = dice.randrange(1, 6)
        self.layout = CacheLayout()
        self.uids: list[int] = []
        self.next_uid = 0
        self.turn = 0
        self.append(*self.prologue())

    def prologue(self):
        sizes = {
            SegmentKind.SYSTEM: 3,
            SegmentKind.PREVIOUS_OPEN: 2,
            SegmentKind.PREVIOUS: self.num_previous,
            SegmentKind.PREVIOUS_CLOSE: 2,
        }
        return [Segment(kind, size) for kind, size in sizes.items() if size]

    def append(self, *segments: Segment):
        self.layout = self.layout.append(segments)
        num_new = self.layout.num_tokens - len(self.uids)
        self.uids += range(self.next_uid, self.next_uid + num_new)
        self.next_uid += num_new

    def evict(self):
        start_s = self.turn * self.turn_s
        return plan_eviction(self.layout, self.config, turn=self.turn, start_s=start_s, end_s=start_s + self.turn_s)

    def take(self, eviction):
        self.uids = [self.uids[index] for index in kept_indices(eviction)]
        self.layout = eviction.layout
        if eviction.restart:
            self.append(*self.prologue())
        self.append(*self.when(USER_OPEN=2))
        for _ in range(self.num_spans):
            self.append(*self.vision())
        self.append(
            *self.when(QUERY=self.num_query if self.turn == 0 else 0, USER_CLOSE=1, REPLY_OPEN=2),
            *self.when(SPEECH=self.dice.randrange(0, self.max_reply + 1), TAIL=self.dice.randrange(0, 2)),
            *self.when(REPLY_END=1, LINE_FEED=1),
        )
        self.turn += 1

    def vision(self):
        t, h, w = self.grid
        pads = Segment(SegmentKind.VISION, t * h * w, self.turn, *self.span_s(), self.grid, 2.0)
        return [*self.when(TIME=4, VISION_START=1), pads, *self.when(VISION_END=1)]

    def when(self, **sizes: int):
        return [Segment(SegmentKind[kind], size, self.turn, *self.span_s()) for kind, size in sizes.items() if size]

    def span_s(self):
        return self.turn * self.turn_s, (self.turn + 1) * self.turn_s

    def bound(self) -> int | None:
        t, h, w = self.grid
        return capacity_tokens(
            self.config,
            markup_tokens=7 + 3 + self.num_query,
            previous_tokens=self.num_previous,
            turn_tokens=2 + self.num_spans * (4 + 1 + t * h * w + 1) + 1 + 2 + self.max_reply + 1 + 1 + 1,
            turn_s=self.turn_s,
        )


def sink_uids(stream: FakeStream) -> list[int]:
    """Tokens that must never be evicted: the prologue's markup, the text sink, the query."""
    first_text = []
    by_kind = {kind: [] for kind in SegmentKind}
    for span in stream.layout.spans():
        by_kind[span.segment.kind] += stream.uids[span.start : span.stop]
    first_text = by_kind[SegmentKind.PREVIOUS][: stream.config.text_sink_tokens]
    return (
        by_kind[SegmentKind.SYSTEM]
        + by_kind[SegmentKind.PREVIOUS_OPEN]
        + by_kind[SegmentKind.PREVIOUS_CLOSE]
        + by_kind[SegmentKind.QUERY]
        + first_text
    )


def check_streaming_turn(stream: FakeStream):
    before = sink_uids(stream)
    eviction = stream.evict()
    assert len(set(kept_indices(eviction))) == len(kept_indices(eviction))
    assert eviction.layout.num_tokens == len(kept_indices(eviction))
    assert set(before) <= {stream.uids[index] for index in kept_indices(eviction)}
    stream.take(eviction)
    assert stream.layout.num_tokens <= stream.bound()
    turns = [segment.turn for segment in stream.layout.segments if segment.kind is not SegmentKind.PREVIOUS]
    assert turns == sorted(turns)
    words = [
        s
        for span in stream.layout.spans()
        if span.segment.kind is SegmentKind.PREVIOUS
        for s in stream.uids[span.start : span.stop]
    ]
    assert words == sorted(words)
    check_windows(stream)
    check_positions(stream.layout)


def check_windows(stream: FakeStream):
    """The windows are neither exceeded nor under-filled."""
    config, end_s = stream.config, stream.turn * stream.turn_s
    text_tokens = stream.layout.count(SegmentKind.PREVIOUS)
    assert text_tokens <= config.text_sink_tokens + config.text_window_tokens
    expected = min(stream.turn, max(1, int(config.vision_window_s / stream.turn_s + 1e-6)))
    vision = [segment for segment in stream.layout.segments if segment.kind is SegmentKind.VISION]
    assert len(vision) == expected * stream.num_spans
    assert all(s.turn == stream.turn - 1 or end_s - s.start_s <= config.vision_window_s + 1e-5 for s in vision)


def check_positions(layout: CacheLayout):
    """Positions start at 0 without gaps, against the rule written token by token."""
    expected, following = [], 0
    for segment in layout.segments:
        if segment.grid is None:
            expected += [(position,) * 3 for position in range(following, following + segment.num_tokens)]
        else:
            t, h, w = map(range, segment.grid)
            expected += [(following + 2 * i, following + j, following + k) for i in t for j in h for k in w]
        following = max(map(max, expected[-segment.num_tokens :])) + 1
    assert contiguous_positions(layout.segments).T.tolist() == [list(map(float, e)) for e in expected]


def test_streaming_guarantees_hold_in_a_hundred_thousand_random_turns():
    dice = random.Random(0)
    torch.set_num_threads(1)
    for _ in range(NUM_RANDOM_TURNS // TURNS_PER_STREAM):
        stream = FakeStream(dice, policy="streaming")
        for _ in range(TURNS_PER_STREAM):
            check_streaming_turn(stream)


@pytest.mark.parametrize("policy", ["window", "reference"])
def test_bounded_policies_stay_within_their_capacity(policy):
    dice = random.Random(1)
    for _ in range(50):
        stream = FakeStream(dice, policy=policy)
        stream.config = CacheConfig(
            policy=policy, text_sink_tokens=4, text_window_tokens=9, vision_window_s=4, turn_window_s=2
        )
        stream.turn_s = 1.0
        for _ in range(60):
            eviction = stream.evict()
            assert len(set(kept_indices(eviction))) == len(kept_indices(eviction))
            stream.take(eviction)
            assert stream.layout.num_tokens <= stream.bound()


def test_full_drops_nothing_and_has_no_bound():
    stream = FakeStream(random.Random(2), policy="full")
    for _ in range(50):
        eviction = stream.evict()
        assert kept_indices(eviction) == list(range(stream.layout.num_tokens))
        stream.take(eviction)
    assert stream.bound() is None


def test_window_restarts_from_the_prologue_when_it_is_full():
    stream = FakeStream(random.Random(3), policy="window")
    stream.config, stream.turn_s = CacheConfig(policy="window", vision_window_s=3), 1.0
    restarts = []
    for _ in range(10):
        eviction = stream.evict()
        restarts.append(eviction.restart)
        stream.take(eviction)
    assert restarts == [False, False, False, True, False, False, True, False, False, True]


def test_the_query_outlives_its_turn_and_its_time_label_does_not():
    dice = random.Random(4)
    stream = FakeStream(dice, policy="streaming")
    stream.num_query, stream.turn_s = 3, 1.0
    stream.config = CacheConfig(text_sink_tokens=4, text_window_tokens=4, vision_window_s=2, turn_window_s=2)
    for _ in range(6):
        stream.take(stream.evict())
    kinds = [
        segment.kind
        for segment in stream.layout.segments
        if segment.turn == 0 and segment.kind is not SegmentKind.PREVIOUS
    ]
    assert kinds == [SegmentKind.USER_OPEN, SegmentKind.QUERY, SegmentKind.USER_CLOSE]


@pytest.mark.parametrize(
    "num_tokens, sink, window, expected",
    [(5, 2, 3, [(0, 5)]), (6, 2, 3, [(0, 2), (3, 6)]), (6, 0, 2, [(0, 0), (4, 6)]), (6, 2, 0, [(0, 2), (6, 6)])],
)
def test_kept_text_is_exactly_the_sink_and_the_window(num_tokens, sink, window, expected):
    assert kept_text_ranges(num_tokens, sink, window) == expected


@given(
    num_new=st.lists(st.integers(0, 9), max_size=30),
    sink=st.integers(0, 8),
    window=st.integers(0, 16),
    step=st.integers(1, 20),
)
def test_text_leaves_its_window_in_whole_steps(num_new, sink, window, step):
    kept, num_tokens = [], 0
    for number in num_new:
        kept += range(num_tokens, num_tokens + number)
        num_tokens += number
        num_before, cut = len(kept), kept_text_ranges(len(kept), sink, window, step)
        kept = [kept[index] for first, stop in cut for index in range(first, stop)]
        assert (num_before - len(kept)) % min(step, max(1, window)) == 0
        at_once = kept_text_ranges(num_tokens, sink, window, step)
        assert kept == [index for first, stop in at_once for index in range(first, stop)]
        assert len(kept) == num_tokens or sink + window - min(step, max(1, window)) < len(kept) <= sink + window
