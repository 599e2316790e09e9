"""Each program in examples/ runs with the embedded model, and prints what it promises."""

import re
import runpy
from pathlib import Path

import pytest

from streamingvlm.pitch.renderer import write_mp4

EXAMPLES = Path(__file__).parents[1] / "examples"
LINE = r"\[\d\d:\d\d\] .*"


@pytest.fixture
def run_example(tmp_path, monkeypatch, capsys):
    """Run an example as a program in a folder of its own; returns the lines that it prints."""

    def run(name, *words):
        monkeypatch.chdir(tmp_path)
        monkeypatch.setattr("sys.argv", [f"{name}.py", *words])
        runpy.run_path(str(EXAMPLES / f"{name}.py"), run_name="__main__")
        return capsys.readouterr().out.splitlines()

    return run


def test_every_example_has_a_test():
    tested = {name.removeprefix("test_") for name in globals()}
    assert {file.stem for file in EXAMPLES.glob("*.py")} <= tested


def test_file(run_example, tmp_path):
    write_mp4(tmp_path / "match.mp4", 5, 6, size=112, fps=2)
    lines = run_example("file", "match.mp4")
    assert re.fullmatch(LINE, lines[0])
    assert any("6 s of stream" in line for line in lines)


def test_camera(run_example):
    lines = run_example("camera")
    assert lines
    assert all(re.fullmatch(rf"{LINE} \(\d+\.\d s ago\)", line) for line in lines)


def test_question(run_example):
    lines = run_example("question")
    answers = [number for number, line in enumerate(lines) if line.startswith("Who has the ball? ")]
    assert len(lines) == 8
    assert answers == [3, 7]


def test_many_streams(run_example):
    lines = run_example("many_streams")
    assert [line.partition(":")[0] for line in lines] == [f"stream {number}" for _ in range(3) for number in range(4)]


def test_fine_tune(run_example, tmp_path):
    *_, losses, one, two, three, four = run_example("fine_tune", "tuned")
    assert re.fullmatch(r"losses: \[\d+\.\d+, \d+\.\d+\]", losses)
    assert all(re.fullmatch(LINE, line) for line in (one, two, three, four))
    assert (tmp_path / "tuned" / "run" / "model" / "model.safetensors").is_file()
