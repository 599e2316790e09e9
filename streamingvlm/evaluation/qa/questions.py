"""Questions about a video: prompts, parsing of answers, and accuracy.

An answer that cannot be parsed is invalid: it counts as a wrong answer and never as an option.
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
from streamingvlm.evaluation.candidates.video_clip import Clip
from streamingvlm.evaluation.statistics import bootstrap_interval

_LEAD = re.compile(
    r"[\s*\"'“(\[]*(?:(?:the|my)\s+)?(?:(?:final|correct|right|best)\s+)?(?:answer|option|choice)\b(?:\s+is)?\s*:?\s*",
    re.IGNORECASE,
)
_REASON = r"(?:because|since|as)"
# A letter or a yes is an answer only if no other word follows: "A man" is not A, and "No idea" is not No.
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
    """Read a published JSON list of questions. Raises DataError, which names the file to download."""
    try:
        entries = json.loads(path.read_text("utf-8"))
    except OSError as error:
        raise DataError(f"{path} cannot be read ({error.strerror}); check the path") from error
    except (ValueError, RecursionError) as error:
        raise DataError(f"{path} is not JSON; download {published_name} again") from error
    if not isinstance(entries, list):
        raise DataError(f"{path} has no list of questions; give {published_name}")
    return entries


class QuestionFormat(Protocol):
    """A question with the form of its answer."""

    @property
    def prompt(self) -> str:
        """The text that is asked in the last turn of the video."""

    def parse(self, answer: str) -> str | None:
        """Return the answer in the form of the truth, None if it cannot be parsed."""


@dataclass(frozen=True)
class MultipleChoice:
    """A question with options; the truth is a letter, from A."""

    text: str
    options: tuple[str, ...]

    @property
    def prompt(self) -> str:
        """The question, the options with their letters, and the form of the answer."""
        lines = [f"{letter}. {option}" for letter, option in zip(string.ascii_uppercase, self.options, strict=False)]
        return "\n".join([self.text, *lines, "Answer with the letter of the right option alone."])

    def parse(self, answer: str) -> str | None:
        """Return the letter that the answer begins with or names, or the letter of the option that it repeats."""
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
    """A yes-or-no question; the truth is ``yes`` or ``no``."""

    text: str

    @property
    def prompt(self) -> str:
        """The question and the form of the answer."""
        return f"{self.text}\nAnswer with Yes or No alone."

    def parse(self, answer: str) -> str | None:
        """Return ``yes`` or ``no``, the word that the answer begins with."""
        match = _YES_NO.match(_LEAD.sub("", answer, count=1) if _LEAD.match(answer) else answer)
        if not match or re.match(r"\W*(?:and|or|/)\W*(?:yes|no)\b", answer[match.end() :], re.IGNORECASE):
            return None
        return "yes" if match[1].lower().startswith("y") else "no"


@dataclass(frozen=True)
class Count:
    """A question about a number; the truth is an integer in digits."""

    text: str

    @property
    def prompt(self) -> str:
        """The question and the form of the answer."""
        return f"{self.text}\nAnswer with one whole number alone."

    def parse(self, answer: str) -> str | None:
        """Return the only number in the answer, in digits or as a word up to twelve."""
        numbers = set(_NUMBER.findall(answer))
        numbers |= {str(_NUMBER_WORDS[word]) for word in re.findall(r"[a-z]+", answer.lower()) if word in _NUMBER_WORDS}
        number = numbers.pop() if len(numbers) == 1 else ""
        return str(int(number)) if number.isdigit() else None


def _plain(text: str) -> str:
    return " ".join(text.casefold().split()).strip(string.punctuation + "“”’ ")


@dataclass(frozen=True)
class Item:
    """A question of a benchmark.

    name: unique in the benchmark; task, category: as in its tables; clip: ends when the question is asked; truth: the
    correct answer, in the form that `QuestionFormat.parse` returns.
    """

    name: str
    task: str
    category: str
    clip: Clip
    question: QuestionFormat
    truth: str


@dataclass(frozen=True)
class AnsweredItem:
    """An item and its answer."""

    item: Item
    answer: str

    @property
    def parsed(self) -> str | None:
        """The answer in the form of the truth, None if it is invalid."""
        return self.item.question.parse(self.answer)

    @property
    def is_correct(self) -> bool:
        """Return True if the parsed answer is the truth."""
        return self.parsed == self.item.truth


@dataclass(frozen=True)
class Accuracy:
    """The accuracy on a set of questions.

    share: correct answers over all questions, those with an invalid answer included, or a mean of such shares; low,
    high: the 95 % interval of the bootstrap over videos, NaN for fewer than two videos.
    """

    name: str
    num_questions: int
    num_invalid: int
    share: float
    low: float
    high: float

    def __str__(self) -> str:
        interval = "" if math.isnan(self.low) else f"  [{100 * self.low:.1f}, {100 * self.high:.1f}]"
        invalid = f", {self.num_invalid} invalid" if self.num_invalid else ""
        return f"{self.name:<28} {100 * self.share:6.2f} %{interval}  of {self.num_questions}{invalid}"


@dataclass(frozen=True)
class AccuracyTable:
    """A table of accuracies by task and category.

    candidate, path: of the answers; tasks: by category; categories, overall: averages; rule: the set that an average is
    taken over.
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
        """Return the table as JSON; an unknown interval is null."""
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


