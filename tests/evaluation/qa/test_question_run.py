"""Answers through the session and their log: no frame after the question is used, no question is asked twice."""

import json
import subprocess
import sys
import time
from dataclasses import replace
from itertools import islice
from pathlib import Path

import numpy as np
import pytest
import torch

from streamingvlm.config import VideoConfig
from streamingvlm.errors import ConfigError, DataError, VideoError
from streamingvlm.evaluation.candidates.last_frames import LastFrames
from streamingvlm.evaluation.candidates.session_candidate import SessionCandidate
from streamingvlm.evaluation.candidates.video_clip import Clip
from streamingvlm.evaluation.qa.question_run import AnswerLog, LoggedAnswer, answer_all
from streamingvlm.evaluation.qa.questions import Item, MultipleChoice
from streamingvlm.inference.session import StreamingSession
from streamingvlm.model.loading import load_model
from streamingvlm.pitch import Match, render
from streamingvlm.video.encoder import write_video

VIDEO = VideoConfig(min_pixels=1, max_pixels=56 * 56)
GREEDY = {"temperature": 0.0, "max_new_tokens": 5}
QUESTION = MultipleChoice("Who has the ball?", ("red", "blue"))
FRAME_SHADE = 12  # the k-th frame of the stairs is this many times k bright


def item(video: Path, number: int = 0, end_s: float = 2.0) -> Item:
    return Item(f"q{number}", "OCR", "real-time", Clip(video, 0.0, end_s), QUESTION, "A")


@pytest.fixture(scope="module")
def model(tiny_checkpoint):
    return load_model(tiny_checkpoint(), device="cpu")


@pytest.fixture(scope="module")
def match(tmp_path_factory):
    path = tmp_path_factory.mktemp("video") / "match.mp4"
    pictures = [picture for second in islice(Match(3).seconds(), 6) for picture in render(second, size=112)]
    write_video(path, [picture.permute(1, 2, 0).numpy() for picture in pictures], fps=2)
    return path


@pytest.fixture(scope="module")
def stairs(tmp_path_factory):
    """Ten seconds at 2 frames a second, each frame brighter than all before it: a frame tells its number."""
    path = tmp_path_factory.mktemp("video") / "stairs.mp4"
    write_video(path, [np.full((64, 64, 3), FRAME_SHADE * number, np.uint8) for number in range(20)], fps=2)
    return path


def numbers_of(frames: torch.Tensor) -> list[int]:
    return [round(float(frame.float().mean()) / FRAME_SHADE) for frame in frames]


@pytest.fixture
def watched(monkeypatch):
    """What sessions were shown: the start of each turn, the numbers of its frames, and its question."""
    seen = []

    original = StreamingSession.step

    def watch(session, second, *args, **kwargs):
        seen.append((second.start_s, numbers_of(second.frames), kwargs.get("question", "")))
        return original(session, second, *args, **kwargs)

    monkeypatch.setattr(StreamingSession, "step", watch)
    return seen


@pytest.mark.parametrize(
    ("end_s", "shown"),
    [
        (3.0, [[0, 1], [2, 3], [4, 5]]),
        (2.51, [[0, 1], [2, 3], [4, 5]]),
        (2.5, [[0, 1], [2, 3], [4, 4]]),
        (2.49, [[0, 1], [2, 3], [4, 4]]),
        (2.04, [[0, 1], [2, 3], [4, 4]]),
        (0.03, [[0, 0]]),
    ],
)
@pytest.mark.parametrize("before_question", ["silent", "comment"])
def test_no_frame_after_the_question_is_seen_and_the_newest_before_it_is(
    model, stairs, watched, end_s, shown, before_question
):
    candidate = SessionCandidate(model, video=VIDEO, sampling=GREEDY, before_question=before_question)
    candidate.answer(Clip(stairs, 0.0, end_s), "Who?")
    assert [frames for _, frames, _ in watched] == shown
    assert [question for _, _, question in watched] == [""] * (len(shown) - 1) + ["Who?"]


@pytest.mark.parametrize(
    ("end_s", "shown"), [(5.0, [[6, 7], [8, 9]]), (4.3, [[5, 6], [7, 8]]), (1.0, [[0, 1]]), (0.03, [[0, 0]])]
)
def test_the_last_frames_are_the_newest_before_the_question(model, stairs, watched, end_s, shown):
    candidate = LastFrames(model, num_frames=4, video=VIDEO, sampling=GREEDY)
    candidate.answer(Clip(stairs, 0.0, end_s), "Who?")
    assert [frames for _, frames, _ in watched] == shown
    assert candidate.path == "last 4 frames, no cache"


