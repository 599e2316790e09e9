"""Inf-Streams-Eval: two candidates comment on games of hours, and a judge compares them segment by segment."""

from collections.abc import Sequence
from dataclasses import fields
from pathlib import Path
from typing import Any

from streamingvlm.cli.checks import existing_file
from streamingvlm.cli.llm_judge import Side, check_judge_cost, judge_and_report, open_judge
from streamingvlm.evaluation.llm_judge.commentary_files import CommentedClip, read_commentary, write_commentary
from streamingvlm.evaluation.llm_judge.generation import CommentaryTask
from streamingvlm.evaluation.llm_judge.inf_streams import (
    INSTRUCTIONS,
    Game,
    InfStreamsConfig,
    by_base_name,
    commentary_tasks,
    comparisons,
    read_games,
    read_segments,
)


def evaluate(options: dict[str, Any]):
    """Print the win rate of the candidate against the rival."""
    config = InfStreamsConfig(**{field.name: options[field.name] for field in fields(InfStreamsConfig)})
    transcripts = existing_file(options["transcripts"], "transcripts")
    root = Path(options["video_root"] or transcripts.parent).absolute()
    games = read_games(transcripts, root, num_videos=options["num_videos"])
    segments = read_segments(existing_file(options["segments"], "segments"), games, start_s=config.start_s)
    judge = open_judge(options, INSTRUCTIONS)
    sides = Side("candidate", options), Side("rival", options)
    tasks = [commentary_tasks(games, config, is_rival=side.role == "rival") for side in sides]
    for side, of_side in zip(sides, tasks, strict=True):
        side.print_cost(of_side)
    expected = [expected_commentary(side, of_side, games) for side, of_side in zip(sides, tasks, strict=True)]
    check_judge_cost(judge, comparisons(segments, *expected), options)
    by_side = [commentary(side, of_side) for side, of_side in zip(sides, tasks, strict=True)]
    judge_and_report(judge, list(comparisons(segments, *by_side)), sides, options)


def expected_commentary(side: Side, tasks: Sequence[CommentaryTask], games: Sequence[Game]) -> dict[str, CommentedClip]:
    """Return the stored commentary of a side, and the true commentary for videos that have none yet."""
    if side.file:
        return read_commentary(side.file)
    truth = by_base_name({game.name: [CommentedClip(0.0, game.end_s, game.utterances)] for game in games})
    stored = {task.name: side.stored(task) for task in tasks}
    return truth | by_base_name({name: clips for name, clips in stored.items() if clips})


def commentary(side: Side, tasks: Sequence[CommentaryTask]) -> dict[str, CommentedClip]:
    """Return the commentary of a side by video; generated commentary is also written in the published layout."""
    if side.file:
        return read_commentary(side.file)
    by_video = by_base_name(side.comment(tasks))
    write_commentary(side.merged_file, {video: [clip] for video, clip in by_video.items()})
    return by_video
