"""Stored commentary: resumed runs, incomplete files, and videos that cannot be read."""

import math
import threading
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import pytest

from streamingvlm.errors import DataError, VideoError
from streamingvlm.evaluation.candidates.video_clip import Clip
from streamingvlm.evaluation.llm_judge.commentary_files import (
    CommentedClip,
    Utterance,
    merge_clips,
    read_commentary,
    text_between,
    write_commentary,
)
from streamingvlm.evaluation.llm_judge.generation import CommentaryStore, CommentaryTask, generate_commentary
from streamingvlm.inference.commentary import Commentary


class Parrot:
    """Says where it is in which video, and is silent every third second; files that hold "bad" it cannot watch."""

    name, path = "parrot", "by heart"

    def __init__(self, num_parallel=1):
        self.num_parallel = num_parallel
        self.watched: list[Clip] = []

    def comment(self, clip):
        self.watched.append(clip)
        if clip.video.read_text() == "bad":
            raise VideoError(f"{clip.video.name} cannot be watched")
        for second in range(int(clip.start_s), int(clip.end_s)):
            text = f"{clip.video.stem}{second}" if second % 3 else ""
            yield Commentary(float(second), second + 1.0, text)


@pytest.fixture
def games(tmp_path):
    """Four tasks on files that the parrot can watch."""
    paths = [tmp_path / f"g{number}.mp4" for number in range(4)]
    for path in paths:
        path.write_text("fine")
    return [CommentaryTask(path.name, (Clip(path, 0.0, 5.0), Clip(path, 5.0, 9.0))) for path in paths]


@pytest.fixture
def store(tmp_path):
    return CommentaryStore(tmp_path / "said", {"model": "parrot"})


def said(commentary):
    return [utterance.text for clip in commentary.clips for utterance in clip.utterances]


def refuse():
    raise AssertionError("everything is stored, so no candidate may be opened")


def test_commentary_is_stored_with_its_times_and_its_candidate(games, store):
    result = generate_commentary(games, Parrot, store)
    assert list(result) == ["g0.mp4", "g1.mp4", "g2.mp4", "g3.mp4"]
    assert said(result["g1.mp4"]) == ["g11", "g12", "g14", "g15", "g17", "g18"]
    first, second = result["g1.mp4"].clips
    assert (first.start_s, first.end_s, first.utterances[0]) == (0.0, 5.0, Utterance(1.0, 2.0, "g11"))
    assert (second.start_s, second.end_s) == (5.0, 9.0)
    assert (result["g0.mp4"].candidate, result["g0.mp4"].path) == ("parrot", "by heart")
    assert generate_commentary(games, refuse, store) == result


def test_the_commentary_of_a_clip_is_previous_text_of_the_next(games, store):
    parrot = Parrot()
    told = CommentaryTask("told", tuple(replace(clip, query="q", previous_text="Before.") for clip in games[0].clips))
    generate_commentary([told], lambda: parrot, store)
    assert [clip.previous_text for clip in parrot.watched] == ["Before.", "Before. g01 g02 g04"]
    assert {clip.query for clip in parrot.watched} == {"q"}


def test_other_settings_and_other_clips_are_generated_again(games, store, tmp_path):
    generate_commentary(games, Parrot, store)
    other = CommentaryStore(store.folder, {"model": "another"})
    assert other.read(games[0]) is None
    assert store.read(CommentaryTask(games[0].name, games[0].clips[:1])) is None
    moved = tmp_path / "moved" / "g0.mp4"
    assert store.read(CommentaryTask(games[0].name, tuple(Clip(moved, c.start_s, c.end_s) for c in games[0].clips)))


