"""The command: its output, the files it writes, and one line for each mistake."""

import json
import os
import subprocess
import sys
from functools import partial
from pathlib import Path

import pytest
from chat_server import ChatServer
from published_layouts import steady_words, whisperx, write_video

from streamingvlm.data.prepared import PreparedData

ROOT = Path(__file__).parents[2]


@pytest.fixture(autouse=True)
def folder(tmp_path, monkeypatch):
    """A working folder with a video and its transcript."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "videos").mkdir()
    write_video(tmp_path / "videos" / "a.mp4", 30)
    (tmp_path / "videos" / "a.json").write_text(json.dumps(whisperx(steady_words(30))))
    return tmp_path


@pytest.fixture
def prepare_here(run_command):
    """Run the verb in this process; returns exit code, standard output and standard error."""
    return partial(run_command, "prepare")


def test_the_command_writes_a_folder_and_prints_a_summary(folder):
    result = subprocess.run(
        [sys.executable, "-m", "streamingvlm", "prepare", "videos"],
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
    )
    assert result.returncode == 0, result.stderr
    assert result.stdout.startswith("1 recordings, 0.01 h: 2 chunks to train on, 0 held out")
    assert PreparedData.open("prepared", cache_folder=folder / "cache").recordings["id"] == ["a.mp4"]
    assert sorted(os.listdir(folder)) == ["cache", "prepared", "videos"]


def test_options_reach_the_library(folder, prepare_here):
    code, *_ = prepare_here("videos", "target=my data", "selection=annealing", "query=Who's on?", "held_out_fraction=1")
    assert code == 0
    data = PreparedData.open("my data", cache_folder=folder / "cache")
    assert data.recordings["query"] == ["Who's on?"]
    assert data.chunks["split"] == ["held_out"]
    assert data.manifest["settings"]["selection"]["kind"] == "annealing"


@pytest.mark.parametrize(
    "words, said",
    [
        ([], "no source is given"),
        (["nowhere"], "nowhere does not exist"),
        (["videos", "target=videos"], "videos is not empty"),
        (["videos", "selection.chunk_turns=3"], "share 12"),
        (["videos", "selection=dense"], "choose one of annealing, training"),
        (["videos", "min_vido_s=3"], "did you mean min_video_s?"),
        (["videos", "cleaning.enabled=true"], "endpoint.model is empty"),
        (["videos", "cleaning.enabled=true", "endpoint.model=m", "endpoint.api_key_env=NO_KEY"], "NO_KEY is not set"),
    ],
)
def test_mistakes_are_reported_in_one_line(prepare_here, words, said):
    code, _, error = prepare_here(*words)
    assert code == 2
    assert error.count("\n") == 1
    assert said in error


CLEANING = ["videos", "cleaning.enabled=true", "endpoint.model=m", "endpoint.api_key_env=null"]


def test_an_estimate_alone_requests_and_writes_nothing(folder, prepare_here):
    with ChatServer(lambda *_: 500) as server:
        code, _, error = prepare_here(*CLEANING, f"endpoint.base_url={server.url}", "cleaning.estimate_only=true")
    assert code == 0
    assert "cleaning will ask 1 times" in error
    assert server.requests == []
    assert os.listdir(folder) == ["videos"]


@pytest.mark.parametrize("prices", [[], ["endpoint.usd_per_million_in=1e6", "endpoint.usd_per_million_out=1e6"]])
def test_a_cost_limit_stops_before_the_first_request(prepare_here, prices):
    with ChatServer(lambda *_: 500) as server:
        code, _, error = prepare_here(*CLEANING, f"endpoint.base_url={server.url}", "cleaning.max_cost_usd=1", *prices)
    assert code == 2
    assert "cleaning.max_cost_usd=1 is below the estimate" in error
    assert server.requests == []
