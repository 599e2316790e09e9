"""Preparation from real files to a folder of prepared data, including every fault in the sources."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import pytest
from chat_server import ChatServer
from published_layouts import conversation, steady_words, subrip, webvtt, whisperx, write_lines, write_video

from streamingvlm.data.asr import AsrConfig, SpeechRecogniser
from streamingvlm.data.chunks import plan_chunks
from streamingvlm.data.cleaning import Cleaner, CleaningConfig
from streamingvlm.data.prepare import PrepareConfig, prepare, summary
from streamingvlm.data.prepared import PreparedData
from streamingvlm.data.selection import SelectionConfig, split_of
from streamingvlm.data.transcript import Word
from streamingvlm.endpoint import ChatEndpoint, EndpointConfig
from streamingvlm.errors import ConfigError, DataError
from streamingvlm.inference.commentary import Commentary
from streamingvlm.inference.output_files import open_writers

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="session")
def minute(tmp_path_factory):
    """A video of a minute, to be copied."""
    return write_video(tmp_path_factory.mktemp("videos") / "minute.mp4", 60)


@pytest.fixture
def videos(tmp_path, minute):
    """A folder with two videos of a minute and what is said in them."""
    folder = tmp_path / "videos"
    (folder / "cup").mkdir(parents=True)
    shutil.copy(minute, folder / "a.mp4")
    shutil.copy(minute, folder / "cup" / "b.mp4")
    (folder / "a.json").write_text(json.dumps(whisperx(steady_words(60))))
    (folder / "cup" / "b.vtt").write_text(webvtt([(0.0, 40.0, " ".join(["word"] * 120)), (50.0, 52.0, "the end")]))
    return folder


@pytest.fixture
def prepared(tmp_path):
    """Prepare sources and open the result."""

    def run(*sources, target="prepared", selection=None, video_root=None, recogniser=None, cleaner=None, **settings):
        folder = tmp_path / target
        more = {"video_root": video_root, "recogniser": recogniser, "cleaner": cleaner}
        manifest = prepare(sources, folder, PrepareConfig(**settings), selection or SelectionConfig(), **more)
        data = PreparedData.open(folder, cache_folder=tmp_path / "cache")
        assert data.manifest == {"version": 1, **manifest}
        return data

    return run


def left_over(folder):
    """Return what a failed run left behind."""
    return sorted(path.name for path in folder.iterdir() if "prepared" in path.name)


def reasons(data):
    return [entry["reason"] for entry in data.manifest["entries_dropped"]["first"]]


def test_a_folder_of_videos_becomes_recordings_and_chunks(videos, prepared):
    data = prepared(videos, query="What happens?")
    first, second = data.recordings
    assert (first["id"], first["video"], first["title"], first["query"]) == ("a.mp4", "a.mp4", "a", "What happens?")
    assert (first["start_s"], first["end_s"], first["num_turns"]) == (0.0, 60.0, 60)
    assert (first["width"], first["height"]) == (64, 48)
    assert " ".join(first["lines"]).split() == [word.text for word in steady_words(60)]
    assert second["video"] == "cup/b.mp4"
    assert second["lines"][39] and not any(second["lines"][40:50])
    assert " ".join(second["lines"][50:52]) == "the end"
    chunks = [(c["first_turn"], c["num_turns"]) for c in data.chunks if c["recording"] == "a.mp4"]
    assert chunks == [(turns.start, len(turns)) for turns in plan_chunks(60)]
    rows = {row["id"]: row for row in data.recordings}
    for chunk in data.chunks:
        lines = rows[chunk["recording"]]["lines"][chunk["first_turn"] :][: chunk["num_turns"]]
        assert chunk["num_words"] == len(" ".join(lines).split()) >= 2 * chunk["num_turns"]
    assert data.turn_s == 1.0
    assert (data.video_root / second["video"]).is_file()


def test_hours_and_counts_are_in_the_manifest(videos, prepared):
    manifest = prepared(videos).manifest
    assert manifest["counts"]["recordings"] == 2
    assert manifest["counts"]["words"] == 150 + 122
    assert manifest["hours"]["recordings"] == pytest.approx(120 / 3600, abs=1e-4)
    assert manifest["counts"]["chunks"] + sum(manifest["chunks_dropped"].values()) == 2 * len(plan_chunks(60))
    assert "2 recordings, 0.03 h" in summary(manifest)


def test_all_formats_of_one_transcript_agree(tmp_path, minute, prepared):
    words = [Word(float(n), n + 1.0, "word") for n in range(60)]
    cues = [(word.start_s, word.end_s, word.text) for word in words]
    texts = {"w.json": json.dumps(whisperx(words)), "f.json": json.dumps(whisperx(words)["segments"])}
    texts |= {"v.vtt": webvtt(cues), "s.srt": subrip(cues)}
    folder = tmp_path / "videos"
    folder.mkdir()
    for name, text in texts.items():
        (folder / name).write_text(text)
        shutil.copy(minute, (folder / name).with_suffix(".mp4"))
    shutil.copy(minute, tmp_path / "videos" / "l.mp4")
    listed = write_lines(folder / "l.jsonl", [conversation("l.mp4", words)])
    data = prepared(folder / "v.mp4", folder / "s.mp4", folder / "w.mp4", folder / "f.mp4", listed,
                    selection=SelectionConfig(min_words_per_s=1.0))  # fmt: skip
    assert data.recordings.num_rows == 5
    assert all(lines == ["word"] * 60 for lines in data.recordings["lines"])


@pytest.mark.parametrize(("language", "is_found"), [("en", True), ("pt-BR", True), ("final cut", False)])
def test_a_transcript_may_have_its_language_in_its_name(tmp_path, minute, prepared, language, is_found):
    (tmp_path / "videos").mkdir()
    shutil.copy(minute, tmp_path / "videos" / "m [1].mp4")
    text = webvtt([(0.0, 60.0, " ".join(["word"] * 120))])
    (tmp_path / "videos" / f"m [1].{language}.vtt").write_text(text)
    if is_found:
        assert len(prepared(tmp_path / "videos").recordings) == 1
    else:
        with pytest.raises(DataError, match="no transcript"):
            prepared(tmp_path / "videos")


@pytest.mark.parametrize("index", [None, "inside", "beside"])
def test_conversations_become_spans_of_videos(tmp_path, videos, prepared, index):
    lines = [
        conversation(
            "cup/b.mp4",
            steady_words(24, start_s=start_s),
            start_s=start_s,
            end_s=start_s + 24,
            previous=f"before {start_s}",
            title="A - B",
            category="sport",
            text="Who leads?",
        )
        for start_s in (0.0, 12.0, 24.0)
    ]
    path = write_lines(tmp_path / "train_with_seeks.jsonl", lines, index=index)
    data = prepared(path, video_root=videos)
    assert data.video_root == videos
    assert data.recordings["id"] == [f"cup/b.mp4@{a}-{a + 24}" for a in (0.0, 12.0, 24.0)]
    row = data.recordings[1]
    assert (row["start_s"], row["end_s"], row["num_turns"]) == (12.0, 36.0, 24)
    assert (row["previous_text"], row["query"], row["title"]) == ("before 12.0", "Who leads?", "A - B")
    assert (row["category"], row["source"]) == ("sport", f"{path}:2")
    assert " ".join(row["lines"]).split() == [word.text for word in steady_words(24, start_s=12)]
    assert [(c["recording"], c["first_turn"], c["num_turns"]) for c in data.chunks] == [
        (row["id"], 0, 24) for row in data.recordings
    ]


def test_spans_of_one_video_are_in_one_split(tmp_path, minute, prepared):
    words = steady_words(60)
    lines = []
    for number in range(20):
        os.link(minute, tmp_path / f"{number}.mp4")
        lines += [conversation(f"{number}.mp4", words, start_s=s, end_s=s + 24) for s in (0, 12)]
    data = prepared(write_lines(tmp_path / "train.jsonl", lines), held_out_fraction=0.5)
    splits = {}
    for chunk in data.chunks:
        splits.setdefault(chunk["recording"].partition("@")[0], set()).add(chunk["split"])
    assert all(len(split) == 1 for split in splits.values())
    assert {"train", "held_out"} == set.union(*splits.values())


def test_annealing_chunks_are_found(videos, prepared):
    data = prepared(videos, selection=SelectionConfig(kind="annealing"))
    chunks = {c["recording"]: (c["first_turn"], c["num_turns"]) for c in data.chunks}
    assert chunks == {"a.mp4": (0, 60), "cup/b.mp4": (0, 40)}


def test_videos_that_cannot_be_used_are_listed_and_the_others_are_prepared(tmp_path, videos, prepared):
    (videos / "empty.mp4").touch()
    (videos / "text.mp4").write_text("no video\n" * 50)
    write_video(videos / "short.mp4", 5)
    words = steady_words(24)
    lines = [conversation("nowhere.mp4", words), conversation("nowhere.mp4", words, start_s=1.0)]
    data = prepared(videos, write_lines(videos / "more.jsonl", lines))
    assert data.recordings["id"] == ["a.mp4", "cup/b.mp4"]
    listed = {Path(entry["video"]).name: entry for entry in data.manifest["videos_unusable"]}
    for name, reason in [("empty", "0 bytes"), ("text", "not a video"), ("short", "5 s"), ("nowhere", "not exist")]:
        assert reason in listed.pop(f"{name}.mp4")["reason"]
    assert listed == {}
    assert [e["num_recordings"] for e in data.manifest["videos_unusable"] if "nowhere" in e["video"]] == [2]
    assert "4 videos unusable" in summary(data.manifest)


def test_a_truncated_video_is_used_to_its_end_and_listed(tmp_path, prepared):
    video = write_video(tmp_path / "a.mp4", 60, muxer_options={"movflags": "faststart"}, size=(320, 240))
    video.write_bytes(video.read_bytes()[: video.stat().st_size * 2 // 3])
    (tmp_path / "a.json").write_text(json.dumps(whisperx(steady_words(60))))
    data = prepared(video)
    num_turns = data.recordings[0]["num_turns"]
    assert 24 <= num_turns < 60
    assert data.manifest["videos_truncated"] == [{"video": str(video), "missing_s": 60.0 - num_turns}]
    assert data.manifest["words_repaired"]["late"]["num"] == sum(w.end_s > num_turns for w in steady_words(60))


@pytest.mark.parametrize(
    "name", ["../outside.mp4", "/etc/passwd", "a/../../outside.mp4", "file:///etc/x.mp4", "a\0.mp4"]
)
def test_paths_may_not_leave_the_root(tmp_path, videos, minute, prepared, name):
    shutil.copy(minute, tmp_path / "outside.mp4")
    words = steady_words(24)
    path = write_lines(tmp_path / "lists.jsonl", [conversation(name, words), conversation("a.mp4", words)])
    data = prepared(path, video_root=videos)
    assert data.recordings["id"] == ["a.mp4"]
    assert [f"{path}:1"] == [entry["origin"] for entry in data.manifest["entries_dropped"]["first"]]
    assert "leads out of" in reasons(data)[0]


def test_transcripts_may_not_leave_the_folder_of_their_list(tmp_path, videos, prepared):
    (tmp_path / "secret.json").write_text(json.dumps(whisperx(steady_words(60))))
    lines = [{"video": "a.mp4", "transcript": "../secret.json"}, {"video": "cup/b.mp4", "transcript": "a.json"}]
    data = prepared(write_lines(videos / "list.jsonl", lines))
    assert data.recordings["id"] == ["cup/b.mp4"]
    assert "leads out of" in reasons(data)[0]


def test_absolute_paths_below_the_root_are_accepted(tmp_path, videos, prepared):
    path = write_lines(tmp_path / "list.jsonl", [conversation(str(videos / "a.mp4"), steady_words(24))])
    assert prepared(path, video_root=videos).recordings["video"] == ["a.mp4"]


def test_duplicates_are_used_once(videos, prepared):
    words = steady_words(60)
    lines = [conversation("cup/b.mp4", words, start_s=s, end_s=s + 24) for s in (0, 12, 0)]
    path = write_lines(videos / "list.jsonl", lines)
    data = prepared(path, videos / ".." / "videos" / "list.jsonl")
    assert data.recordings.num_rows == 2
    assert [reason.split(" of ")[0] for reason in reasons(data)] == ["is given twice", "repeats a span"]


def test_bad_lines_are_named_with_file_and_number(videos, prepared):
    lines = [conversation("a.mp4", steady_words(24)), b'{"video": ', [{"role": "user"}]]
    path = write_lines(videos / "list.jsonl", lines)
    dropped = prepared(path).manifest["entries_dropped"]
    assert dropped["num"] == 2
    assert [entry["origin"] for entry in dropped["first"]] == [f"{path}:2", f"{path}:3"]
    assert dropped["first"][0]["reason"].startswith("is not JSON")


def test_entries_without_words_or_turns_are_named(videos, prepared):
    lines = [
        conversation("a.mp4", steady_words(24)),
        conversation("a.mp4", [], start_s=1),
        conversation("a.mp4", steady_words(24), start_s=70),
        conversation("a.mp4", steady_words(24), start_s=7, end_s=7.5),
        {"video": "a.mp4", "transcript": "nowhere.json", "video_start": 2},
    ]
    data = prepared(write_lines(videos / "list.jsonl", lines))
    assert [reason for reason in reasons(data) if "without words" in reason]
    assert len([reason for reason in reasons(data) if "less than one turn" in reason]) == 2
    assert [reason for reason in reasons(data) if "nowhere.json cannot be read" in reason]


def test_words_are_repaired_and_counted(videos, prepared):
    words = steady_words(60)
    words[5] = Word(words[5].end_s, words[5].start_s, "reversed")
    document = whisperx([*words, Word(61.0, 62.0, "late")])
    del document["segments"][1]["words"][1]["start"], document["segments"][1]["words"][1]["end"]
    (videos / "a.json").write_text(json.dumps(document))
    repaired = prepared(videos / "a.mp4").manifest["words_repaired"]
    assert {name: entry["num"] for name, entry in repaired.items()} == {"reversed": 1, "late": 1, "untimed": 1}
    assert all(entry["rule"] for entry in repaired.values())


@pytest.mark.parametrize(
    "times, reason",
    [
        (lambda time_s: round(time_s * 1000), "times up to 59,800 for a video of 60 s, probably milliseconds"),
        (lambda time_s: "soon", r"150 it has no times, and no neighbour has any"),
        (lambda time_s: time_s + 70, r"150 it ends after the used span of the video"),
    ],
)
def test_the_reason_says_what_is_wrong_with_the_times(videos, prepared, times, reason):
    document = whisperx(steady_words(60))
    for item in [*document["segments"], *(w for s in document["segments"] for w in s["words"])]:
        item["start"], item["end"] = times(item["start"]), times(item["end"])
    (videos / "a.json").write_text(json.dumps(document))
    with pytest.raises(DataError, match=reason):
        prepared(videos / "a.mp4")


@pytest.mark.parametrize(
    "text",
    ["红队进球领先比赛", "レッドチームゴール", "แดงได้ประตูแล้ว", "ທີມແດງໄດ້ປະຕູ", "ក្រុមក្រហមរកបាន", "레드 팀이 골을"],
)
def test_subtitles_without_blanks_are_dense_enough(tmp_path, minute, prepared, text):
    shutil.copy(minute, tmp_path / "x.mp4")
    (tmp_path / "x.srt").write_text(subrip([(2.0 * n, 2.0 * n + 2, text) for n in range(15)]))
    data = prepared(tmp_path / "x.mp4")
    assert (data.chunks[0]["first_turn"], data.chunks[0]["num_words"]) == (0, 0)
    assert "".join(data.recordings[0]["lines"]).replace(" ", "") == text.replace(" ", "") * 15


def test_a_recogniser_that_cannot_run_ends_the_run(tmp_path, minute, videos, prepared, monkeypatch):
    shutil.copy(minute, videos / "bare.mp4")
    (tmp_path / "kept").touch()
    recogniser = SpeechRecogniser(AsrConfig(), tmp_path / "kept", lambda samples: [])
    write_video(videos / "spoken.mp4", 20, tone_at_s=[1])
    with pytest.raises(ConfigError, match="give another work_folder"):
        prepared(videos, recogniser=recogniser)
    assert left_over(tmp_path) == []


def test_something_is_left_to_train_on(tmp_path, videos, prepared, caplog):
    def split(name, seed):
        return split_of(name, held_out_fraction=0.02, seed=seed)

    seed = next(n for n in range(999) if split("a.mp4", n) == "held_out" and split("cup/b.mp4", n) == "train")
    assert prepared(videos / "a.mp4", seed=seed).manifest["counts"]["chunks_train"] == 4
    assert "none is held out" in caplog.text
    assert prepared(videos / "a.mp4", target="all", held_out_fraction=1.0).manifest["counts"]["chunks_held_out"] == 4
    (videos / "cup" / "b.vtt").unlink()
    with pytest.raises(DataError, match="held_out_fraction=0 to hold none out"):
        prepared(videos, target="left", seed=seed)


def test_settings_are_checked_without_loading_torch():
    code = "import sys, streamingvlm.data.prepare, streamingvlm.data.asr; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], cwd=ROOT).returncode == 0


def test_questions_are_dropped_or_kept_and_counted(videos, prepared):
    asked = [[None, 5.5, "Who?", "The red side."], [None, 99.0, "Late?", "Yes."], ["bad"]]
    path = write_lines(videos / "list.jsonl", [conversation("a.mp4", steady_words(60), questions=asked)])
    data = prepared(path)
    assert data.recordings["questions"] == [[]]
    assert data.manifest["questions"] == {"dropped": 2, "unreadable": 1}
    data = prepared(path, target="kept", questions="keep")
    assert data.recordings["questions"] == [[{"turn": 5, "question": "Who?", "answer": "The red side."}]]
    assert data.manifest["questions"] == {"kept": 1, "outside_the_recording": 1, "unreadable": 1}


def test_lone_surrogates_do_not_stop_a_run(videos, prepared):
    words = [Word(w.start_s, w.end_s, w.text + "\ud83d") for w in steady_words(60)]
    path = write_lines(videos / "list.jsonl", [conversation("a.mp4", words, title="\udc00", text="\ud800?")])
    row = prepared(path).recordings[0]
    assert row["query"] == "??" and row["lines"][0].startswith("w0.?")


def test_a_target_that_is_not_empty_is_rejected_before_anything_is_read(tmp_path, prepared):
    (tmp_path / "prepared").mkdir()
    (tmp_path / "prepared" / "mine.txt").touch()
    with pytest.raises(DataError, match="is not empty"):
        prepared(tmp_path / "nowhere")
    assert os.listdir(tmp_path / "prepared") == ["mine.txt"]


def test_an_empty_target_is_filled(tmp_path, videos, prepared):
    (tmp_path / "prepared").mkdir()
    assert prepared(videos).recordings.num_rows == 2


@pytest.mark.parametrize(
    "sources, reason",
    [
        ([], "no source is given"),
        (["nowhere"], "does not exist"),
        (["videos/a.json"], "not a list of recordings"),
        (["silent"], "the sources are empty"),
        (["broken"], r"1 reasons, the first: .*0 bytes"),
        (["bare"], "has no transcript"),
        (["sparse"], "fewer than 2 words or 3 characters a second"),
    ],
)
def test_without_usable_data_the_error_has_the_first_reason(tmp_path, videos, minute, prepared, sources, reason):
    for name in ("silent", "broken", "bare", "sparse"):
        (tmp_path / name).mkdir()
    (tmp_path / "broken" / "x.mp4").touch()
    for name in ("bare", "sparse"):
        shutil.copy(minute, tmp_path / name / "x.mp4")
    (tmp_path / "sparse" / "x.vtt").write_text(webvtt([(0.0, 60.0, "not much")]))
    with pytest.raises(DataError, match=reason) as caught:
        prepared(*(tmp_path / source for source in sources))
    assert "\n" not in str(caught.value)
    assert left_over(tmp_path) == []


def test_a_full_disk_is_an_error_before_anything_is_written(tmp_path, videos, prepared, monkeypatch):
    monkeypatch.setattr(shutil, "disk_usage", lambda path: SimpleNamespace(free=10_000_000))
    with pytest.raises(DataError, match="has 10 MB left, but the prepared data may take 16 MB"):
        prepared(videos)
    assert left_over(tmp_path) == []


PREPARE_IN_A_PROCESS = """
import resource, sys
from streamingvlm.data.prepare import PrepareConfig, prepare
from streamingvlm.data.selection import SelectionConfig
from streamingvlm.errors import DataError

