"""What the benchmarks of questions share: one candidate, a book of its answers, and how the table is told."""

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from llm_judge import existing, options_below
from rich.console import Console
from rich.progress import Progress

from streamingvlm.atomic import write_json
from streamingvlm.errors import ConfigError, DataError
from streamingvlm.evaluation.candidates.candidates import Candidate, candidate_from
from streamingvlm.evaluation.qa.asking import AnswerBook, Asked, ask_all
from streamingvlm.evaluation.qa.questions import Item, tabulate


def question_file(options: dict[str, Any]) -> tuple[Path, Path]:
    """The list of questions, and the folder that its videos are in."""
    path = existing(options["questions"], "questions")
    return path, Path(options["video_root"] or path.parent).expanduser().absolute()


def ask_and_tell(items: Sequence[Item], options: dict[str, Any], *, average_over: str):
    """Ask what is not answered yet, print the table, and keep it as JSON where ``result_path`` names a file."""
    # What a candidate is called does not decide what it answers.
    settings = {name: value for name, value in options["candidate"].items() if name != "name"}
    book = AnswerBook(Path(options["work_folder"]) / "answers.jsonl", settings)
    with Progress(console=Console(stderr=True), transient=True) as progress:
        shown = progress.add_task("asking", total=sum(book.find(item) is None for item in items))
        asked = ask_all(items, lambda: _opened(options), book, on_answer=lambda _: progress.advance(shown))
    if not asked.answered:
        raise DataError(f"none of {len(items)} questions was answered: {next(iter(asked.failures.values()))}")
    name = options["candidate"]["name"] or asked.candidate
    result = tabulate(options["benchmark"], name, asked.path, asked.answered, average_over=average_over)
    print(result)
    _tell_failures(asked, len(items))
    if options["result_path"]:
        document = {**result.as_document(), "failures": dict(asked.failures), "options": options}
        write_json(Path(options["result_path"]), document)


def _opened(options: dict[str, Any]) -> Candidate:
    if options["candidate"]["kind"] == "file":
        raise ConfigError(
            "candidate=file has commentary, no answers; choose session, last_frames, offline_generate or endpoint"
        )
    with options_below("candidate"):
        return candidate_from(options["candidate"], work_folder=options["work_folder"])


def _tell_failures(asked: Asked, num_items: int):
    if asked.failures:
        name, line = next(iter(asked.failures.items()))
        print(
            f"{len(asked.failures)} of {num_items} questions have no answer and are in no figure, {name} first: {line}",
            file=sys.stderr,
        )
