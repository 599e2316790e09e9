"""What the judged benchmarks share: two candidates, their commentary, a judge, and how it is told."""

import math
import re
import sys
from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any

from cost import tell_estimate
from rich.console import Console
from rich.markup import escape
from rich.progress import Progress, SpinnerColumn, TextColumn, TimeElapsedColumn, track

from streamingvlm.atomic import write_json
from streamingvlm.endpoint import ChatEndpoint, EndpointConfig
from streamingvlm.errors import ConfigError
from streamingvlm.evaluation.candidates.candidates import Candidate, EndpointCandidate, candidate_from
from streamingvlm.evaluation.llm_judge.commentary_files import CommentedChunk
from streamingvlm.evaluation.llm_judge.generation import Assignment, CommentStore, generate
from streamingvlm.evaluation.llm_judge.judging import Comparison, Judge, Verdict, WinRate, win_rate, win_rates_by_part


class Side:
    """One of the two who are compared: a candidate that comments now, or a file of what one said before.

    role: candidate or rival, the group of its options. name, path: as a table tells them.
    """

    def __init__(self, role: str, options: dict[str, Any]):
        self.role = role
        self._options = options[role]
        self._work_folder = Path(options["work_folder"])
        # What a candidate is called does not decide what it says.
        settings = {name: value for name, value in self._options.items() if name != "name"}
        self._store = CommentStore(self._work_folder / "said", settings)
        self.file = existing(self._options["path"], f"{role}.path") if self._options["kind"] == "file" else None
        self.name, self.path = self._options["name"] or (self.file and self.file.name), "a file"
        self._remote: EndpointCandidate | None = None
        if self._options["kind"] == "endpoint":  # a key that is missing shows now, not after hours of the other side
            with options_below(role):
                self._remote = self._open()

    @property
    def merged_file(self) -> Path:
        """Where all that it said is written in the published shape."""
        return self._work_folder / f"{self.role}.jsonl"

    def kept(self, assignment: Assignment) -> tuple[CommentedChunk, ...] | None:
        """What it said of an assignment in an earlier run; None where that is not kept."""
        spoken = self._store.read(assignment)
        return spoken and spoken.chunks

    def tell_cost(self, assignments: Sequence[Assignment]):
        """Say what a model behind an address will be asked, before it is."""
        if self._remote:
            missing = [assignment for assignment in assignments if self.kept(assignment) is None]
            clips = [clip for assignment in missing for clip in assignment.clips]
            print(self._remote.estimate(clips), file=sys.stderr, flush=True)

    def comment(self, assignments: Sequence[Assignment]) -> dict[str, tuple[CommentedChunk, ...]]:
        """Have all assignments commented that are not kept already, with a line of progress."""
        columns = (SpinnerColumn(), TextColumn("{task.description}"), TimeElapsedColumn())
        console = Console(stderr=True)
        with Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as progress:
            shown = progress.add_task(self.role)
            said = generate(
                assignments,
                self._open,
                self._store,
                on_line=lambda line: progress.update(shown, description=escape(f"{self.role} {line}"[:100])),
            )
        for spoken in said.values():
            self.name, self.path = self._options["name"] or spoken.name, spoken.path
        return {name: spoken.chunks for name, spoken in said.items()}

    def _open(self) -> Candidate:
        return candidate_from(self._options, work_folder=self._work_folder)


def existing(path: str | None, option: str) -> Path:
    """The file that an option names. Raises ConfigError where it names none, or none that is there."""
    if path is None:
        raise ConfigError(f"{option} is not given; name a file: {option}=PATH")
    if not Path(path).expanduser().is_file():
        raise ConfigError(f"{option}={path} is no file; check the path")
    return Path(path).expanduser()


@contextmanager
def options_below(group: str) -> Iterator[None]:
    """Have errors call an endpoint's options by the group that they are in here."""
    try:
        yield
    except ConfigError as error:
        raise ConfigError(re.sub(r"\bendpoint\.(?=\w)", f"{group}.endpoint.", str(error))) from error


def open_judge(options: dict[str, Any], instructions: str) -> Judge | None:
    """The judge, None where it is switched off; its key is asked for at once."""
    settings = options["judge"]
    if not settings["enabled"]:
        return None
    with options_below("judge"):
        endpoint = ChatEndpoint(EndpointConfig(**settings["endpoint"]), Path(options["work_folder"]) / "answers")
    return Judge(endpoint, instructions, max_tokens=settings["max_tokens"])


def tell_cost(judge: Judge | None, comparisons: Iterable[Comparison], options: dict[str, Any]):
    """Say what judging will cost before anything is done."""
    if judge:
        tell_estimate(judge.estimate(comparisons), options["judge"], "judge")


def judge_and_tell(
    judge: Judge | None, comparisons: Sequence[Comparison], sides: tuple[Side, Side], options: dict[str, Any]
):
    """Judge all comparisons, print the win rate, and keep the votes as JSON where ``result_path`` names a file."""
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


def as_document(
    result: WinRate, verdicts: Sequence[Verdict], sides: tuple[Side, Side], options: dict[str, Any]
) -> dict[str, Any]:
    """What was measured and under which options, as JSON."""
    by_group = defaultdict(list)
    for verdict in verdicts:
        by_group[verdict.group].append(verdict)
    return {
        "options": options,
        "sides": {side.role: {"name": side.name, "path": side.path} for side in sides},
        "win_rate": _finite(asdict(result)),
        "win_rate_by_video": _finite({video: win_rate(of_video).rate for video, of_video in by_group.items()}),
        "win_rate_by_fifth": [_finite(asdict(part)) for part in win_rates_by_part(verdicts)],
        "verdicts": [asdict(verdict) for verdict in verdicts],
    }


def _finite(numbers: dict[str, Any]) -> dict[str, Any]:
    """JSON knows no NaN."""
    return {name: None if isinstance(n, float) and math.isnan(n) else n for name, n in numbers.items()}
