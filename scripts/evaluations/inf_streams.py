"""Inf-Streams-Eval: have two candidates comment on games of hours, and judge them segment by segment."""

from collections.abc import Sequence
from dataclasses import fields
from pathlib import Path
from typing import Any

from llm_judge import Side, existing, judge_and_tell, open_judge, tell_cost

from streamingvlm.evaluation.llm_judge.commentary_files import CommentedChunk, read_commentary, write_commentary
from streamingvlm.evaluation.llm_judge.generation import Assignment
from streamingvlm.evaluation.llm_judge.inf_streams import (
    INSTRUCTIONS,
    Game,
    InfStreamsConfig,
    assignments,
    by_base_name,
    comparisons,
    read_games,
    read_segments,
)


def evaluate(options: dict[str, Any]):
    """Print the win rate of the candidate against the rival."""
    config = InfStreamsConfig(**{field.name: options[field.name] for field in fields(InfStreamsConfig)})
    transcripts = existing(options["transcripts"], "transcripts")
    root = Path(options["video_root"] or transcripts.parent).absolute()
    games = read_games(transcripts, root, num_videos=options["num_videos"])
    segments = read_segments(existing(options["segments"], "segments"), games, start_s=config.start_s)
    judge = open_judge(options, INSTRUCTIONS)
    sides = Side("candidate", options), Side("rival", options)
    tasks = [assignments(games, config, is_rival=side.role == "rival") for side in sides]
    for side, todo in zip(sides, tasks, strict=True):
        side.tell_cost(todo)
    expected = [said_before(side, todo, games) for side, todo in zip(sides, tasks, strict=True)]
    tell_cost(judge, comparisons(segments, *expected), options)
    said = [commentary(side, todo) for side, todo in zip(sides, tasks, strict=True)]
    judge_and_tell(judge, list(comparisons(segments, *said)), sides, options)


def said_before(side: Side, tasks: Sequence[Assignment], games: Sequence[Game]) -> dict[str, CommentedChunk]:
    """What is there of a side's commentary; true commentary stands in for what is not."""
    if side.file:
        return read_commentary(side.file)
    truth = by_base_name({game.name: [CommentedChunk(0.0, game.end_s, game.pieces)] for game in games})
    kept = {task.name: side.kept(task) for task in tasks}
    return truth | by_base_name({name: chunks for name, chunks in kept.items() if chunks})


def commentary(side: Side, tasks: Sequence[Assignment]) -> dict[str, CommentedChunk]:
    """All that a side says, by video; what is said now is written in the published shape, too."""
    if side.file:
        return read_commentary(side.file)
    said = by_base_name(side.comment(tasks))
    write_commentary(side.merged_file, {video: [chunk] for video, chunk in said.items()})
    return said
