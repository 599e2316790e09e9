"""The commands of the question benchmarks, on small matches in the published layouts, with the embedded model."""

import json
from functools import partial

import pytest
from chat_server import ChatServer
from published_layouts import ovo_bench_list, streaming_bench_list, write_lines

from streamingvlm.pitch import write_mp4

OVO_TASKS = ("EPM", "HLD", "OCR", "OJR", "CRR", "SSR", "REC")


@pytest.fixture(scope="module")
def published(tmp_path_factory):
    """Two short matches, as OVO-Bench and as StreamingBench would have them."""
    folder = tmp_path_factory.mktemp("published")
    for sub in ("clips", "videos"):
        (folder / sub).mkdir()
    write_mp4(folder / "clips" / "a.mp4", 11, 7, size=112, fps=4)
    write_mp4(folder / "clips" / "b.mp4", 12, 7, size=112, fps=4)
    write_mp4(folder / "videos" / "sample_1_real.mp4", 13, 7, size=112, fps=4)
    (folder / "ovo_bench_new.json").write_text(json.dumps(ovo_bench_list()))
    (folder / "questions_real.json").write_text(json.dumps(streaming_bench_list()))
    return folder


@pytest.fixture
def evaluate_here(run_command):
    """Run the script in this process; returns exit code, standard output and standard error."""
    return partial(run_command, "evaluate")


def kept(folder, benchmark):
    return [json.loads(line) for line in (folder / f"{benchmark}.work" / "answers.jsonl").read_text().splitlines()]


def test_ovo_bench_is_one_command(published, folder, evaluate_here):
    words = ["benchmark=ovo_bench", f"questions={published}/ovo_bench_new.json", "model.device=cpu"]
    code, out, _ = evaluate_here(*words, "result_path=result.json")
    assert code == 0
    assert out.splitlines()[0] == "ovo_bench: pitch (streaming cache)"
    assert all(any(line.split()[0] == task for line in out.splitlines()) for task in OVO_TASKS)
    assert "backward tracing, real-time visual perception, forward active responding" in out.splitlines()[-1]
    document = json.loads((folder / "result.json").read_text())
    assert document["path"] == "streaming cache"
    assert document["overall"]["num_questions"] == 10 == len(kept(folder, "ovo_bench"))
    assert document["options"]["candidate"]["cache"]["policy"] == "streaming"
    before = (folder / "ovo_bench.work" / "answers.jsonl").read_bytes()
    assert evaluate_here(*words)[1] == out, "nothing is asked twice and the table is the same"
    assert (folder / "ovo_bench.work" / "answers.jsonl").read_bytes() == before
    evaluate_here(*words, "cache.vision_window_s=4", "tasks=[EPM]")
    assert len(kept(folder, "ovo_bench")) == 11, "other settings are another answer"


def test_streaming_bench_is_one_command_and_states_the_path_of_its_answers(published, folder, evaluate_here):
    words = ["benchmark=streaming_bench", f"questions={published}/questions_real.json", "candidate=last_frames"]
    code, out, _ = evaluate_here(*words, "model.device=cpu", "context_s=2")
    assert code == 0
    assert "(last 4 frames, no cache)" in out.splitlines()[0]
    assert [line.split()[0] for line in out.splitlines()[1:3]] == ["Object", "Counting"]
    assert "the share of all questions of real-time visual understanding" in out
    assert len(kept(folder, "streaming_bench")) == 3


def test_a_vision_endpoint_is_asked_and_its_answers_are_scored(published, folder, evaluate_here):
    with ChatServer(lambda *_: "The answer is A.") as server:
        endpoint = {"model": "m", "base_url": server.url, "api_key_env": "null"}
        words = [f"candidate.endpoint.{name}={value}" for name, value in endpoint.items()]
        questions = f"questions={published}/questions_real.json"
        code, out, _ = evaluate_here("benchmark=streaming_bench", questions, "candidate=endpoint", *words)
    assert code == 0
    assert "(remote endpoint)" in out
    assert "33.33 %" in next(line for line in out.splitlines() if line.startswith("all "))


def test_missing_videos_are_named_and_the_others_count(published, folder, evaluate_here, tmp_path):
    entries = [*ovo_bench_list()[:2], {**ovo_bench_list()[0], "id": 5, "video": "clips/absent.mp4"}]
    questions = tmp_path / "some.json"
    questions.write_text(json.dumps(entries))
    words = ["benchmark=ovo_bench", f"questions={questions}", f"video_root={published}", "model.device=cpu"]
    code, out, err = evaluate_here(*words)
    assert code == 0
    assert "1 of 3 questions have no answer" in err and "clips/absent.mp4: no such file" in err
    assert len([line for line in err.splitlines() if line.strip()]) == 1
    assert "of 2" in next(line for line in out.splitlines() if line.startswith("all "))


@pytest.mark.parametrize("benchmark", ["ovo_bench", "streaming_bench"])
def test_invalid_options_are_reported_in_one_line(published, evaluate_here, tmp_path, benchmark):
    name = {"ovo_bench": "ovo_bench_new.json", "streaming_bench": "questions_real.json"}[benchmark]
    other = write_lines(tmp_path / "other.json", [{"a": 1}, {"b": 2}])
    for words, message in (
        ([], "questions is not given"),
        ([f"questions={tmp_path}/absent.json"], "is no file"),
        ([f"questions={other}"], "not JSON"),
        ([f"questions={published / name}", f"video_root={tmp_path}"], "no such file; check video_root"),
        ([f"questions={published / name}", "candidate=file"], "has commentary, no answers"),
        ([f"questions={published / name}", "candidate=offline_generate"], "no chat template"),
    ):
        code, out, err = evaluate_here(f"benchmark={benchmark}", *words)
        assert (code, out) == (2, ""), words
        assert message in err and len(err.strip().splitlines()) == 1, err