@pytest.mark.parametrize("damage", [lambda text: text[: len(text) // 2], lambda text: "", lambda text: "[]"])
def test_half_a_file_is_never_read(games, store, damage):
    result = generate_commentary(games, Parrot, store)
    [file] = store.folder.glob("g2*")
    file.write_text(damage(file.read_text()))
    parrot = Parrot()
    assert generate_commentary(games, lambda: parrot, store) == result
    assert {clip.video.name for clip in parrot.watched} == {"g2.mp4"}


@pytest.mark.parametrize("num_parallel", [1, 3])
def test_a_video_that_cannot_be_watched_does_not_stop_the_others(games, store, num_parallel):
    Path(games[1].clips[0].video).write_text("bad")
    with pytest.raises(
        VideoError, match=r"1 of 4 videos failed, the others are stored; the first: g1\.mp4 cannot be watched"
    ):
        generate_commentary(games, lambda: Parrot(num_parallel), store)
    games[1].clips[0].video.write_text("fine")
    parrot = Parrot()
    assert len(generate_commentary(games, lambda: parrot, store)) == 4
    assert {clip.video.name for clip in parrot.watched} == {"g1.mp4"}


def test_missing_videos_are_reported_before_any_clip_is_read(games, store):
    for game in games[2:]:
        game.clips[0].video.unlink()
    with pytest.raises(DataError, match=r"g2\.mp4 and 1 more of 4 videos: no such file; check video_root"):
        generate_commentary(games, refuse, store)


def test_stored_commentary_needs_no_video(games, store):
    generate_commentary(games, Parrot, store)
    for game in games:
        game.clips[0].video.unlink()
    assert len(generate_commentary(games, refuse, store)) == 4


@pytest.mark.parametrize("num_parallel", [1, 2])
def test_an_interrupted_run_stores_complete_videos_only(games, store, num_parallel):
    def leave_at(line):
        if line.text == "g24":
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        generate_commentary(games, lambda: Parrot(num_parallel), store, on_line=leave_at)
    kept = [game.name for game in games if store.read(game)]
    assert kept[:2] == ["g0.mp4", "g1.mp4"] and "g2.mp4" not in kept
    parrot = Parrot()
    assert len(generate_commentary(games, lambda: parrot, store)) == 4
    assert not {clip.video.name for clip in parrot.watched} & set(kept)


def test_an_interrupt_does_not_wait_for_parallel_videos(games, store):
    lines_after = threading.Semaphore(0)

    class Endless(Parrot):
        def comment(self, clip):
            if clip.video.stem == "g0":
                raise KeyboardInterrupt
            for second in range(10**9):  # ends only if it is stopped
                lines_after.release()
                yield Commentary(float(second), second + 1.0, "on and on")

    with pytest.raises(KeyboardInterrupt):
        generate_commentary(games, lambda: Endless(2), store)
    assert not store.folder.exists()


def test_a_video_that_ends_early_is_named(games, store, caplog):
    class EndsAtSeven(Parrot):
        def comment(self, clip):
            yield from super().comment(replace(clip, end_s=min(clip.end_s, 7.0)))

    generate_commentary(games[:1], EndsAtSeven, store)
    assert [record.message for record in caplog.records] == [
        "g0.mp4 ends at 7 s, not at 9 s; there is no commentary after that"
    ]
    caplog.clear()
    generate_commentary(games[1:2], Parrot, store)
    assert caplog.records == []


def test_a_disk_that_refuses_writes_is_reported(games, tmp_path):
    (tmp_path / "said").write_text("a file where a folder should be")
    with pytest.raises(DataError, match="cannot store commentary"):
        generate_commentary(games, Parrot, CommentaryStore(tmp_path / "said", {}))


# Files in the published shape.

CLIPS = [
    CommentedClip(10.0, 20.0, (Utterance(10.0, 11.0, "b"), Utterance(15.0, 16.5, "ü c"))),
    CommentedClip(0.0, 10.0, (Utterance(2.0, 3.0, "a"),)),
]


def test_clips_are_read_back_merged_to_one_a_video(tmp_path):
    path = tmp_path / "candidate.jsonl"
    write_commentary(path, {"sub/x.mp4": CLIPS, "y.mp4": CLIPS[:1]})
    assert len(path.read_text().splitlines()) == 3
    read = read_commentary(path)
    assert read == {"x.mp4": merge_clips(CLIPS), "y.mp4": CLIPS[0]}
    assert [utterance.text for utterance in read["x.mp4"].utterances] == ["a", "b", "ü c"]
    write_commentary(path, {video: [clip] for video, clip in read.items()})
    assert read_commentary(path) == read


def test_an_utterance_belongs_to_the_segment_in_which_it_ends():
    utterances = merge_clips(CLIPS).utterances
    assert text_between(utterances, 3.0, 16.5) == "b ü c"
    assert text_between(utterances, 2.9, 11.0) == "a b"
    assert text_between(utterances, -math.inf, math.inf) == "a b ü c"
    bounds_s = [0.0, 3.0, 10.5, 11.0, 16.0, 20.0]
    cut = [text_between(utterances, a, b) for a, b in pairwise(bounds_s)]
    assert cut == ["a", "", "b", "", "ü c"]


GOOD = '{"video": "x.mp4", "chunk_start": 0, "chunk_end": 9, "items": [{"start_time": 0, "end_time": 1, "text": "a"}]}'


@pytest.mark.parametrize(
    "line",
    [
        GOOD[:40],
        "[]",
        '"text"',
        "{}",
        GOOD.replace('"text": "a"', '"text": null'),
        GOOD.replace('"end_time": 1', '"end_time": "soon"'),
        GOOD.replace('"video": "x.mp4"', '"video": 7'),
        GOOD.replace('"items": [', '"items": 7, "x": ['),
    ],
)
def test_a_line_of_another_layout_is_named_by_its_number(tmp_path, line):
    path = tmp_path / "candidate.jsonl"
    path.write_text(f"{GOOD}\n\n{line}\n")
    with pytest.raises(DataError, match=r"candidate\.jsonl:3 is no") as caught:
        read_commentary(path)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("make", [Path.mkdir, lambda path: path.write_bytes(b"\xff\xfe{"), lambda path: None])
def test_a_file_that_is_none_is_named(tmp_path, make):
    make(tmp_path / "candidate.jsonl")
    with pytest.raises(DataError, match=r"candidate\.jsonl"):
        read_commentary(tmp_path / "candidate.jsonl")