def test_the_last_frames_of_a_file_of_unknown_length_are_its_last(model, stairs, watched):
    LastFrames(model, num_frames=4, video=VIDEO, sampling=GREEDY).answer(Clip(stairs), "Who?")
    assert [frames for _, frames, _ in watched] == [[16, 17], [18, 19]]


def test_a_silent_session_generates_nothing_before_a_question_and_a_commenting_one_does(model, match, monkeypatch):
    texts = {}
    original = StreamingSession.step

    def step(session, second, **kwargs):
        if kwargs.get("question"):
            texts[session.is_silent_before] = session.model.tokenizer.decode(session.inspect().ids)
        return original(session, second, **kwargs)

    monkeypatch.setattr(StreamingSession, "step", step)
    for before_question in ("silent", "comment"):
        monkeypatch.setattr(StreamingSession, "is_silent_before", before_question == "silent", raising=False)
        candidate = SessionCandidate(model, video=VIDEO, sampling=GREEDY, before_question=before_question)
        assert isinstance(candidate.answer(Clip(match, 0.0, 3.0), "Who?"), str)
    assert texts[True].count("<|im_start|>assistant\n ...<|im_end|>") == 2
    assert texts[False].count("<|im_start|>assistant\n ...<|im_end|>") < 2


def test_an_answer_may_be_longer_than_a_turn_of_commentary(model, match, monkeypatch):
    said = []
    original = StreamingSession.step

    def step(session, *args, **kwargs):
        line = original(session, *args, **kwargs)
        said.extend([line] if kwargs.get("reply") is None else [])
        return line

    monkeypatch.setattr(StreamingSession, "step", step)
    candidate = SessionCandidate(model, video=VIDEO, sampling=GREEDY)
    for limit in (None, 30):
        candidate.answer(Clip(match, 0.0, 2.0), "Who?", max_new_tokens=limit)
    assert [line.num_tokens for line in said] == [5, 30]


def test_a_clip_without_a_frame_is_named(model, match):
    with pytest.raises(VideoError, match="has no frame"):
        SessionCandidate(model, video=VIDEO).answer(Clip(match, 0.0, 0.0), "Who?")


def test_what_it_does_before_a_question_must_be_known(model):
    with pytest.raises(ConfigError, match="silent, comment"):
        SessionCandidate(model, before_question="sleep")


class Fake:
    """Answers A, and counts."""

    name, path, num_parallel = "fake", "no path at all", 1

    def __init__(self):
        self.asked = []

    def answer(self, clip, question):
        self.asked.append((clip.video.name, clip.end_s))
        if clip.video.name == "broken.mp4":
            raise VideoError(f"{clip.video} cannot be decoded; copy it again")
        return "A"


def videos(folder: Path, *names: str) -> list[Path]:
    for name in names:
        (folder / name).write_bytes(b"x")
    return [folder / name for name in names]


@pytest.mark.parametrize("num_parallel", [1, 3])
def test_every_question_is_asked_once_however_often_the_run_is_repeated(tmp_path, num_parallel):
    items = [item(video, n) for n, video in enumerate(videos(tmp_path, "1.mp4", "2.mp4", "3.mp4"))]
    fake, told = Fake(), []
    fake.num_parallel = num_parallel
    for _ in range(2):
        run = answer_all(items, lambda: fake, AnswerLog(tmp_path / "book.jsonl", {}), on_answer=told.append)
        assert [one.answer for one in run.answered] == ["A"] * 3
        assert (run.candidate, run.path, run.failures) == ("fake", "no path at all", {})
    assert sorted(fake.asked) == [("1.mp4", 2.0), ("2.mp4", 2.0), ("3.mp4", 2.0)]
    assert len(told) == 3


def test_no_model_is_loaded_if_every_answer_is_logged(tmp_path):
    items = [item(videos(tmp_path, "1.mp4")[0])]
    answer_all(items, Fake, AnswerLog(tmp_path / "book.jsonl", {}))
    run = answer_all(items, lambda: pytest.fail("opened"), AnswerLog(tmp_path / "book.jsonl", {}))
    assert run.answered[0].is_correct


def test_missing_and_broken_videos_fail_alone_and_are_named(tmp_path):
    paths = [*videos(tmp_path, "1.mp4", "broken.mp4"), tmp_path / "absent.mp4", *videos(tmp_path, "4.mp4")]
    run = answer_all([item(video, n) for n, video in enumerate(paths)], Fake, AnswerLog(tmp_path / "book.jsonl", {}))
    assert [one.item.name for one in run.answered] == ["q0", "q3"]
    assert set(run.failures) == {"q1", "q2"}
    assert "absent.mp4: no such file" in run.failures["q2"]
    assert all("\n" not in line for line in run.failures.values())