def _categories(answered: Sequence[AnsweredItem]) -> dict[str, dict[str, list[AnsweredItem]]]:
    """Group answers by category and task, in order of appearance."""
    by_category: dict[str, dict[str, list[AnsweredItem]]] = {}
    for one in answered:
        by_category.setdefault(one.item.category, {}).setdefault(one.item.task, []).append(one)
    return by_category


def tabulate(
    benchmark: str,
    candidate: str,
    path: str,
    answered: Sequence[AnsweredItem],
    *,
    average_over: Literal["categories", "questions"],
    num_resamples: int = 2000,
) -> AccuracyTable:
    """Tabulate at least one answer.

    average_over: ``categories``: a category is the mean over its tasks, the overall figure the mean over categories, as
        in OVO-Bench; ``questions``: each is the share of all its questions, as in StreamingBench.
    """
    by_category = _categories(answered)
    accuracy = partial(_accuracy, average_over=average_over, num_resamples=num_resamples)
    names = ", ".join(by_category)
    unit = "the mean over the categories" if average_over == "categories" else "the share of all questions of"
    return AccuracyTable(
        benchmark=benchmark,
        candidate=candidate,
        path=path,
        rule=f"{unit} {names}",
        tasks={name: list(starmap(accuracy, tasks.items())) for name, tasks in by_category.items()},
        categories=[accuracy(name, list(chain(*tasks.values()))) for name, tasks in by_category.items()],
        overall=accuracy("all", answered),
    )


def _accuracy(name: str, answered: Sequence[AnsweredItem], *, average_over: str, num_resamples: int) -> Accuracy:
    """Bootstrap over rows of (category, task, is_correct), so that every draw yields a mean of means."""
    is_nested = average_over == "categories"
    categories = {one.item.category: number for number, one in enumerate(answered)}
    tasks = {one.item.task: number for number, one in enumerate(answered)}
    rows, by_video = [], {}
    for one in answered:
        row = (
            (categories[one.item.category], tasks[one.item.task], one.is_correct)
            if is_nested
            else (0, 0, one.is_correct)
        )
        rows.append(row)
        by_video.setdefault(str(one.item.clip.video), []).append(row)
    low, high = bootstrap_interval(by_video, mean_of_means, num_resamples=num_resamples)
    num_invalid = sum(one.parsed is None for one in answered)
    return Accuracy(name, len(rows), num_invalid, mean_of_means(np.array(rows, dtype=float)), low, high)


def mean_of_means(rows: np.ndarray) -> float:
    """Return the mean over categories of the mean over their tasks of the share of correct answers.

    rows: [N, 3], the index of the category, the index of the task, and 1 for a correct answer.
    """
    by_category = []
    for category in np.unique(rows[:, 0]):
        of_category = rows[rows[:, 0] == category]
        tasks = np.unique(of_category[:, 1])
        by_category.append(np.mean([of_category[of_category[:, 1] == task, 2].mean() for task in tasks]))
    return float(np.mean(by_category))
