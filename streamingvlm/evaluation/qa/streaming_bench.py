"""StreamingBench, real-time visual understanding: multiple-choice questions at a time of a running video.

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
from streamingvlm.evaluation.candidates.video_clip import Clip
from streamingvlm.evaluation.qa.questions import Item, MultipleChoice, published_list

CATEGORY = "real-time visual understanding"
_LETTERS = "ABCD"


def read_streaming_bench(
    path: Path, video_root: Path, *, context_s: float | None = None, num_entries: int | None = None
) -> list[Item]:
    """Read the questions in order.

    video_root: the folder of videos: sample_N_real.mp4, sample_N.mp4 or sample_N/video.mp4.
    context_s: seconds of video before the question, None for all of it; the published main table uses 60.
    num_entries: at most this many questions, the first ones.

    Raises DataError for a file of another layout.
    """
    items = []
    for where, name, video, row in _rows_of_csv(path) if path.suffix == ".csv" else _rows_of_json(path):
        if len(items) == num_entries:
            break
        items.append(_item(name, _find(video_root, video), row, context_s, where))
    if not items:
        raise DataError(f"{path} has no question; give questions_real.json or Real_Time_Visual_Understanding.csv")
    if len({item.name for item in items}) < len(items):
        raise DataError(f"{path} has a question twice; give the list as it was published")
    return items


_Question = tuple[str, str, str, Mapping[str, Any]]  # where it stands, its name, its video, its fields


def _rows_of_json(path: Path) -> Iterator[_Question]:
    num_read: Counter[str] = Counter()
    for number, entry in enumerate(published_list(path, "questions_real.json")):
        where = f"{path}: entry {number}"
        try:
            video, questions = str(entry["video_path"]), list(entry["questions"])
        except (KeyError, TypeError) as error:
            raise DataError(f"{where} is no part of questions_real.json; expected video_path and questions") from error
        for question in questions:
            num_read[video] += 1
            yield where, f"{Path(video).stem}:{num_read[video]}", video, question


def _rows_of_csv(path: Path) -> Iterator[_Question]:
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:
            for number, row in enumerate(csv.DictReader(file), 2):
                where = f"{path}: row {number}"
                match = re.search(r"_(sample_\d+)_", row.get("question_id") or "")
                if not match:
                    raise DataError(f"{where} has no question_id with a sample's number; give the published table")
                yield where, row["question_id"], f"{match[1]}.mp4", {**row, "options": _parsed_list(row.get("options"))}
    except OSError as error:
        raise DataError(f"{path} cannot be read ({error.strerror}); check the path") from error
    except (UnicodeDecodeError, csv.Error) as error:
        raise DataError(f"{path} is damaged; download it again") from error


def _parsed_list(text: str | None) -> Any:
    """Parse the options, a list in Python's notation; None if they cannot be parsed."""
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
    """Parse H:M:S, M:S or S."""
    seconds = 0
    for part in time_stamp.strip().split(":"):
        seconds = 60 * seconds + int(part)
    return float(seconds)


def _unlabelled(options: list[str]) -> tuple[str, ...]:
    """Remove the letters of the options if all have one."""
    labels = [re.match(rf"\s*{letter}[.)]\s*", option) for letter, option in zip(_LETTERS, options, strict=False)]
    if all(labels):
        options = [label.string[label.end() :] for label in labels]
    return tuple(option.strip() for option in options)


def _find(video_root: Path, name: str) -> Path:
    """Return the file of a video under any of its published names, or the name in the list if there is no file."""
    named = resolve_inside(video_root, name)
    sample = re.match(r"sample_\d+", Path(name).name)
    others = [f"{sample[0]}_real.mp4", f"{sample[0]}.mp4", f"{sample[0]}/video.mp4"] if sample else []
    paths = [named, *(video_root / other for other in others)]
    return next((path for path in paths if path.is_file()), named)
