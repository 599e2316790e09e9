"""Inf-Streams-Eval in its published layout: previous text of each side, clips, and judged texts."""

import math
from itertools import pairwise
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from published_layouts import candidate_line, inf_streams_line, write_lines

from streamingvlm.errors import ConfigError, DataError
from streamingvlm.evaluation.llm_judge.commentary_files import CommentedClip, Utterance, read_commentary
from streamingvlm.evaluation.llm_judge.inf_streams import (
    Game,
    InfStreamsConfig,
    by_base_name,
    commentary_tasks,
    comparisons,
    read_games,
    read_segments,
)

WORDS = [(float(second), second + 0.5, f"w{second}") for second in range(0, 2400, 2)]  # the last ends at 2398.5 s


@pytest.fixture
def published(tmp_path):
    """Two games of 40 minutes, three segments of 100 s of each, one of them before commentary begins."""
    names = ["games/a.mp4", "games/b.mp4"]
    segments = [(900, 1000), (1000, 1100), (1900, 2000)]
    transcripts = write_lines(tmp_path / "all.jsonl", [inf_streams_line(name, WORDS) for name in names])
    lines = [
        inf_streams_line(name, [word for word in WORDS if start_s <= word[0] < end_s])
        for name in names
        for start_s, end_s in segments
    ]
    return transcripts, write_lines(tmp_path / "segments.jsonl", lines)


@pytest.fixture
def games(published, tmp_path):
    return read_games(published[0], tmp_path)


def test_games_and_segments_are_read(published, games, tmp_path):
    assert [(game.name, game.video) for game in games] == [
        ("games/a.mp4", tmp_path / "games" / "a.mp4"),
        ("games/b.mp4", tmp_path / "games" / "b.mp4"),
    ]
    assert (games[0].end_s, len(games[0].utterances)) == (2398.5, 1200)
    segments = read_segments(published[1], games, start_s=1000.0)
    assert [s.video for s in segments] == ["a.mp4", "a.mp4", "b.mp4", "b.mp4"]
    assert [(s.start_s, s.end_s) for s in segments[:2]] == [(1000.0, 1098.5), (1900.0, 1998.5)]
    assert segments[0].reference.split()[:2] == ["w1000", "w1002"]


def test_the_first_games_alone_may_be_asked_for(published, tmp_path):
    [game] = read_games(published[0], tmp_path, num_videos=1)
    assert {segment.video for segment in read_segments(published[1], [game], start_s=0)} == {"a.mp4"}


@pytest.mark.parametrize("is_rival", [False, True])
def test_fair_tells_both_sides_the_same(games, is_rival):
    config = InfStreamsConfig(query="Comment.")
    found = commentary_tasks(games, config, is_rival=is_rival)
    [clip] = found[1].clips
    assert (clip.video, clip.start_s, clip.end_s, clip.query) == (games[1].video, 1000.0, 2399, "Comment.")
    history = clip.previous_text.split()
    assert (history[0], history[-1], len(history)) == ("w0", "w998", 500)
    assert found == commentary_tasks(games, config, is_rival=not is_rival)


def test_the_papers_protocol_tells_the_candidate_alone(games):
    config = InfStreamsConfig(protocol="paper")
    [ours], [theirs] = (commentary_tasks(games, config, is_rival=rival)[0].clips for rival in (False, True))
    assert ours.previous_text.startswith("w0 w2") and theirs.previous_text == ""
    assert (ours.start_s, ours.end_s) == (theirs.start_s, theirs.end_s) == (1000.0, 2399)


def test_clips_cover_the_same_part_without_a_gap(games):
    clips = commentary_tasks(games, InfStreamsConfig(mode="clips"))[0].clips
    assert len(clips) == 14
    assert [clip.start_s for clip in clips] == [1000.0 + 100 * number for number in range(14)]
    assert [clip.end_s for clip in clips] == [*(clip.start_s for clip in clips[1:]), 2399]


def test_the_rival_may_be_asked_in_another_mode(games):
    config = InfStreamsConfig(rival_mode="clips")
    assert [len(commentary_tasks(games, config, is_rival=rival)[0].clips) for rival in (False, True)] == [1, 14]


