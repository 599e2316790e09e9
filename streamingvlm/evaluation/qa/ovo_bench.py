"""OVO-Bench: questions about the past, the present and the progress of a running video.

Reads the published list of questions (ovo_bench_new.json, Li et al., arXiv 2501.05510). A clip begins with its file and
ends when the question is asked; forward tasks repeat a question as the video goes on.
"""

from collections.abc import Callable, Collection, Iterator, Mapping
from pathlib import Path
from typing import Any

from streamingvlm.data.sources import resolve_inside
from streamingvlm.errors import ConfigError, DataError
from streamingvlm.evaluation.candidates.video_clip import Clip
from streamingvlm.evaluation.qa.questions import Count, Item, MultipleChoice, YesNo, published_list

CATEGORIES = {
    "backward tracing": ("EPM", "ASI", "HLD"),
    "real-time visual perception": ("OCR", "ACR", "ATR", "STU", "FPD", "OJR"),
    "forward active responding": ("REC", "SSR", "CRR"),
}
_CATEGORY = {task: category for category, tasks in CATEGORIES.items() for task in tasks}


def read_ovo_bench(
    path: Path, video_root: Path, *, tasks: Collection[str] | None = None, num_entries: int | None = None
) -> list[Item]:
    """Read the questions in order.

    video_root: the folder that the paths in the list are relative to. tasks: a selection, None for all twelve.
    num_entries: at most this many entries of each task, the first ones.

    Raises ConfigError for an unknown task, DataError for a file of another layout.
    """
    if unknown := sorted(set(tasks or ()) - set(_CATEGORY)):
        raise ConfigError(f"tasks: {unknown[0]} is unknown; choose from {', '.join(_CATEGORY)}")
    num_taken: dict[str, int] = {}
    items = []
    for number, entry in enumerate(published_list(path, "ovo_bench_new.json")):
        where = f"{path}: entry {number}"
        task = _task(entry, where)
        if (tasks and task not in tasks) or num_taken.get(task, 0) == num_entries:
            continue
        num_taken[task] = num_taken.get(task, 0) + 1
        items += _items(entry, task, video_root, where)
    if not items:
        raise DataError(f"{path} has no question of these tasks; give ovo_bench_new.json")
    if len({item.name for item in items}) < len(items):
        raise DataError(f"{path} has an id twice; give ovo_bench_new.json as it was published")
    return items


def _task(entry: Any, where: str) -> str:
    task = entry.get("task") if isinstance(entry, dict) else None
    if task not in _CATEGORY:
        raise DataError(f"{where} is of task {task!r}; expected one of {', '.join(_CATEGORY)}")
    return task


def _items(entry: Mapping[str, Any], task: str, video_root: Path, where: str) -> list[Item]:
    expected, make = _FORWARD.get(task, ("realtime, question, options and gt", _multiple_choice))
    try:
        video = resolve_inside(video_root, entry["video"])
        return [
            Item(f"{entry['id']}{suffix}", task, _CATEGORY[task], Clip(video, 0.0, float(asked_s)), question, truth)
            for suffix, asked_s, question, truth in make(entry)
        ]
    except (KeyError, IndexError, TypeError, ValueError, AttributeError) as error:
        raise DataError(f"{where} is no question of {task}; expected id, video, {expected}") from error


_Questions = Iterator[tuple[str, float, MultipleChoice | YesNo | Count, str]]


def _multiple_choice(entry: Mapping[str, Any]) -> _Questions:
    options = tuple(map(str, entry["options"]))
    if not 0 <= entry["gt"] < len(options):
        raise IndexError(entry["gt"])
    yield "", entry["realtime"], MultipleChoice(entry["question"].strip(), options), "ABCDEFGHIJ"[entry["gt"]]


def _repetitions(entry: Mapping[str, Any]) -> _Questions:
    text = (
        f"People in this video may do one thing several times. What they do: {entry['activity']}. "
        "How many times has it been done in all up to now, by whomever? Count whole repetitions."
    )
    for number, probe in enumerate(entry["test_info"]):
        yield f":{number}", probe["realtime"], Count(text), str(int(probe["count"]))


def _steps(entry: Mapping[str, Any]) -> _Questions:
    for number, probe in enumerate(entry["test_info"]):
        text = (
            "This video shows how something is done, step by step. Is the person carrying out this step right now: "
            f"{probe['step'].strip()}?"
        )
        yield f":{number}", probe["realtime"], YesNo(text), _yes_no(probe["type"])


def _clues(entry: Mapping[str, Any]) -> _Questions:
    text = (
        f"Here is a question about the newest part of this video: {entry['question'].strip()} "
        "Has the video shown enough up to now for it to be answered?"
    )
    for number, probe in enumerate(entry["test_info"]):
        yield f":{number}", probe["realtime"], YesNo(text), _yes_no(probe["type"])


def _yes_no(kind: Any) -> str:
    return ("no", "yes")[kind]


_FORWARD: dict[str, tuple[str, Callable[[Mapping[str, Any]], _Questions]]] = {
    "REC": ("activity and test_info of realtime and count", _repetitions),
    "SSR": ("test_info of realtime, step and type", _steps),
    "CRR": ("question and test_info of realtime and type", _clues),
}
