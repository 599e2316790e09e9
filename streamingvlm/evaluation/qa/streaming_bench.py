"""StreamingBench, real-time visual understanding: multiple choice at a moment of a video that runs.

Reads both published lists of questions (Lin et al., arXiv 2411.03628): questions_real.json of the repository and
Real_Time_Visual_Understanding.csv of the dataset. A clip ends at the question's time stamp.
"""

import ast
import csv
import re
from collections import Counter
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from streamingvlm.data.sources import resolve_inside
from streamingvlm.errors import DataError
from streamingvlm.evaluation.candidates.candidates import Clip
from streamingvlm.evaluation.qa.questions import Item, MultipleChoice, published_list

CATEGORY = "real-time visual understanding"
_LETTERS = "ABCD"


def read_streaming_bench(
    path: Path, video_root: Path, *, context_s: float | None = None, num_entries: int | None = None
) -> list[Item]:
    """Read the questions in their order.

    video_root: the folder of videos, as sample_N_real.mp4, sample_N.mp4 or sample_N/video.mp4.
    context_s: how much of the video before the question is shown, None for all of it; the published main table has 60.
    num_entries: the first so many questions.

    Raises DataError for a file of another layout.
    """
    items = []
    for where, name, video, row in _rows_of_csv(path) if path.suffix == ".csv" else _rows_of_json(path):
        if len(items) == num_entries:
            break
        items.append(_item(name, _find(video_root, video), row, context_s, where))
    if not items:
        raise DataError(f"{path} holds no question; give questions_real.json or Real_Time_Visual_Understanding.csv")
    if len({item.name for item in items}) < len(items):
        raise DataError(f"{path} has a question twice; give the list as it was published")
    return items


Row = tuple[str, str, str, Mapping[str, Any]]  # where, the question's name, its video, its fields


def _rows_of_json(path: Path) -> Iterator[Row]:
    num_asked: Counter[str] = Counter()
    for number, entry in enumerate(published_list(path, "questions_real.json")):
        where = f"{path}: entry {number}"
        try:
            video, questions = str(entry["video_path"]), list(entry["questions"])
        except (KeyError, TypeError) as error:
            raise DataError(f"{where} is no part of questions_real.json; expected video_path and questions") from error
        for question in questions:
            num_asked[video] += 1
            yield where, f"{Path(video).stem}:{num_asked[video]}", video, question


def _rows_of_csv(path: Path) -> Iterator[Row]:
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:
            for number, row in enumerate(csv.DictReader(file), 2):
                where = f"{path}: row {number}"
                match = re.search(r"_(sample_\d+)_", row.get("question_id") or "")
                if not match:
                    raise DataError(f"{where} has no question_id with a sample's number; give the published table")
                yield where, row["question_id"], f"{match[1]}.mp4", {**row, "options": _listed(row.get("options"))}
    except OSError as error:
        raise DataError(f"{path} cannot be read ({error.strerror}); check the path") from error
    except (UnicodeDecodeError, csv.Error) as error:
        raise DataError(f"{path} is damaged; download it again") from error


def _listed(text: str | None) -> Any:
    """The options, which the table has as a list in Python's notation; None where they cannot be read."""
    try:
        return ast.literal_eval(text or "")
    except (ValueError, SyntaxError, MemoryError, RecursionError):
        return None


def _item(name: str, video: Path, row: Mapping[str, Any], context_s: float | None, where: str) -> Item:
    try:
        asked_s = _seconds(row["time_stamp"])
        options, letter = _unlabelled(row["options"]), row["answer"].strip()
        if len(options) != len(_LETTERS) or letter not in tuple(_LETTERS):
            raise ValueError(letter)
        start_s = 0.0 if context_s is None else max(0.0, asked_s - context_s)
        question = MultipleChoice(row["question"].strip(), options)
        return Item(name, row["task_type"].strip(), CATEGORY, Clip(video, start_s, asked_s), question, letter)
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise DataError(
            f"{where} is no question; expected task_type, question, time_stamp, four options and an answer of A to D"
        ) from error


def _seconds(time_stamp: str) -> float:
    """Hours, minutes and seconds, or fewer of them from the right."""
    seconds = 0
    for part in time_stamp.strip().split(":"):
        seconds = 60 * seconds + int(part)
    return float(seconds)


def _unlabelled(options: list[str]) -> tuple[str, ...]:
    """The options without their letters, where all have them."""
    labels = [re.match(rf"\s*{letter}[.)]\s*", option) for letter, option in zip(_LETTERS, options, strict=False)]
    if all(labels):
        options = [label.string[label.end() :] for label in labels]
    return tuple(option.strip() for option in options)


def _find(video_root: Path, name: str) -> Path:
    """Where a video is, under any of the names that it is published with; as the list has it where it is nowhere."""
    named = resolve_inside(video_root, name)
    sample = re.match(r"sample_\d+", Path(name).name)
    others = [f"{sample[0]}_real.mp4", f"{sample[0]}.mp4", f"{sample[0]}/video.mp4"] if sample else []
    places = [named, *(video_root / other for other in others)]
    return next((place for place in places if place.is_file()), named)
