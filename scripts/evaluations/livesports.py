"""LiveSports-3K-CC: have two candidates comment on events of sports, and judge them against what was said on air."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from llm_judge import Side, existing, judge_and_tell, open_judge, tell_cost

from streamingvlm.evaluation.llm_judge.generation import Assignment
from streamingvlm.evaluation.llm_judge.livesports import (
    INSTRUCTIONS,
    Event,
    comparisons,
    predictions,
    read_events,
    read_predictions,
    write_predictions,
)


def evaluate(options: dict[str, Any]):
    """Print the win rate of the candidate against the rival."""
    table = existing(options["events"], "events")
    root = Path(options["video_root"] or table.parent).absolute()
    events = read_events(table, root, num_events=options["num_events"])
    judge = open_judge(options, INSTRUCTIONS)
    sides = Side("candidate", options), Side("rival", options)
    tasks = [event.assignment(options["query"]) for event in events]
    for side in sides:
        side.tell_cost(tasks)
    expected = (said_before(side, events, tasks) for side in sides)
    tell_cost(judge, comparisons(events, *expected), options)
    said = [commentary(side, events, tasks) for side in sides]
    judge_and_tell(judge, list(comparisons(events, *said)), sides, options)


def said_before(side: Side, events: Sequence[Event], tasks: Sequence[Assignment]) -> dict[str, str]:
    """What is there of a side's commentary; true commentary stands in for what is not."""
    if side.file:
        return read_predictions(side.file, events)
    kept = {task.name: side.kept(task) for task in tasks}
    there = [event for event in events if kept[event.name]]
    return {event.name: event.reference for event in events} | predictions(there, kept)


def commentary(side: Side, events: Sequence[Event], tasks: Sequence[Assignment]) -> dict[str, str]:
    """All that a side says, by event; what is said now is written in the published shape, too."""
    if side.file:
        return read_predictions(side.file, events)
    texts = predictions(events, side.comment(tasks))
    write_predictions(side.merged_file, events, texts)
    return texts
