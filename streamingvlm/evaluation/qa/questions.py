"""Questions about a video: how they are put, how an answer is read, and how many were right.

An answer that cannot be read is invalid: it counts as asked and not as right, and is never taken for an option.
"""

import json
import math
import re
import string
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import chain, starmap
from pathlib import Path
from typing import Any, Literal, Protocol

import numpy as np

from streamingvlm.errors import DataError
from streamingvlm.evaluation.candidates.candidates import Clip
from streamingvlm.evaluation.statistics import bootstrap_interval

_LEAD = re.compile(
    r"[\s*\"'“(\[]*(?:(?:the|my)\s+)?(?:(?:final|correct|right|best)\s+)?(?:answer|option|choice)\b(?:\s+is)?\s*:?\s*",
    re.IGNORECASE,
)
_REASON = r"(?:because|since|as)"
# A letter, or a yes, stands for an answer only where no ordinary word follows: "A man" is no A, "No idea" is no No.
_ENDS = rf"\b(?![-'’])(?:(?![^\S\n]+\w)|(?=\s+{_REASON}\b))"
_LETTER = re.compile(rf"[\s*\"'“(\[]*([A-Za-z]){_ENDS}")
_ANOTHER_LETTER = re.compile(r"[\s*\"'”)\].]*(?:,|/|&|\band\b|\bor\b)\s*[*\"'“(\[]*[A-Za-z]\b(?!['’])")
_YES_NO = re.compile(rf"[\s*\"'“(\[]*(yes|no|y|n)(?:{_ENDS}|\b(?=\s+(?:he|it|she|the|there|they|this|that)\b))", re.I)
_NUMBER = re.compile(r"\d+(?:\.\d+)?")
_NUMBER_WORDS = {
    word: number
    for number, word in enumerate(
        ["zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten", "eleven", "twelve"],
    )
}


def published_list(path: Path, published_name: str) -> list[Any]:
    """Read a published file that is one JSON list of questions. Raises DataError, which names what to download."""
    try:
        entries = json.loads(path.read_text("utf-8"))
    except OSError as error:
        raise DataError(f"{path} cannot be read ({error.strerror}); check the path") from error
    except (ValueError, RecursionError) as error:
        raise DataError(f"{path} is not JSON; download {published_name} again") from error
    if not isinstance(entries, list):
        raise DataError(f"{path} holds no list of questions; give {published_name}")
    return entries


class Question(Protocol):
    """What is asked, and how its answer is read."""

    @property
    def prompt(self) -> str:
        """The words that join the last second of the video."""

    def read(self, answer: str) -> str | None:
        """The answer in the form in which the truth is given; None where it cannot be read."""


@dataclass(frozen=True)
class MultipleChoice:
    """A question with options; the truth is a letter, from A."""

    text: str
    options: tuple[str, ...]

    @property
    def prompt(self) -> str:
        """The question, the options under their letters, and in what form to answer."""
        lines = [f"{letter}. {option}" for letter, option in zip(string.ascii_uppercase, self.options, strict=False)]
        return "\n".join([self.text, *lines, "Answer with the letter of the right option alone."])

    def read(self, answer: str) -> str | None:
        """The letter that the answer begins with or names as its choice, or that of the option which it repeats."""
        body = _LEAD.sub("", answer, count=1) if _LEAD.match(answer) else answer
        body = _LEAD.sub("", body, count=1) if _LEAD.match(body) else body  # "The answer is option B"
        if letter := _LETTER.match(body):
            named = letter[1].upper()
            is_one = not _ANOTHER_LETTER.match(body, letter.end())
            return named if is_one and named in string.ascii_uppercase[: len(self.options)] else None
        same = [index for index, option in enumerate(self.options) if _plain(option) == _plain(body) != ""]
        return string.ascii_uppercase[same[0]] if len(same) == 1 else None


@dataclass(frozen=True)
class YesNo:
    """A question to be answered with yes or no; the truth is one of these words."""

    text: str

    @property
    def prompt(self) -> str:
        """The question, and in what form to answer."""
        return f"{self.text}\nAnswer with Yes or No alone."

    def read(self, answer: str) -> str | None:
        """``yes`` or ``no``, by the word that the answer begins with."""
        match = _YES_NO.match(_LEAD.sub("", answer, count=1) if _LEAD.match(answer) else answer)
        if not match or re.match(r"\W*(?:and|or|/)\W*(?:yes|no)\b", answer[match.end() :], re.IGNORECASE):
            return None
        return "yes" if match[1].lower().startswith("y") else "no"


@dataclass(frozen=True)
class Count:
    """A question to be answered with a number; the truth is a whole number in digits."""

    text: str

    @property
    def prompt(self) -> str:
        """The question, and in what form to answer."""
        return f"{self.text}\nAnswer with one whole number alone."

    def read(self, answer: str) -> str | None:
        """The one number that the answer holds, in digits or as a word up to twelve."""
        numbers = set(_NUMBER.findall(answer))
        numbers |= {str(_NUMBER_WORDS[word]) for word in re.findall(r"[a-z]+", answer.lower()) if word in _NUMBER_WORDS}
        number = numbers.pop() if len(numbers) == 1 else ""
        return str(int(number)) if number.isdigit() else None


def _plain(text: str) -> str:
    return " ".join(text.casefold().split()).strip(string.punctuation + "“”’ ")


