"""LiveSports-3K-CC: two candidates comment on sports events, and a judge compares them with the commentary on air."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from streamingvlm.cli.checks import existing_file
from streamingvlm.cli.llm_judge import Side, check_judge_cost, judge_and_report, open_judge
from streamingvlm.evaluation.llm_judge.generation import CommentaryTask
from streamingvlm.evaluation.llm_judge.livesports import (
    INSTRUCTIONS,
    SportsEvent,
    comparisons,
    predictions,
    read_events,
    read_predictions,
    write_predictions,
)


def evaluate(options: dict[str, Any]):
    """Print the win rate of the candidate against the rival."""
    table = existing_file(options["events"], "events")
    root = Path(options["video_root"] or table.parent).absolute()
    events = read_events(table, root, num_events=options["num_events"])
    judge = open_judge(options, INSTRUCTIONS)
    sides = Side("candidate", options), Side("rival", options)
    tasks = [event.task(options["query"]) for event in events]
    for side in sides:
        side.print_cost(tasks)
    expected = (expected_commentary(side, events, tasks) for side in sides)
    check_judge_cost(judge, comparisons(events, *expected), options)
    by_side = [commentary(side, events, tasks) for side in sides]
    judge_and_report(judge, list(comparisons(events, *by_side)), sides, options)


def expected_commentary(side: Side, events: Sequence[SportsEvent], tasks: Sequence[CommentaryTask]) -> dict[str, str]:
    """Return the stored commentary of a side, and the true commentary for events that have none yet."""
    if side.file:
        return read_predictions(side.file, events)
    stored = {task.name: side.stored(task) for task in tasks}
    commented = [event for event in events if stored[event.name]]
    return {event.name: event.reference for event in events} | predictions(commented, stored)


def commentary(side: Side, events: Sequence[SportsEvent], tasks: Sequence[CommentaryTask]) -> dict[str, str]:
    """Return the commentary of a side by event; generated commentary is also written in the published layout."""
    if side.file:
        return read_predictions(side.file, events)
    texts = predictions(events, side.comment(tasks))
    write_predictions(side.merged_file, events, texts)
    return texts
