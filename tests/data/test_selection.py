"""The kept chunks of a recording, compared with a direct implementation of the rules."""

from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st
from published_layouts import steady_words

from streamingvlm.data.selection import SelectionConfig, select, split_evenly, split_of
from streamingvlm.data.transcript import Transcript, Word
from streamingvlm.data.units import count_units
from streamingvlm.errors import ConfigError

ANNEALING = SelectionConfig(kind="annealing")
GAPS = st.lists(st.floats(0, 5) | st.sampled_from([0.1, 0.2, 3.0, 3.5]), max_size=150)


def transcript(gaps_s, word_s=0.3):
    words, end_s = [], 0.0
    for gap_s in gaps_s:
        start_s = end_s + gap_s
        end_s = start_s + word_s
        words.append(Word(start_s, end_s, "w"))
    return Transcript(tuple(words)), int(end_s) + 1


def selected(transcript, num_turns, config, start_s=0.0):
    lines = transcript.lines(start_s=start_s, num_turns=num_turns)
    return select(transcript.words, lines, config, start_s=start_s, turn_s=1.0)


def test_dense_speech_is_cut_into_24_s_that_share_12():
    chunks, _, num_dropped = selected(Transcript(tuple(steady_words(60, words_per_s=2))), 60, SelectionConfig())
    assert chunks == [range(0, 24), range(12, 36), range(24, 48), range(36, 60)]
    assert num_dropped == 0


def test_two_words_a_second_are_enough_and_less_is_not():
    words = Transcript(tuple(steady_words(24, words_per_s=2)))
    assert len(words.words) == 48
    assert selected(words, 24, SelectionConfig())[0] == [range(24)]
    chunks, reason, num_dropped = selected(Transcript(words.words[1:]), 24, SelectionConfig())
    assert (chunks, reason, num_dropped) == ([], "fewer than 2 words or 3 characters a second", 1)


def test_a_quiet_span_drops_its_chunks():
    loud = steady_words(36, words_per_s=3), steady_words(36, words_per_s=3, start_s=72)
    chunks, _, num_dropped = selected(Transcript(tuple(loud[0] + loud[1])), 108, SelectionConfig())
    assert [(c.start, c.stop) for c in chunks] == [(0, 24), (12, 36), (72, 96), (84, 108)]
    assert num_dropped == 4


@given(GAPS, st.floats(0, 4))
def test_annealing_chunks_hold_no_silence_and_have_their_length(gaps_s, max_silence_s):
    said, num_turns = transcript(gaps_s)
    config = SelectionConfig(kind="annealing", max_silence_s=max_silence_s)
    chunks, _, _ = selected(said, num_turns, config)
    for chunk in chunks:
        assert 16 <= len(chunk) <= 64
        inside = [word for word in said.words if chunk.start < word.end_s <= chunk.stop]
        assert all(b.start_s - a.end_s <= max_silence_s + 1e-5 for a, b in pairwise(inside))
    assert all(before.stop <= after.start for before, after in pairwise(chunks))


@given(GAPS)
def test_no_span_of_continuous_speech_is_missed(gaps_s):
    said, num_turns = transcript(gaps_s)
    chunks, _, num_dropped = selected(said, num_turns, ANNEALING)
    starts = [0] + [i for i, gap_s in enumerate(gaps_s) if i and gap_s > 3 + 1e-5] + [len(gaps_s)]
    runs = [said.words[a:b] for a, b in pairwise(starts) if a < b]
    long_enough = [run for run in runs if run[-1].end_s - run[0].start_s >= 17]
    assert all(any(chunk.start <= run[0].start_s < chunk.start + 1 for chunk in chunks) for run in long_enough)
    assert len(chunks) + num_dropped >= len(runs) - 1


@given(st.integers(1, 500), st.integers(1, 70))
def test_long_spans_are_split_into_equal_pieces(num_turns, max_turns):
    pieces = split_evenly(range(5, 5 + num_turns), max_turns)
    assert [turn for piece in pieces for turn in piece] == list(range(5, 5 + num_turns))
    assert len(pieces) == -(-num_turns // max_turns)
    assert max(map(len, pieces)) <= max_turns
    assert max(map(len, pieces)) - min(map(len, pieces)) <= 1


def test_turns_count_from_the_start_of_the_span():
    words = Transcript(tuple(steady_words(24, words_per_s=3, start_s=100.5)))
    assert selected(words, 24, SelectionConfig(), start_s=100.5)[0] == [range(24)]
    assert selected(words, 24, ANNEALING, start_s=100.5)[0] == [range(24)]


@pytest.mark.parametrize(
    "text, num_words, num_characters",
    [
        ("the ball, it's in - 3.5", 6, 0),
        ("红队进球，领先比赛。", 0, 8),
        ("红队2比0 OK", 3, 3),
        ("ゴール！レッド", 0, 6),
        ("แดงได้ประตู", 0, 7),
        ("ທີມແດງ", 0, 4),
        ("ក្រុមក្រហម", 0, 5),
        ("레드 팀이 골을 넣었다", 0, 9),
        ("", 0, 0),
    ],
)
def test_scripts_without_blanks_and_hangul_are_counted_in_characters(text, num_words, num_characters):
    assert count_units(text) == (num_words, num_characters)


@pytest.mark.parametrize("text", ["红队进", "ゴール", "แดงได้", "ທີມແ", "ក្រុមក្រ", "레드팀", "红队 goal", "one word"])
def test_each_script_is_dense_enough_at_its_own_pace(text):
    config = SelectionConfig()
    assert select([], [text] * 24, config, start_s=0.0, turn_s=1.0)[0] == [range(24)]
    half = [text, ""] * 12
    assert select([], half, config, start_s=0.0, turn_s=1.0)[0] == []
    assert select([], half, SelectionConfig(min_characters_per_s=0), start_s=0.0, turn_s=1.0)[0] == [range(24)]


def test_held_out_videos_are_a_fraction_and_stay_when_others_are_added():
    videos = [f"game{number}.mp4" for number in range(2000)]
    held_out = {v for v in videos if split_of(v, held_out_fraction=0.1, seed=0) == "held_out"}
    assert 150 <= len(held_out) <= 250
    assert held_out == {v for v in reversed(videos) if split_of(v, held_out_fraction=0.1, seed=0) == "held_out"}
    assert held_out < {v for v in videos if split_of(v, held_out_fraction=0.2, seed=0) == "held_out"}
    assert held_out != {v for v in videos if split_of(v, held_out_fraction=0.1, seed=1) == "held_out"}


@pytest.mark.parametrize("fraction, split", [(0.0, "train"), (1.0, "held_out")])
def test_all_or_no_videos_may_be_held_out(fraction, split):
    assert {split_of(f"{n}.mp4", held_out_fraction=fraction, seed=0) for n in range(100)} == {split}


@pytest.mark.parametrize(
    "settings, named",
    [
        ({"kind": "both"}, "selection.kind=both"),
        ({"chunk_turns": 12, "overlap_turns": 12}, "overlap"),
        ({"min_turns": 65}, "selection.max_turns=64"),
        ({"chunk_turns": "24 s"}, "selection.chunk_turns='24 s' is not a number"),
        ({"min_words_per_s": -1}, "selection.min_words_per_s=-1"),
        ({"max_silence_s": float("nan")}, "selection.max_silence_s"),
    ],
)
def test_settings_out_of_range_are_named(settings, named):
    with pytest.raises(ConfigError, match=named):
        SelectionConfig(**settings)
