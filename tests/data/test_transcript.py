"""Timed words: a transcript is in order whatever times a file has, and every repair is counted."""

import math
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from streamingvlm.data.non_speech import NON_SPEECH
from streamingvlm.data.transcript import RULES, Cue, TimedText, Transcript, Word, clean_text, repair, spread, turn_of

TIMES = st.none() | st.floats() | st.floats(0, 30) | st.integers(-5, 30) | st.just(10**400) | st.just("3")
TEXTS = st.text(st.characters(exclude_categories=["Cs"]), max_size=12) | st.sampled_from(
    ["ball", "a b c", " ", "\ud800"]
)
CUES = st.lists(
    st.builds(Cue, st.lists(st.builds(TimedText, TEXTS, TIMES, TIMES), max_size=6).map(tuple), TIMES, TIMES), max_size=4
)


def cue(*words, start_s=None, end_s=None):
    return Cue(tuple(TimedText(f" {text}", a, b) for a, b, text in words), start_s, end_s)


def repaired(*cues, **span):
    transcript, counts = repair(cues, **span)
    return [(round(w.start_s, 6), round(w.end_s, 6), w.text) for w in transcript.words], dict(+counts)


@given(CUES)
def test_a_transcript_is_in_order_whatever_the_times(cues):
    words = repair(cues)[0].words
    assert all(0 <= word.start_s <= word.end_s < math.inf for word in words)
    assert all(after.start_s >= before.end_s for before, after in pairwise(words))
    assert all(word.text and not any(map(str.isspace, word.text)) for word in words)
    assert all(word.text.encode() for word in words)


@given(CUES)
def test_every_lost_word_is_counted(cues):
    transcript, counts = repair(cues)
    texts = [text.text for cue in cues for text in cue.words]
    if not (counts["unplaced"] or any(counts[name] for name in NON_SPEECH)):
        assert sorted("".join(word.text for word in transcript.words)) == sorted(
            clean_text("".join("".join(texts).split()))
        )
    assert set(counts) <= set(RULES)


@given(CUES, st.floats(0, 10), st.integers(1, 12), st.sampled_from([0.5, 1.0, 2.0]))
def test_a_word_belongs_to_the_turn_in_which_it_ends(cues, start_s, num_turns, turn_s):
    transcript, _ = repair(cues, start_s=start_s, end_s=start_s + num_turns * turn_s)
    lines = transcript.lines(start_s=start_s, num_turns=num_turns, turn_s=turn_s)
    for number, line in enumerate(lines):
        low, high = start_s + number * turn_s, start_s + (number + 1) * turn_s
        words = [w for w in transcript.words if number == turn_of(w.end_s, start_s=start_s, turn_s=turn_s)]
        assert line.replace(" ", "") == "".join(word.text for word in words)
        assert all(low - 1e-5 <= word.end_s <= high + 1e-5 for word in words)


def test_a_turn_includes_its_last_moment_and_not_its_first():
    moments = {0.0: 0, 0.4: 0, 1.0: 0, 1.0000001: 0, 1.001: 1, 2.0: 1, 2.5: 2}
    assert {at_s: turn_of(at_s, start_s=0.0, turn_s=1.0) for at_s in moments} == moments


def test_good_times_stay_unchanged():
    words = [(0.0, 0.5, "kick"), (0.5, 0.9, "off"), (3.0, 3.2, "here")]
    assert repaired(cue(*words)) == (words, {})


def test_a_word_that_ends_before_it_begins_keeps_its_end():
    assert repaired(cue((2.0, 1.5, "goal"))) == ([(1.5, 1.5, "goal")], {"reversed": 1})


def test_the_earlier_of_two_overlapping_words_is_shortened():
    words, counts = repaired(cue((0.0, 100.0, "a"), (1.0, 1.5, "b"), (1.4, 2.0, "c")))
    assert words == [(0.0, 1.0, "a"), (1.0, 1.4, "b"), (1.4, 2.0, "c")]
    assert counts == {"overlapping": 2}


