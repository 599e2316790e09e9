"""Chunks cover a transcript with the requested overlap, and their labels are its words."""

from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from streamingvlm.cache.layout import SegmentKind
from streamingvlm.data.chunks import chunk_tokens, plan_chunks, previous_ids
from streamingvlm.errors import ConfigError
from streamingvlm.pitch.tokenizer import build_tokenizer
from streamingvlm.turns import Turn, TurnFormat

LINES = ["pass by red", "", "shot", "goal for red! Rovers home 1-0", ""]
INTRO = "Rovers home red, City away blue."


@pytest.fixture(scope="module")
def turns():
    return TurnFormat(build_tokenizer(), temporal_step=2.0)


def planned_turns(first, count):
    return [Turn(index, index, index + 1, (1, 4, 4)) for index in range(first, first + count)]


def test_chunks_of_a_minute():
    assert plan_chunks(60) == [range(0, 24), range(12, 36), range(24, 48), range(36, 60)]


def test_the_last_chunk_takes_what_is_left():
    assert plan_chunks(30) == [range(0, 24), range(12, 30)]
    assert plan_chunks(5) == [range(0, 5)]
    assert plan_chunks(0) == []


@given(num_turns=st.integers(1, 500), chunk=st.integers(1, 40), data=st.data())
def test_neighbours_share_exactly_the_overlap_and_nothing_is_left_out(num_turns, chunk, data):
    overlap = data.draw(st.integers(0, chunk - 1))
    chunks = plan_chunks(num_turns, chunk_turns=chunk, overlap_turns=overlap)
    assert sorted({turn for chunk_range in chunks for turn in chunk_range}) == list(range(num_turns))
    assert all(before.stop - after.start == overlap for before, after in pairwise(chunks))
    assert all(after.stop > before.stop for before, after in pairwise(chunks))


def test_an_overlap_as_long_as_the_chunk_is_refused():
    with pytest.raises(ConfigError, match="cannot share 24"):
        plan_chunks(60, overlap_turns=24)


def test_labels_are_the_words_of_the_replies(turns):
    tokens = chunk_tokens(turns, planned_turns(0, 5), LINES, turns.encode_plain(INTRO))
    labels = [token for token, is_label in zip(tokens.ids, tokens.supervised(), strict=True) if is_label]
    replies = turns.tokenizer.decode(labels).split("<|im_end|>")
    assert [reply.removesuffix(" ...").strip() for reply in replies[:-1]] == LINES


def test_a_chunk_is_the_stream_that_speaks_the_same_words(turns):
    """Token for token what a session appends: prologue, turn, reply, line feed, turn, reply."""
    first, second = planned_turns(0, 2)
    stream = turns.prologue(INTRO)
    stream += turns.open_turn(first, "Who scores?") + turns.reply(first, "shot") + turns.line_feed(first)
    stream += turns.open_turn(second) + turns.reply(second, "")
    assert chunk_tokens(turns, [first, second], ["shot", ""], turns.encode_plain(INTRO), query="Who scores?") == stream


def test_in_a_later_chunk_the_query_stands_before_the_turns(turns):
    tokens = chunk_tokens(turns, planned_turns(12, 2), ["", ""], (), query="Who scores?")
    kinds = [segment.kind for segment in tokens.segments]
    assert kinds.count(SegmentKind.QUERY) == 1
    assert kinds.index(SegmentKind.QUERY) < kinds.index(SegmentKind.TIME)


def test_previous_text_keeps_its_sink_and_its_window(turns):
    whole = previous_ids(turns, INTRO, LINES, sink_tokens=1000, window_tokens=0)
    assert turns.decode(whole) == INTRO + " pass by red shot goal for red! Rovers home 1-0"
    cut = previous_ids(turns, INTRO, LINES * 20, sink_tokens=8, window_tokens=8)
    assert turns.decode(cut[:8]) == INTRO
    assert turns.decode(cut[8:]) == " goal for red! Rovers home 1-0"
