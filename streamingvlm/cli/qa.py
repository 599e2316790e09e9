"""Shared by the question benchmarks: one candidate, the log of its answers, and the report."""

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import Progress

from streamingvlm.atomic import write_json
from streamingvlm.cli.checks import existing_file
from streamingvlm.cli.llm_judge import options_below
from streamingvlm.errors import ConfigError, DataError
from streamingvlm.evaluation.candidates.candidate import Candidate
from streamingvlm.evaluation.candidates.opening import candidate_from
from streamingvlm.evaluation.qa.question_run import AnswerLog, QuestionRun, answer_all
from streamingvlm.evaluation.qa.questions import Item, tabulate


def question_file(options: dict[str, Any]) -> tuple[Path, Path]:
    """Return the list of questions and the folder of its videos."""
    path = existing_file(options["questions"], "questions")
    return path, Path(options["video_root"] or path.parent).expanduser().absolute()


def answer_and_report(items: Sequence[Item], options: dict[str, Any], *, average_over: str):
    """Answer the questions that are not in the log, print the table, and write JSON to ``result_path`` if given."""
    # The display name does not change the answers.
    settings = {name: value for name, value in options["candidate"].items() if name != "name"}
    answers = AnswerLog(Path(options["work_folder"]) / "answers.jsonl", settings)
    with Progress(console=Console(stderr=True), transient=True) as progress:
        bar = progress.add_task("answering", total=sum(answers.find(item) is None for item in items))
        run = answer_all(items, lambda: _open(options), answers, on_answer=lambda _: progress.advance(bar))
    if not run.answered:
        raise DataError(f"none of {len(items)} questions was answered; the first: {next(iter(run.failures.values()))}")
    name = options["candidate"]["name"] or run.candidate
    result = tabulate(options["benchmark"], name, run.path, run.answered, average_over=average_over)
    print(result)
    _print_failures(run, len(items))
    if options["result_path"]:
        document = {**result.as_document(), "failures": dict(run.failures), "options": options}
        write_json(Path(options["result_path"]), document)


def _open(options: dict[str, Any]) -> Candidate:
    if options["candidate"]["kind"] == "file":
        raise ConfigError(
            "candidate=file has commentary, no answers; choose session, last_frames, offline_generate or endpoint"
        )
    with options_below("candidate"):
        return candidate_from(options["candidate"], work_folder=options["work_folder"])


def _print_failures(run: QuestionRun, num_items: int):
    if run.failures:
        name, line = next(iter(run.failures.items()))
        print(
            f"{len(run.failures)} of {num_items} questions have no answer and are in no figure, {name} first: {line}",
            file=sys.stderr,
        )
