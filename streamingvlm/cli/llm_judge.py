"""Shared by the benchmarks with a judge: two sides, their commentary, the judge and the report."""

import math
import re
import sys
from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.markup import escape
from rich.progress import Progress, SpinnerColumn, TextColumn, TimeElapsedColumn, track

from streamingvlm.atomic import write_json
from streamingvlm.cli.checks import existing_file
from streamingvlm.cli.cost import check_cost
from streamingvlm.endpoint import ChatEndpoint, EndpointConfig
from streamingvlm.errors import ConfigError, EndpointError
from streamingvlm.evaluation.candidates.candidate import Candidate
from streamingvlm.evaluation.candidates.endpoint_candidate import EndpointCandidate
from streamingvlm.evaluation.candidates.opening import candidate_from
from streamingvlm.evaluation.llm_judge.commentary_files import CommentedClip
from streamingvlm.evaluation.llm_judge.generation import CommentaryStore, CommentaryTask, generate_commentary
from streamingvlm.evaluation.llm_judge.judging import Comparison, Judge, Verdict, WinRate, win_rate, win_rates_by_part


class Side:
    """One of the two sides of a comparison: a candidate that comments now, or a file of commentary.

    role: candidate or rival, which is also its group of options. name, path: as a table shows them.
    """

    def __init__(self, role: str, options: dict[str, Any]):
        self.role = role
        self._options = options[role]
        self._work_folder = Path(options["work_folder"])
        # The display name does not change the commentary.
        settings = {name: value for name, value in self._options.items() if name != "name"}
        self._store = CommentaryStore(self._work_folder / "commentary", settings)
        self.file = existing_file(self._options["path"], f"{role}.path") if self._options["kind"] == "file" else None
        self.name, self.path = self._options["name"] or (self.file and self.file.name), "a file"
        self._remote: EndpointCandidate | None = None
        if self._options["kind"] == "endpoint":  # a missing key fails now, not after hours of the other side
            with options_below(role):
                self._remote = self._open()

    @property
    def merged_file(self) -> Path:
        """The file of all its commentary in the published layout."""
        return self._work_folder / f"{self.role}.jsonl"

    def stored(self, task: CommentaryTask) -> tuple[CommentedClip, ...] | None:
        """Return its commentary from an earlier run, None if there is none."""
        commentary = self._store.read(task)
        return commentary and commentary.clips

    def print_cost(self, tasks: Sequence[CommentaryTask]):
        """Print what a remote candidate will be asked, before the first request."""
        if self._remote:
            clips = [clip for task in tasks if self.stored(task) is None for clip in task.clips]
            print(self._remote.estimate(clips), file=sys.stderr, flush=True)

    def comment(self, tasks: Sequence[CommentaryTask]) -> dict[str, tuple[CommentedClip, ...]]:
        """Return the commentary of all tasks, generating what is not stored, with a progress line."""
        columns = (SpinnerColumn(), TextColumn("{task.description}"), TimeElapsedColumn())
        console = Console(stderr=True)
        with Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as progress:
            bar = progress.add_task(self.role)
            by_task = generate_commentary(
                tasks,
                self._open,
                self._store,
                on_line=lambda line: progress.update(bar, description=escape(f"{self.role} {line}"[:100])),
            )
        for commentary in by_task.values():
            self.name, self.path = self._options["name"] or commentary.candidate, commentary.path
        return {name: commentary.clips for name, commentary in by_task.items()}

    def _open(self) -> Candidate:
        return candidate_from(self._options, work_folder=self._work_folder)


@contextmanager
def options_below(group: str) -> Iterator[None]:
    """Prefix an endpoint's options in error messages with the group that they are in here."""
    try:
        yield
    except ConfigError as error:
        raise ConfigError(re.sub(r"\bendpoint\.(?=\w)", f"{group}.endpoint.", str(error))) from error


def open_judge(options: dict[str, Any], instructions: str) -> Judge | None:
    """Open the judge, None if it is disabled. Raises ConfigError for a missing key."""
    settings = options["judge"]
    if not settings["enabled"]:
        return None
    with options_below("judge"):
        endpoint = ChatEndpoint(EndpointConfig(**settings["endpoint"]), Path(options["work_folder"]) / "answers")
    return Judge(endpoint, instructions, max_tokens=settings["max_tokens"])


def check_judge_cost(judge: Judge | None, comparisons: Iterable[Comparison], options: dict[str, Any]):
    """Print the cost of judging before any clip is read; stop if it is above the limit."""
    if judge:
        check_cost(judge.estimate(comparisons), options["judge"], "judge")


def judge_and_report(
    judge: Judge | None, comparisons: Sequence[Comparison], sides: tuple[Side, Side], options: dict[str, Any]
):
    """Judge all comparisons, print the win rate, and write the votes as JSON to ``result_path`` if given."""
    if judge is None:
        print(f"wrote {', '.join(str(side.merged_file) for side in sides if not side.file)}; judge.enabled=false")
        return
    console = Console(stderr=True)
    votes = judge.judge(comparisons)
    is_hidden = not console.is_terminal
    verdicts = list(track(votes, "judging", len(comparisons), console=console, transient=True, disable=is_hidden))
    result = win_rate(verdicts)
    for side in sides:
        print(f"{side.role}: {side.name} ({side.path})")
    print(result)
    if any(verdict.position is not None for verdict in verdicts):
        print(f"by fifths of the videos: {' / '.join(f'{part.rate:.2%}' for part in win_rates_by_part(verdicts))}")
    if options["result_path"]:
        write_json(Path(options["result_path"]), as_document(result, verdicts, sides, options))
    if verdicts and math.isnan(result.rate):
        raise EndpointError("no vote of the judge is valid; if it thinks first, raise judge.max_tokens, such as 4096")


def as_document(
    result: WinRate, verdicts: Sequence[Verdict], sides: tuple[Side, Side], options: dict[str, Any]
) -> dict[str, Any]:
    """Return the result and its options as JSON."""
    by_group = defaultdict(list)
    for verdict in verdicts:
        by_group[verdict.group].append(verdict)
    return {
        "options": options,
        "sides": {side.role: {"name": side.name, "path": side.path} for side in sides},
        "win_rate": _null_for_nan(asdict(result)),
        "win_rate_by_video": _null_for_nan({video: win_rate(of_video).rate for video, of_video in by_group.items()}),
        "win_rate_by_fifth": [_null_for_nan(asdict(part)) for part in win_rates_by_part(verdicts)],
        "verdicts": [asdict(verdict) for verdict in verdicts],
    }


def _null_for_nan(numbers: dict[str, Any]) -> dict[str, Any]:
    return {name: None if isinstance(n, float) and math.isnan(n) else n for name, n in numbers.items()}
