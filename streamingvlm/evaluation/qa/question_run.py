"""Questions answered by a candidate, each answer logged before the next question, so that a run can be resumed."""

import hashlib
import json
import logging
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

from streamingvlm.data.parallel import map_in_threads
from streamingvlm.errors import DataError, VideoError
from streamingvlm.evaluation.candidates.candidate import Candidate
from streamingvlm.evaluation.qa.questions import AnsweredItem, Item

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class LoggedAnswer:
    """An answer and its origin; candidate and path are `Candidate.name` and `Candidate.path`."""

    answer: str
    candidate: str
    path: str


class AnswerLog:
    """Answers in a JSONL file, each synced to disk as it is appended.

    settings: everything that determines the answers, JSON. An answer is found only under the settings that made it.

    An incomplete last line, as after a kill, is truncated. Raises DataError for a file of another layout.
    """

    def __init__(self, path: str | Path, settings: Mapping[str, Any]):
        self.path = Path(path)
        self._settings = settings
        self._answers: dict[str, LoggedAnswer] = {}
        if self.path.exists():
            self._load()

    def find(self, item: Item) -> LoggedAnswer | None:
        """Return the answer to an item, None if there is none."""
        return self._answers.get(self._key(item))

    def append(self, item: Item, answer: LoggedAnswer):
        """Append an answer. Raises DataError where the disk refuses it."""
        key = self._key(item)
        line = {"key": key, "item": item.name, "task": item.task, "truth": item.truth, **asdict(answer)}
        data = json.dumps(line, ensure_ascii=False).encode("utf-8", errors="replace") + b"\n"
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            with self.path.open("ab") as file:
                file.write(data)
                file.flush()
                os.fsync(file.fileno())
        except OSError as error:
            raise DataError(f"{self.path} cannot store answers ({error.strerror}); free some space there") from error
        self._answers[key] = answer

    def _load(self):
        try:
            data = self.path.read_bytes()
            complete = data[: data.rfind(b"\n") + 1]
            if len(complete) < len(data):
                os.truncate(self.path, len(complete))
        except OSError as error:
            raise DataError(f"{self.path} cannot be read ({error.strerror}); check the path") from error
        for number, line in enumerate(complete.splitlines(), 1):
            self._answers.update([_logged_answer(line, f"{self.path}:{number}")])

    def _key(self, item: Item) -> str:
        # Without the path of the video, so that the folder of videos may move.
        clip = item.clip
        question = [item.name, clip.start_s, clip.end_s, clip.query, clip.previous_text, item.question.prompt]
        return hashlib.sha256(json.dumps([self._settings, *question], sort_keys=True).encode()).hexdigest()


def _logged_answer(line: bytes, where: str) -> tuple[str, LoggedAnswer]:
    try:
        document = json.loads(line)
        return document["key"], LoggedAnswer(*(str(document[field.name]) for field in fields(LoggedAnswer)))
    except (ValueError, KeyError, TypeError) as error:
        raise DataError(f"{where} is no line of an answer log; name another work_folder") from error


@dataclass(frozen=True)
class QuestionRun:
    """The outcome of a benchmark's questions.

    answered: in the order of the items; candidate, path: of the answers, "" without any; failures: an error message for
    each item without an answer, by its name.
    """

    answered: Sequence[AnsweredItem]
    candidate: str
    path: str
    failures: Mapping[str, str]


def answer_all(
    items: Sequence[Item],
    open_candidate: Callable[[], Candidate],
    answers: AnswerLog,
    *,
    on_answer: Callable[[AnsweredItem], None] = lambda answered: None,
) -> QuestionRun:
    """Answer every item that is not in the log.

    open_candidate: called once, and never if every answer is in the log. on_answer: called with each new answer.

    A video that is missing or cannot be read fails its own items only. Any other error ends the run; the log keeps the
    answers until then.
    """
    pending = [item for item in items if answers.find(item) is None]
    failures = {
        item.name: f"{item.clip.video}: no such file; check video_root"
        for item in pending
        if not item.clip.video.is_file()
    }
    pending = [item for item in pending if item.name not in failures]
    if pending:
        candidate = open_candidate()
        for item, answer in _answers(pending, candidate):
            if isinstance(answer, VideoError):
                failures[item.name] = str(answer)
                log.warning("%s: %s", item.name, answer)
                continue
            answers.append(item, LoggedAnswer(answer, candidate.name, candidate.path))
            on_answer(AnsweredItem(item, answer))
    logged = {item: found for item in items if (found := answers.find(item))}
    newest = next(reversed(logged.values()), LoggedAnswer("", "", ""))
    answered = [AnsweredItem(item, found.answer) for item, found in logged.items()]
    return QuestionRun(answered, newest.candidate, newest.path, failures)


def _answers(items: Sequence[Item], candidate: Candidate) -> Iterator[tuple[Item, str | VideoError]]:
    def answer(item: Item) -> tuple[Item, str | VideoError]:
        try:
            return item, candidate.answer(item.clip, item.question.prompt)
        except VideoError as error:
            return item, error

    if candidate.num_parallel == 1:
        return map(answer, items)
    return map_in_threads(answer, items, candidate.num_parallel)