def test_other_settings_another_time_or_other_words_are_other_questions(tmp_path):
    first = item(videos(tmp_path, "1.mp4")[0])
    answers = AnswerLog(tmp_path / "book.jsonl", {"model": "a"})
    answers.append(first, LoggedAnswer("A", "a", "x"))
    assert answers.find(first).answer == "A"
    assert answers.find(replace(first, clip=replace(first.clip, end_s=3.0))) is None
    assert answers.find(replace(first, question=MultipleChoice("What?", ("red", "blue")))) is None
    assert AnswerLog(tmp_path / "book.jsonl", {"model": "b"}).find(first) is None
    moved = replace(first, clip=replace(first.clip, video=tmp_path / "elsewhere" / "1.mp4"))
    assert answers.find(moved).answer == "A", "a folder of videos may move"


def test_an_incomplete_answer_is_asked_again_and_the_others_are_not(tmp_path):
    items = [item(video, n) for n, video in enumerate(videos(tmp_path, "1.mp4", "2.mp4"))]
    path = tmp_path / "book.jsonl"
    answer_all(items, Fake, AnswerLog(path, {}))
    whole = path.read_bytes()
    path.write_bytes(whole[:-9])
    fake = Fake()
    answer_all(items, lambda: fake, AnswerLog(path, {}))
    assert fake.asked == [("2.mp4", 2.0)]
    assert path.read_bytes() == whole


def test_an_empty_answer_is_logged_as_an_answer(tmp_path):
    first = item(videos(tmp_path, "1.mp4")[0])
    silent = Fake()
    silent.answer = lambda clip, question: ""
    run = answer_all([first], lambda: silent, AnswerLog(tmp_path / "book.jsonl", {}))
    assert run.answered[0].parsed is None
    answer_all([first], lambda: pytest.fail("asked again"), AnswerLog(tmp_path / "book.jsonl", {}))


@pytest.mark.parametrize("line", ["{}", "no json", '{"key": 1}', "[]"])
def test_a_file_that_is_no_book_is_refused_and_left_alone(tmp_path, line):
    path = tmp_path / "book.jsonl"
    path.write_text(line + "\n")
    with pytest.raises(DataError, match=r"book.jsonl:1 .*work_folder"):
        AnswerLog(path, {})
    assert path.read_text() == line + "\n"


def test_a_folder_that_takes_no_answers_is_named(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(DataError, match="cannot store answers"):
        AnswerLog(tmp_path / "file" / "book.jsonl", {}).append(item(tmp_path / "1.mp4"), LoggedAnswer("A", "a", "x"))


SLOW_RUN = """
import sys, time
from pathlib import Path
from streamingvlm.evaluation.qa.question_run import AnswerLog, answer_all
from streamingvlm.evaluation.candidates.video_clip import Clip
from streamingvlm.evaluation.qa.questions import Item, YesNo

class Slow:
    name, path, num_parallel = "slow", "a path", 1
    def answer(self, clip, question):
        with open(sys.argv[2], "a") as log:
            log.write(question.split()[0] + "\\n")
        time.sleep(float(sys.argv[3]))
        return "Yes"

video = Path(__file__)
items = [Item(str(n), "CRR", "forward", Clip(video, 0.0, 1.0), YesNo(f"{n} is?"), "yes") for n in range(6)]
run = answer_all(items, Slow, AnswerLog(sys.argv[1], {}))
print(len(run.answered))
"""


def test_a_killed_run_resumes(tmp_path):
    script = tmp_path / "run.py"
    script.write_text(SLOW_RUN)
    command = [sys.executable, str(script), str(tmp_path / "book.jsonl"), str(tmp_path / "log")]
    process = subprocess.Popen([*command, "0.3"], env={"PYTHONPATH": str(Path(__file__).parents[3])})
    book = tmp_path / "book.jsonl"
    deadline = time.monotonic() + 120
    while not book.exists() or len(book.read_bytes().splitlines()) < 2:
        assert time.monotonic() < deadline and process.poll() is None
        time.sleep(0.05)
    process.kill()
    process.wait()
    kept = [json.loads(line)["item"] for line in book.read_bytes().splitlines()]
    again = subprocess.run([*command, "0"], env={"PYTHONPATH": str(Path(__file__).parents[3])}, capture_output=True)
    assert again.stdout.strip() == b"6"
    asked = (tmp_path / "log").read_text().split()
    assert all(asked.count(name) == 1 for name in kept), "what was kept is not asked again"
    assert set(asked) == set("012345")
    # The question that was being answered when the run was killed is the only one to be asked again.
    assert len(asked) <= 7