videos, target, num_bytes = sys.argv[1:]
if int(num_bytes):
    resource.setrlimit(resource.RLIMIT_FSIZE, (int(num_bytes), int(num_bytes)))
try:
    prepare([videos], target, PrepareConfig(), SelectionConfig())
except DataError as error:
    print(error)
"""


def start(*arguments):
    return subprocess.Popen(
        [sys.executable, "-c", PREPARE_IN_A_PROCESS, *map(str, arguments)],
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        stdout=subprocess.PIPE,
        text=True,
    )


def test_a_disk_that_fills_during_writing_gives_one_line_and_leaves_nothing(tmp_path, videos):
    out, _ = start(videos, tmp_path / "prepared", 1000).communicate(timeout=180)
    assert out.count("\n") == 1 and "prepared cannot be written" in out and "File too large" in out
    assert left_over(tmp_path) == []


def test_a_killed_run_leaves_no_folder_that_looks_complete(tmp_path, minute):
    folder = tmp_path / "videos"
    folder.mkdir()
    words = json.dumps(whisperx(steady_words(60)))
    for number in range(300):
        os.link(minute, folder / f"{number}.mp4")
        (folder / f"{number}.json").write_text(words)
    with start(folder, tmp_path / "prepared", 0) as process:
        deadline = time.monotonic() + 180
        while not list(tmp_path.glob(".prepared.partial-*/*.parquet")) and time.monotonic() < deadline:
            time.sleep(0.01)
        process.send_signal(signal.SIGKILL)
    assert process.returncode == -signal.SIGKILL
    with pytest.raises(DataError, match="holds no prepared data"):
        PreparedData.open(tmp_path / "prepared")


def test_missing_transcripts_are_made_from_the_audio(tmp_path, prepared):
    video = write_video(tmp_path / "a.mp4", 30, tone_at_s=[1])
    words = [SimpleNamespace(word=f" {w.text}", start=w.start_s, end=w.end_s) for w in steady_words(30)]
    segments = [SimpleNamespace(start=0.0, end=30.0, text="", words=words)]
    data = prepared(video, recogniser=SpeechRecogniser(AsrConfig(), tmp_path / "kept", lambda samples: segments))
    assert " ".join(data.recordings[0]["lines"]).split() == [word.text for word in steady_words(30)]


def test_transcripts_are_cleaned_after_the_cost_estimate(tmp_path, videos):
    def delete_the_first(body, num_before):
        num_sentences = len(body["messages"][-1]["content"].splitlines())
        actions = ["delete", *["keep"] * (num_sentences - 1)]
        return json.dumps({"sentences": [{"number": n, "action": a} for n, a in enumerate(actions, 1)]})

    estimates = []
    with ChatServer(delete_the_first) as server:
        endpoint = ChatEndpoint(EndpointConfig("m", server.url, api_key_env=None), tmp_path / "answers")
        manifest = prepare(
            [videos / "a.mp4"],
            tmp_path / "prepared",
            PrepareConfig(),
            SelectionConfig(),
            cleaner=Cleaner(endpoint, CleaningConfig()),
            on_estimate=lambda estimate: estimates.append((estimate.num_requests, len(server.requests))),
        )
    assert estimates == [(1, 0)]
    assert manifest["counts"]["words"] == 149
    assert (manifest["cleaning"]["sentences_delete"], manifest["cleaning"]["num_requests"]) == (1, 1)


@pytest.mark.parametrize(
    "setting",
    [{"held_out_fraction": 2}, {"held_out_fraction": "two"}, {"questions": "both"}, {"num_workers": 0}, {"fps": 0}],
)
def test_settings_out_of_range_are_named(setting):
    [name] = setting
    with pytest.raises(ConfigError, match=name):
        PrepareConfig(**setting)


def test_what_a_model_wrote_is_no_transcript(tmp_path, minute, prepared):
    folder = tmp_path / "videos"
    folder.mkdir()
    for name in ("a.mp4", "b.mp4", "a.captioned.mp4"):
        shutil.copy(minute, folder / name)
    for video in (folder / "a.mp4", folder / "b.mp4"):
        with open_writers(video, formats=["vtt", "srt", "jsonl"]) as writer:
            for second in range(60):
                writer.write(Commentary(second, second + 1.0, "three more words", 3, 0.1))
    (folder / "b.srt").write_text(subrip([(float(n), n + 1.0, "people said this") for n in range(60)]))
    data = prepared(folder)
    assert [row["video"] for row in data.recordings] == ["b.mp4"]
    assert data.recordings[0]["lines"][0] == "people said this"
    assert len(reasons(data)) == 1 and "a.vtt was written by a model" in reasons(data)[0]
    with pytest.raises(DataError, match=r"a\.jsonl was written by a model"):
        prepared(folder / "a.jsonl", target="other")
