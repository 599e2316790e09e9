"""The wheel alone, outside the checkout: every verb runs in a virtual environment, with its configs and its page."""

import json
import os
import re
import subprocess
import sys
import sysconfig
import urllib.request
from importlib.util import find_spec
from pathlib import Path

import pytest
from prepared_pitch import write_prepared

ROOT = Path(__file__).parents[2]

TRAIN = [
    *("model=pitch", "device=cpu", "fit.num_epochs=null", "fit.num_steps=5", "fit.batch_size=1", "fit.num_workers=0"),
    *("fit.bf16=false", "fit.save_every_steps=0", "fit.evaluate_every_steps=0", "fit.log_every_steps=1"),
    *("folder=tuned", "lora=default"),
]
BENCH = ["parts=[modes]", "modes={streaming: {}}", "duration_s=3", "result_folder=results"]


@pytest.fixture(scope="module")
def program(tmp_path_factory):
    """The command of the installed wheel. The environment sees the packages of this one, but not the checkout."""
    folder = tmp_path_factory.mktemp("wheel")
    pip = [sys.executable, "-m", "pip", "--disable-pip-version-check"]
    build = ["wheel", "--no-deps", "-w", folder, *(["--no-build-isolation"] if find_spec("hatchling") else []), ROOT]
    subprocess.run([*pip, *build], check=True, capture_output=True)
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", folder / "venv"], check=True)
    (wheel,) = folder.glob("*.whl")
    installed = [*pip, "--python", folder / "venv", "install", "--no-deps", "--no-index", wheel]
    subprocess.run(installed, check=True, capture_output=True)
    (packages,) = (folder / "venv").glob("lib/python*/site-packages")
    (packages / "others.pth").write_text(f"{sysconfig.get_path('purelib')}\n")
    return folder / "venv" / "bin" / "streamingvlm"


@pytest.fixture
def call(program, tmp_path):
    """Run a verb in an empty folder and return its output."""
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"} | {"OMP_NUM_THREADS": "1"}

    def run(*words):
        result = subprocess.run(
            [program, *map(str, words)], cwd=tmp_path, env=environment, capture_output=True, text=True
        )
        assert result.returncode == 0, result.stderr[-3000:]
        return result.stdout

    return run


def test_info_names_the_installation(call, program):
    facts = call("info", "model=7b", "streams=20", "video.height=720", "model.dtype=bfloat16")
    assert re.search(rf"configs +{program.parents[1]}/lib/.*/streamingvlm/configs\n", facts)
    assert "20 streams" in facts


def test_it_streams_the_bundled_match_and_a_file(call, program, tmp_path):
    assert re.match(r"\[00:00\] .+", call("stream", "duration_s=3"))
    (match,) = program.parents[1].glob("lib/python*/site-packages/streamingvlm/assets/pitch/match.mp4")
    assert re.match(r"\[00:00\] .+", call("stream", match, "duration_s=3", "output.path=notes"))
    assert (tmp_path / "notes" / "match.vtt").read_text().startswith("WEBVTT")


def test_it_serves_its_page(program, tmp_path):
    with subprocess.Popen([program, "serve", "port=0"], cwd=tmp_path, stdout=subprocess.PIPE, text=True) as server:
        try:
            url = server.stdout.readline().split()[0]
            with urllib.request.urlopen(url) as page:
                assert b"<!doctype html>" in page.read().lower()
        finally:
            server.terminate()


def test_it_trains_and_merges(call, tmp_path):
    data = write_prepared(tmp_path / "data", num_matches=2, duration_s=12)
    call("train", data, *TRAIN)
    assert "wrote merged" in call("merge", "tuned/model", "target=merged")
    assert (tmp_path / "merged" / "model.safetensors").is_file()


def test_it_prepares_data(call, tmp_path):
    write_prepared(tmp_path / "data", num_matches=2, duration_s=12)
    (video,) = list((tmp_path / "data").rglob("*.mp4"))[:1]
    words = [{"word": word, "start": t / 2, "end": t / 2 + 0.4} for t, word in enumerate(["red"] * 24)]
    video.with_suffix(".json").write_text(json.dumps({"segments": [{"start": 0, "end": 12, "words": words}]}))
    call("prepare", video, "min_video_s=1", "chunk_turns=8", "overlap_turns=4")
    assert json.loads((tmp_path / "prepared" / "manifest.json").read_text())["version"] == 1


def test_it_evaluates_and_measures(call, tmp_path):
    assert "F1" in call("evaluate", "benchmark=pitch", "duration_s=60")
    call("bench", *BENCH)
    assert list((tmp_path / "results").glob("*.json"))
