"""Asking a candidate many questions, each answer kept as soon as it is there, so that nothing is asked twice."""

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
from streamingvlm.evaluation.candidates.candidates import Candidate
from streamingvlm.evaluation.qa.questions import Answered, Item

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Kept:
    """An answer and who gave it; candidate and path are the candidate's own name and way."""

    answer: str
    candidate: str
    path: str


class AnswerBook:
    """Answers in a file of JSON lines, each written through to the disk before the next question is asked.

    settings: all that decides what is answered, JSON; an answer is found again under the same settings alone. A last
    line that broke off, as after a kill, is cut away. Raises DataError for a file that is no such book.
    """

    def __init__(self, path: str | Path, settings: Mapping[str, Any]):
        self.path = Path(path)
        self._settings = settings
        self._answers: dict[str, Kept] = {}
        if self.path.exists():
            self._read_()

    def find(self, item: Item) -> Kept | None:
        """The answer to an item; None where none is kept."""
        return self._answers.get(self._key(item))

    def keep_(self, item: Item, kept: Kept):
        """Write an answer down. Raises DataError where the disk does not take it."""
        key = self._key(item)
        line = {"key": key, "item": item.name, "task": item.task, "truth": item.truth, **asdict(kept)}
        data = json.dumps(line, ensure_ascii=False).encode("utf-8", errors="replace") + b"\n"
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            with self.path.open("ab") as file:
                file.write(data)
                file.flush()
                os.fsync(file.fileno())
        except OSError as error:
            raise DataError(f"{self.path} cannot keep answers ({error.strerror}); make room there") from error
        self._answers[key] = kept

    def _read_(self):
        try:
            data = self.path.read_bytes()
            whole = data[: data.rfind(b"\n") + 1]
            if len(whole) < len(data):
                os.truncate(self.path, len(whole))
        except OSError as error:
            raise DataError(f"{self.path} cannot be read ({error.strerror}); check the path") from error
        for number, line in enumerate(whole.splitlines(), 1):
            self._answers.update([_kept(line, f"{self.path}:{number}")])

    def _key(self, item: Item) -> str:
        # The video by its name in the dataset: its folder may move.
        clip = item.clip
        asked = [item.name, clip.start_s, clip.end_s, clip.query, clip.previous_text, item.question.prompt]
        return hashlib.sha256(json.dumps([self._settings, *asked], sort_keys=True).encode()).hexdigest()


def _kept(line: bytes, where: str) -> tuple[str, Kept]:
    try:
        document = json.loads(line)
        return document["key"], Kept(*(str(document[field.name]) for field in fields(Kept)))
    except (ValueError, KeyError, TypeError) as error:
        raise DataError(f"{where} is no line of answers; name another work_folder") from error


@dataclass(frozen=True)
class Asked:
    """What came of a benchmark's questions.

    answered: in the order of the items; candidate, path: who answered, "" where nobody did; failures: a line for each
    item without an answer, by its name.
    """

    answered: Sequence[Answered]
    candidate: str
    path: str
    failures: Mapping[str, str]


def ask_all(
    items: Sequence[Item],
    open_candidate: Callable[[], Candidate],
    book: AnswerBook,
    *,
    on_answer: Callable[[Answered], None] = lambda answered: None,
) -> Asked:
    """Ask all that is not answered yet.

    open_candidate: called once, and not at all where every answer is kept. on_answer: called with each new answer.

    A video that is not there or cannot be watched fails its own items alone. Whatever else stops the run, what was
    answered is kept.
    """
    failures: dict[str, str] = {}
    todo = [item for item in items if book.find(item) is None]
    for item in todo:
        if not item.clip.video.is_file():
            failures[item.name] = f"{item.clip.video}: no such file; check video_root"
    todo = [item for item in todo if item.name not in failures]
    if todo:
        candidate = open_candidate()
        for item, answer in _answers(todo, candidate):
            if isinstance(answer, VideoError):
                failures[item.name] = str(answer)
                log.warning("%s: %s", item.name, answer)
                continue
            book.keep_(item, Kept(answer, candidate.name, candidate.path))
            on_answer(Answered(item, answer))
    kept = {item: found for item in items if (found := book.find(item))}
    newest = next(reversed(kept.values()), Kept("", "", ""))
    answered = [Answered(item, found.answer) for item, found in kept.items()]
    return Asked(answered, newest.candidate, newest.path, failures)


def _answers(items: Sequence[Item], candidate: Candidate) -> Iterator[tuple[Item, str | VideoError]]:
    def answer(item: Item) -> tuple[Item, str | VideoError]:
        try:
            return item, candidate.answer(item.clip, item.question.prompt)
        except VideoError as error:
            return item, error

    if candidate.num_parallel == 1:
        return map(answer, items)
    return map_in_threads(answer, items, candidate.num_parallel)
