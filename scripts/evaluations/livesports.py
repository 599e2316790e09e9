"""LiveSports-3K-CC: have two candidates comment on events of sports, and judge them against what was said on air."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from judged import Side, existing, judge_and_tell, open_judge, tell_cost

from streamingvlm.evaluation.livesports import (
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
    tell_cost(judge, comparisons(events, *(said_before(side, events, options["query"]) for side in sides)), options)
    said = [commentary(side, events, options["query"]) for side in sides]
    judge_and_tell(judge, list(comparisons(events, *said)), sides, options)


def said_before(side: Side, events: Sequence[Event], query: str) -> dict[str, str]:
    """What is there of a side's commentary; true commentary stands in for what is not."""
    if side.file:
        return read_predictions(side.file, events)
    kept = {event: side.kept(event.assignment(query)) for event in events}
    there = [event for event in events if kept[event]]
    truth = {event.name: event.reference for event in events}
    return truth | predictions(there, {event.name: kept[event] for event in there})


def commentary(side: Side, events: Sequence[Event], query: str) -> dict[str, str]:
    """All that a side says, by event; what is said now is written in the published shape, too."""
    if side.file:
        return read_predictions(side.file, events)
    texts = predictions(events, side.comment([event.assignment(query) for event in events]))
    write_predictions(side.merged_file, events, texts)
    return texts