@given(st.floats(0, 2390), st.floats(1, 500))
def test_clips_are_what_one_stream_is(start_s, clip_s):
    config = InfStreamsConfig(mode="clips", start_s=start_s, clip_s=clip_s)
    game = Game("a.mp4", Path("a.mp4"), (Utterance(0.0, 2398.5, "w"),))
    [whole], [cut] = (commentary_tasks([game], InfStreamsConfig(start_s=start_s)), commentary_tasks([game], config))
    [stream] = whole.clips
    assert (cut.clips[0].start_s, cut.clips[-1].end_s) == (stream.start_s, stream.end_s)
    assert all(a.end_s == b.start_s for a, b in pairwise(cut.clips))
    assert all(0 < clip.end_s - clip.start_s <= clip_s + 1e-6 for clip in cut.clips)


def test_a_game_that_ends_before_the_start_is_not_watched(games):
    assert commentary_tasks(games, InfStreamsConfig(start_s=2400.0)) == []


def test_each_segment_is_compared_by_its_own_commentary(published, games, tmp_path):
    segments = read_segments(published[1], games, start_s=1000.0)
    truth = CommentedClip(1000.0, 2399.0, tuple(Utterance(*word) for word in WORDS))
    ours = by_base_name({"a.mp4": [truth], "x/b.mp4": [truth]})
    utterances = [(1000, 1098.5, "in"), (1098, 1100, "out")]
    lines = [candidate_line(name, utterances, field="text") for name in ("a.mp4", "b.mp4")]
    theirs = read_commentary(write_lines(tmp_path / "theirs.jsonl", lines))
    found = list(comparisons(segments, ours, theirs))
    assert [(c.group, c.text_b) for c in found] == [("a.mp4", "in"), ("a.mp4", ""), ("b.mp4", "in"), ("b.mp4", "")]
    assert all(c.text_a == c.reference for c in found)
    assert len({c.name for c in found}) == 4


def test_a_candidate_without_a_video_is_named(published, games):
    segments = read_segments(published[1], games, start_s=1000.0)
    with pytest.raises(DataError, match=r"nothing of a\.mp4"):
        list(comparisons(segments, {}, {}))


@pytest.mark.parametrize(
    "line",
    [
        [{"role": "user", "content": []}],
        {"video": "a.mp4"},
        {"video": "a.mp4", "content": []},
        {"video": "a.mp4", "content": [[0, 1]]},
        {"video": "a.mp4", "content": [[0, "late", "w"]]},
        {"video": "a.mp4", "content": [[0, 1, None]]},
        {"video": 3, "content": [[0, 1, "w"]]},
        7,
    ],
)
def test_another_layout_is_named_by_its_line(tmp_path, games, line):
    path = write_lines(tmp_path / "other.jsonl", [inf_streams_line("z.mp4", WORDS), line])
    for read in (lambda: read_games(path, tmp_path), lambda: read_segments(path, games, start_s=0)):
        with pytest.raises(DataError, match=r"other\.jsonl:2 is no line of Inf-Streams-Eval"):
            read()


@pytest.mark.parametrize("content, reason", [(b"", "holds no video"), (b'{"video": "a', r"jsonl:1 is not JSON")])
def test_an_empty_or_broken_file_is_named(tmp_path, content, reason):
    path = tmp_path / "other.jsonl"
    path.write_bytes(content)
    with pytest.raises(DataError, match=reason):
        read_games(path, tmp_path)


def test_segments_of_other_videos_are_named(tmp_path, games):
    path = write_lines(tmp_path / "segments.jsonl", [inf_streams_line("z.mp4", WORDS)])
    with pytest.raises(DataError, match=r"no segment of these 2 videos from 1000 s on"):
        read_segments(path, games, start_s=1000.0)


def test_ambiguous_names_and_paths_outside_the_root_are_refused(tmp_path):
    twice = write_lines(tmp_path / "twice.jsonl", [inf_streams_line(f"{folder}/a.mp4", WORDS) for folder in "xy"])
    with pytest.raises(DataError, match="two videos of one base name"):
        read_games(twice, tmp_path)
    out = write_lines(tmp_path / "out.jsonl", [inf_streams_line("../../etc/a.mp4", WORDS)])
    with pytest.raises(DataError, match="leads out of"):
        read_games(out, tmp_path)


@pytest.mark.parametrize(
    "wrong",
    [
        {"protocol": "kind"},
        {"mode": "finite"},
        {"mode": "chunks"},
        {"rival_mode": "finite"},
        {"clip_s": 0},
        {"start_s": math.nan},
    ],
)
def test_conditions_that_are_none_are_named(wrong):
    [name] = wrong
    with pytest.raises(ConfigError, match=name):
        InfStreamsConfig(**wrong)
