"""The command, on the embedded match with the embedded model."""

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from functools import partial
from pathlib import Path

import av
import numpy as np
import pytest

import streamingvlm.cli.stream as stream_module

ROOT = Path(__file__).parents[2]
MATCH = ROOT / "streamingvlm" / "assets" / "pitch" / "match.mp4"
PITCH = MATCH.parent

pytestmark = pytest.mark.usefixtures("folder")


@pytest.fixture
def stream_here(run_command):
    """Run the script in this process; returns exit code, standard output and standard error."""
    return partial(run_command, "stream")


def start(*words):
    """Start the script as a process."""
    return subprocess.Popen(
        [sys.executable, "-m", "streamingvlm", "stream", *words],
        env={**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        # Children of a background shell ignore SIGINT unless it is reset.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )


def start_and_wait_for(path, num_lines, *words):
    """Start the script and wait until the file has this many lines."""
    process = start(*words)
    deadline = time.monotonic() + 180
    while process.poll() is None and time.monotonic() < deadline:
        if path.exists() and path.read_text().count("\n") >= num_lines:
            return process
        time.sleep(0.01)
    process.kill()
    raise AssertionError(f"{path} never had {num_lines} lines: {process.communicate()[1][-2000:]}")


def assert_whole(stem):
    """Check that the three files are complete and have the same lines; return the rows of JSON."""
    header, *rows = [json.loads(row) for row in stem.with_suffix(".jsonl").read_text().split("\n")[:-1]]
    assert header["streamingvlm"]["model"] == "pitch"
    assert [row["start_s"] for row in rows] == list(range(len(rows)))
    spoken = [row for row in rows if row["text"]]
    cue = r"\d\d:\d\d:\d\d[.,]\d{3} --> \d\d:\d\d:\d\d[.,]\d{3}(?:  streamingvlm)?\n.+\n\n"
    vtt, srt = (stem.with_suffix(suffix).read_text() for suffix in (".vtt", ".srt"))
    assert re.fullmatch(rf"WEBVTT\n\nNOTE streamingvlm\n.+\n\n({cue})*", vtt)
    assert re.fullmatch(rf"(\d+\n{cue})*", srt)
    assert {abs(text.count(" --> ") - len(spoken)) for text in (vtt, srt)} <= {0, 1}
    return rows


def test_one_command_streams_the_embedded_match_and_writes_no_files(folder):
    process = start("duration_s=20")
    out, err = process.communicate(timeout=300)
    assert process.returncode == 0, err
    assert all(re.fullmatch(r"\[\d\d:\d\d\] .+", line) for line in out.splitlines())
    assert len(out.splitlines()) > 3
    assert "20 s of stream" in err
    assert "real time" in err
    assert list(folder.iterdir()) == []


def test_files_are_next_to_the_video_and_a_second_run_takes_the_next_number(folder, stream_here):
    shutil.copy(MATCH, folder / "match.mp4")
    for _ in range(2):
        code, _, err = stream_here("match.mp4", "duration_s=5", "sampling=greedy")
        assert code == 0, err
    assert {path.name for path in folder.iterdir()} == {
        f"match{number}{suffix}" for number in ("", ".2") for suffix in (".vtt", ".srt", ".jsonl")
    } | {"match.mp4"}
    assert len(assert_whole(folder / "match")) == 5
    assert (folder / "match.vtt").read_text() == (folder / "match.2.vtt").read_text()


@pytest.mark.parametrize("name", ["my match.mp4", "a=b.mp4", "one, two.mp4", "cache.mp4", "it's {1} [2].mp4"])
def test_any_file_name_is_a_plain_argument(name, folder, stream_here):
    shutil.copy(MATCH, folder / name)
    code, _, err = stream_here(name, "duration_s=2")
    assert code == 0, err
    assert (folder / name).with_suffix(".jsonl").read_text().count("\n") == 1 + 2


def test_options_reach_the_session(stream_here, folder, monkeypatch):
    shutil.copy(MATCH, folder / "match.mp4")
    opened = []
    open_session = stream_module.open_session
    monkeypatch.setattr(stream_module, "open_session", lambda *given: opened.append(open_session(*given)) or opened[0])
    words = ["cache=full", "cache.positions=native", "video.prefetch=3", "sampling=greedy", "output=none"]
    code, _, err = stream_here(
        "match.mp4", *words, "query=Who's on, then?", "previous_text=Reds = home", "duration_s=2"
    )
    assert code == 0, err
    session = opened[0]
    assert (session.cache_config.policy, session.cache_config.positions) == ("full", "native")
    assert (session.video_config.prefetch, session.sampling_config.temperature) == (3, 0)
    assert (session.query, session.previous_text) == ("Who's on, then?", "Reds = home")


@pytest.mark.parametrize("cache", ["streaming", "full", "window", "recompute", "reference"])
def test_every_cache_runs(cache, stream_here):
    code, _, err = stream_here(f"cache={cache}", "duration_s=3")
    assert code == 0, err


def test_a_folder_is_a_model(folder, stream_here):
    shutil.copytree(PITCH, folder / "my model, v=2", ignore=shutil.ignore_patterns("*.mp4"))
    code, _, err = stream_here("model=my model, v=2", "duration_s=2")
    assert code == 0, err


def test_ctrl_c_ends_with_whole_files_and_a_summary(folder):
    shutil.copy(MATCH, folder / "match.mp4")
    process = start_and_wait_for(folder / "match.jsonl", 4, "match.mp4")
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=120)
    assert process.returncode == 130
    assert "Traceback" not in err
    assert "real time" in err
    assert "match.vtt" in err
    assert len(assert_whole(folder / "match")) >= 3


def test_a_kill_leaves_whole_files(folder):
    shutil.copy(MATCH, folder / "match.mp4")
    process = start_and_wait_for(folder / "match.jsonl", 4, "match.mp4")
    process.kill()
    process.communicate(timeout=120)
    assert len(assert_whole(folder / "match")) >= 3


def test_a_closed_pipe_ends_the_run_quietly():
    process = start("duration_s=60")
    assert process.stdout.readline().startswith("[")
    process.stdout.close()
    err = process.stderr.read()
    assert process.wait(timeout=300) == 141
    assert "Traceback" not in err


def make_nothing(folder):
    return "no such file.mp4"


def make_empty(folder):
    (folder / "empty.mp4").touch()
    return "empty.mp4"


def make_text(folder):
    (folder / "text.mp4").write_text("This is no video, whatever its name says.\n" * 100)
    return "text.mp4"


def make_folder(folder):
    (folder / "folder.mp4").mkdir()
    return "folder.mp4"


def make_audio(folder):
    with av.open(str(folder / "audio.mp4"), "w") as container:
        track = container.add_stream("aac", rate=16000, layout="mono")
        frame = av.AudioFrame.from_ndarray(np.zeros((1, 16000), np.float32), format="fltp", layout="mono")
        frame.sample_rate = 16000
        container.mux(track.encode(frame) + track.encode(None))
    return "audio.mp4"


def make_truncated(folder):
    # An mp4 that ends before its index cannot be read at all.
    (folder / "truncated.mp4").write_bytes(MATCH.read_bytes()[:2000])
    return "truncated.mp4"


@pytest.mark.parametrize(
    "make",
    [make_nothing, make_empty, make_text, make_folder, make_audio, make_truncated],
    ids=lambda make: make.__name__,
)
def test_an_unreadable_video_is_named_in_one_line(make, folder, stream_here):
    name = make(folder)
    before = {path.name for path in folder.iterdir()}
    assert_one_line(*stream_here(name), name)
    assert {path.name for path in folder.iterdir()} == before


def make_no_weights(folder):
    shutil.copytree(PITCH, folder / "bare", ignore=shutil.ignore_patterns("*.safetensors", "*.mp4"))
    return "bare"


def make_another_architecture(folder):
    (folder / "bert").mkdir()
    (folder / "bert" / "config.json").write_text(json.dumps({"model_type": "bert", "architectures": ["BertModel"]}))
    return "bert"


def make_no_model(folder):
    (folder / "void").mkdir()
    return "void"


@pytest.mark.parametrize(
    "make", [make_no_weights, make_another_architecture, make_no_model], ids=lambda make: make.__name__
)
def test_an_unusable_model_is_named_in_one_line_and_leaves_no_files(make, folder, stream_here):
    name = make(folder)
    assert_one_line(*stream_here(f"model={name}", "output.path=notes"), name)
    assert list((folder / "notes").iterdir()) == []


@pytest.mark.parametrize(
    "word",
    [
        "cache.vision_window_s=0.5",
        "cache.turn_window_s=0",
        "video.fps=-1",
        "video.fps=fast",
        "sampling.temperature=-0.1",
        "cache.no_such_option=1",
        "no_such_option=1",
        "cache=no_such_cache",
        "output.formats=[ass]",
    ],
)
def test_a_wrong_option_is_named_in_one_line(word, stream_here):
    assert_one_line(*stream_here(word, "output.path=notes"), word.partition("=")[0])


def test_an_unwritable_folder_is_named_before_the_model_loads(folder, stream_here, monkeypatch):
    (folder / "file").touch()
    monkeypatch.setattr(stream_module, "load_model", lambda *_, **__: pytest.fail("the model was loaded"))
    assert_one_line(*stream_here("output.path=file/below"), "file")


def assert_one_line(code, out, err, name):
    assert code == 2, err
    assert out == ""
    assert err.count("\n") == 1, err
    assert err.startswith("streamingvlm stream: ")
    assert name in err


def lines_of(out):
    return [line for line in out.splitlines() if line.startswith("[")]


def test_a_stopped_stream_resumes_where_it_was(stream_here, folder):
    words = ["sampling.temperature=1", "output=none"]
    code, whole, err = stream_here("duration_s=6", *words)
    assert code == 0, err
    code, first, err = stream_here("duration_s=3", "autosave=kept", "resume=true", *words)
    assert code == 0, err
    code, rest, err = stream_here("duration_s=6", "autosave=kept", "resume=true", *words)
    assert code == 0, err
    assert lines_of(first) + lines_of(rest) == lines_of(whole)
    code, nothing, err = stream_here("duration_s=6", "autosave=kept", "resume=true", *words)
    assert (code, lines_of(nothing)) == (0, []), "it had come to its end"


def test_a_snapshot_is_neither_overwritten_nor_contradicted(stream_here, folder):
    code, _, err = stream_here("duration_s=2", "autosave=kept")
    assert code == 0, err
    assert_one_line(*stream_here("duration_s=4", "autosave=kept"), "resume=true")
    assert_one_line(*stream_here("duration_s=4", "autosave=kept", "resume=true", "cache=full"), "cache.policy")
    assert_one_line(*stream_here("duration_s=4", "resume=true"), "autosave")
    (folder / "kept" / "snapshot.json").write_text("{")
    assert_one_line(*stream_here("duration_s=4", "autosave=kept", "resume=true"), "kept")


def test_an_alert_is_silent_and_reports_unanswered_turns(stream_here, folder):
    code, out, err = stream_here("duration_s=3", "alert=a goal is scored, by anyone", "output.path=notes.jsonl")
    assert code == 0, err
    assert out == ""
    assert "the model answered neither yes nor no in 3 of 3 turns" in err
    rows = [json.loads(row) for row in (folder / "notes.jsonl").read_text().splitlines()[1:]]
    assert [row["text"] for row in rows] == ["", "", ""]
    assert all(row["yes"] + row["no"] < 0.5 for row in rows)


def rows_of(path):
    """The rows of a JSON lines file, without the times that a run took."""
    return [{k: v for k, v in json.loads(row).items() if k != "latency_s"} for row in path.read_text().splitlines()]


def test_a_killed_stream_continues_its_files_with_each_line_once(folder):
    shutil.copy(MATCH, folder / "match.mp4")
    words = ["match.mp4", "start_s=2", "duration_s=14", "sampling.temperature=1", "output=video"]
    whole, parts = folder / "whole", folder / "parts"
    process = start(*words, "output.path=whole")
    assert process.wait(timeout=300) == 0, process.communicate()
    words += ["output.path=parts", "autosave=kept", "resume=true", "output.overwrite=true"]
    for num_lines in (4, 9):
        process = start_and_wait_for(parts / "match.jsonl", num_lines, *words)
        process.kill()
        process.communicate(timeout=120)
        with av.open(str(parts / "match.captioned.mp4")) as container:
            assert sum(1 for _ in container.decode(video=0)) >= 24 * (num_lines - 2)
    for _ in range(2):
        process = start(*words)
        out, err = process.communicate(timeout=300)
        assert process.returncode == 0, err
    assert (out, err) == ("", "'match.mp4' is finished: it was streamed to 16 s\n")
    assert {path.name for path in parts.iterdir()} == {path.name for path in whole.iterdir()}
    for suffix in (".vtt", ".srt", ".captioned.mp4"):
        assert (parts / f"match{suffix}").read_bytes() == (whole / f"match{suffix}").read_bytes()
    assert rows_of(parts / "match.jsonl") == rows_of(whole / "match.jsonl")
    assert [row["start_s"] for row in rows_of(parts / "match.jsonl")[1:]] == list(range(2, 16))


def test_every_video_of_a_folder_has_its_own_files_and_a_fresh_stream(folder, stream_here):
    (folder / "videos").mkdir()
    for name in ("a.mp4", "b.mp4", "a.captioned.mp4"):
        shutil.copy(MATCH, folder / "videos" / name)
    code, _, err = stream_here("videos", "duration_s=3", "start_s=1", "output.path=notes", "fps=2", "device=cpu")
    assert code == 0, err
    assert {path.name for path in (folder / "notes").iterdir()} == {
        f"{stem}{suffix}" for stem in "ab" for suffix in (".vtt", ".srt", ".jsonl")
    }
    (header, *rows), (_, *others) = (rows_of(folder / "notes" / f"{stem}.jsonl") for stem in "ab")
    assert rows == others
    assert [row["start_s"] for row in rows] == [1.0, 2.0, 3.0]
    settings = header["streamingvlm"]["settings"]
    assert (settings["device"], settings["dtype"], settings["video"]["fps"]) == ("cpu", "float32", 2)


@pytest.mark.parametrize(
    ("words", "named"),
    [
        (["match.mp4", "match.mp4", "output.path=notes.vtt"], "output.path=notes.vtt is one file"),
        (["match.mp4", "webcam"], "webcam is live"),
        (["match.mp4", "match.mp4", "autosave=kept"], "autosave=kept"),
        (["match.mp4", "match.mp4", "output.overwrite=true"], "output.overwrite=true"),
        (["webcam", "start_s=3"], "start_s=3"),
        (["webcam", "output=video"], "webcam is live"),
        (["match.mp4", "start_s=1000"], "ends before start_s = 1000"),
        (["match.mp4", "output=video", "output.captions=sung"], "output.captions=sung"),
    ],
)
def test_what_cannot_be_is_refused_before_the_model_loads(words, named, folder, stream_here, monkeypatch):
    shutil.copy(MATCH, folder / "match.mp4")
    monkeypatch.setattr(stream_module, "load_model", lambda *_, **__: pytest.fail("the model was loaded"))
    assert_one_line(*stream_here(*words), named)
    assert [path.name for path in folder.iterdir()] == ["match.mp4"]


def test_only_what_is_no_match_is_warned_of(folder, stream_here):
    with av.open(str(folder / "street.mp4"), "w") as container:
        track = container.add_stream("libx264", rate=4)
        track.width, track.height, track.pix_fmt = 64, 64, "yuv420p"
        for _ in range(8):
            container.mux(track.encode(av.VideoFrame.from_ndarray(np.full((64, 64, 3), 120, np.uint8))))
        container.mux(track.encode())
    for source, is_warned in (("street.mp4", True), (str(MATCH), False)):
        code, _, err = stream_here(source, "duration_s=1", "output=none")
        assert code == 0, err
        assert ("knows the synthetic match alone" in err) == is_warned
        assert err.startswith("model pitch (4.3 M parameters) on cpu, float32\n")