@dataclass(frozen=True)
class Item:
    """A question of a benchmark.

    name: unique in the benchmark; task, category: as its tables call them; clip: ends when the question is asked;
    truth: the right answer, in the form that the question reads.
    """

    name: str
    task: str
    category: str
    clip: Clip
    question: Question
    truth: str


@dataclass(frozen=True)
class Answered:
    """An item and what was answered; ``read`` is None for an answer that cannot be read."""

    item: Item
    answer: str

    @property
    def read(self) -> str | None:
        """The answer in the form of the truth; None where it cannot be read."""
        return self.item.question.read(self.answer)

    @property
    def is_right(self) -> bool:
        """Whether it was read as the truth."""
        return self.read == self.item.truth


@dataclass(frozen=True)
class Accuracy:
    """How many questions were answered rightly.

    share: of all that were asked, invalid answers among them, or a mean of such shares; low, high: its 95 % interval
    by the bootstrap over videos, NaN where there are fewer than two.
    """

    name: str
    num_asked: int
    num_invalid: int
    share: float
    low: float
    high: float

    def __str__(self) -> str:
        interval = "" if math.isnan(self.low) else f"  [{100 * self.low:.1f}, {100 * self.high:.1f}]"
        invalid = f", {self.num_invalid} invalid" if self.num_invalid else ""
        return f"{self.name:<28} {100 * self.share:6.2f} %{interval}  of {self.num_asked}{invalid}"


@dataclass(frozen=True)
class QuestionResult:
    """A table of accuracies by task and category.

    candidate, path: who answered, and how; tasks: by category; categories, overall: averages.
    rule: what an average is taken over.
    """

    benchmark: str
    candidate: str
    path: str
    rule: str
    tasks: Mapping[str, Sequence[Accuracy]]
    categories: Sequence[Accuracy]
    overall: Accuracy

    def __str__(self) -> str:
        lines = [f"{self.benchmark}: {self.candidate}" + ("" if self.path in self.candidate else f" ({self.path})")]
        for category in self.categories:
            lines += [f"  {task}" for task in self.tasks[category.name]] + [str(category)]
        return "\n".join([*lines, str(self.overall), f"{self.overall.name} is {self.rule}"])

    def as_document(self) -> dict[str, Any]:
        """The table as JSON; an interval that is not known is null."""
        return {
            "benchmark": self.benchmark,
            "candidate": self.candidate,
            "path": self.path,
            "rule": self.rule,
            "tasks": {category: [_row(task) for task in tasks] for category, tasks in self.tasks.items()},
            "categories": [_row(category) for category in self.categories],
            "overall": _row(self.overall),
        }


def _row(accuracy: Accuracy) -> dict[str, Any]:
    return {name: None if value != value else value for name, value in vars(accuracy).items()}


def _categories(answered: Sequence[Answered]) -> dict[str, dict[str, list[Answered]]]:
    """All that was answered, by category and task, in the order in which they come."""
    by_category: dict[str, dict[str, list[Answered]]] = {}
    for one in answered:
        by_category.setdefault(one.item.category, {}).setdefault(one.item.task, []).append(one)
    return by_category


def tabulate(
    benchmark: str,
    candidate: str,
    path: str,
    answered: Sequence[Answered],
    *,
    average_over: Literal["categories", "questions"],
    num_resamples: int = 2000,
) -> QuestionResult:
    """Make the table of at least one answer.

    average_over: ``categories``: a category's figure is the mean over its tasks, the overall one the mean over
        categories, as OVO-Bench has it; ``questions``: each is the share of all its questions, as in StreamingBench.
    """
    by_category = _categories(answered)
    accuracy = partial(_accuracy, average_over=average_over, num_resamples=num_resamples)
    names = ", ".join(by_category)
    unit = "the mean over the categories" if average_over == "categories" else "the share of all questions of"
    return QuestionResult(
        benchmark=benchmark,
        candidate=candidate,
        path=path,
        rule=f"{unit} {names}",
        tasks={name: list(starmap(accuracy, tasks.items())) for name, tasks in by_category.items()},
        categories=[accuracy(name, list(chain(*tasks.values()))) for name, tasks in by_category.items()],
        overall=accuracy("all", answered),
    )


def _accuracy(name: str, answered: Sequence[Answered], *, average_over: str, num_resamples: int) -> Accuracy:
    """The bootstrap draws rows of (category, task, whether right), so that a mean of means is one in every draw."""
    is_nested = average_over == "categories"
    categories = {one.item.category: number for number, one in enumerate(answered)}
    tasks = {one.item.task: number for number, one in enumerate(answered)}
    rows, by_video = [], {}
    for one in answered:
        row = (categories[one.item.category], tasks[one.item.task], one.is_right) if is_nested else (0, 0, one.is_right)
        rows.append(row)
        by_video.setdefault(str(one.item.clip.video), []).append(row)
    low, high = bootstrap_interval(by_video, mean_of_means, num_resamples=num_resamples)
    num_invalid = sum(one.read is None for one in answered)
    return Accuracy(name, len(rows), num_invalid, mean_of_means(np.array(rows, dtype=float)), low, high)


def mean_of_means(rows: np.ndarray) -> float:
    """The mean over categories of the mean over their tasks of the share of right answers.

    rows: [N, 3], a category's number, a task's, and 1 where the answer was right.
    """
    by_category = []
    for category in np.unique(rows[:, 0]):
        here = rows[rows[:, 0] == category]
        by_category.append(np.mean([here[here[:, 1] == task, 2].mean() for task in np.unique(here[:, 1])]))
    return float(np.mean(by_category))