def test_overlapping_cues_are_not_interleaved_word_by_word():
    words, _ = repaired(Cue.from_text("a b", 0.0, 4.0), Cue.from_text("c d", 2.0, 6.0))
    assert words == [(0.0, 1.0, "a"), (1.0, 2.0, "b"), (2.0, 4.0, "c"), (4.0, 6.0, "d")]


def test_words_out_of_order_are_sorted():
    words, counts = repaired(cue((2.0, 2.5, "second"), (1.0, 1.5, "first")))
    assert [text for *_, text in words] == ["first", "second"]
    assert counts == {"unordered": 1}


def test_numerals_without_times_are_spread_between_their_neighbours_by_length():
    words, counts = repaired(cue((0.0, 1.0, "at"), (None, None, "45"), (None, None, "1997"), (4.0, 5.0, "yes")))
    assert words == [(0.0, 1.0, "at"), (1.0, 2.0, "45"), (2.0, 4.0, "1997"), (4.0, 5.0, "yes")]
    assert counts == {"untimed": 2}


@pytest.mark.parametrize("missing", [None, float("nan"), float("inf"), -1.0, "soon", True])
def test_at_the_edges_of_a_segment_its_own_times_bound_them(missing):
    words, counts = repaired(
        cue((missing, missing, "12"), (1.0, 1.5, "x"), (missing, missing, "3"), start_s=0.0, end_s=2.0)
    )
    assert words == [(0.0, 1.0, "12"), (1.0, 1.5, "x"), (1.5, 2.0, "3")]
    assert counts == {"untimed": 2}


def test_a_single_time_serves_as_start_and_end():
    assert repaired(cue((1.0, None, "a"), (None, 2.0, "b"))) == ([(1.0, 1.0, "a"), (2.0, 2.0, "b")], {"untimed": 2})


def test_a_segment_without_any_time_is_dropped():
    assert repaired(cue((None, None, "lost"))) == ([], {"unplaced": 1})


def test_empty_words_are_dropped():
    assert repaired(cue((0.0, 1.0, " "), (1.0, 2.0, "a"))) == ([(1.0, 2.0, "a")], {"empty": 1})


def test_text_outside_the_used_span_is_dropped():
    said = cue((0.5, 1.0, "before"), (0.9, 1.5, "in"), (3.5, 4.0, "at the"), (3.9, 4.2, "after"))
    words, counts = repaired(said, start_s=1.0, end_s=4.0)
    assert [text for *_, text in words] == ["in", "at", "the"]
    assert (counts["early"], counts["late"]) == (1, 1)


def test_a_word_at_the_very_beginning_is_in_the_first_turn():
    transcript, counts = repair([cue((0.0, 0.0, "go"))])
    assert transcript.lines(start_s=0.0, num_turns=2) == ["go", ""]
    assert not +counts


@given(st.lists(st.text("abcdef", min_size=1, max_size=9), min_size=1, max_size=9), st.floats(0, 9), st.floats(0, 9))
def test_text_is_spread_without_a_gap_from_start_to_end(texts, start_s, length_s):
    words = spread(" ".join(texts), start_s, start_s + length_s)
    assert [word.text for word in words] == texts
    assert (words[0].start_s, words[-1].end_s) == (start_s, start_s + length_s)
    assert all(a.end_s == b.start_s for a, b in pairwise(words))
    assert all(w.end_s - w.start_s == pytest.approx(length_s * len(w.text) / len("".join(texts))) for w in words)


def test_the_lines_of_a_stream_survive_a_round_trip():
    lines = ["kick off", "", "goal by the red side", "one nil"]
    spoken = [Cue.from_text(line, float(i), float(i + 1)) for i, line in enumerate(lines) if line]
    assert repair(spoken)[0].lines(start_s=0.0, num_turns=4) == lines


def test_words_after_the_last_turn_have_no_line():
    assert Transcript((Word(0.0, 0.5, "a"), Word(4.0, 5.0, "b"))).lines(start_s=0.0, num_turns=2) == ["a", ""]
