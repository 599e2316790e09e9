"""What streams are to reach, and which record of a benchmark tells whether they do."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from statistics import median
from typing import Any

from streamingvlm.benchmark.tables import Record, Table

_LARGE = "7b"
_GPU = "H100"
_WIDE, _SMALL = 1280, 252


@dataclass(frozen=True)
class Goal:
    """One figure to reach.

    command: what measures it; part: of the record that has it; applies: whether a record is of this goal; told: the
    figure, as text.
    """

    what: str
    goal: str
    command: str
    part: str
    applies: Callable[[Record], bool]
    told: Callable[[Any], str]

    def newest(self, records: Iterable[Record]) -> Record | None:
        """The newest record that tells; None where it was not yet measured."""
        fitting = [record for record in records if self.part in record and self.applies(record)]
        return max(fitting, key=lambda record: record["date"], default=None)


def _is_large(record: Record) -> bool:
    return _GPU in record["machine"]["device"] and record["settings"]["model"] == {
        "name": _LARGE,
        "dtype": "bfloat16",
        "quantization": None,
    }


def _is_embedded(record: Record) -> bool:
    return record["settings"]["model"]["name"] == "pitch" and record["machine"]["device"] == "x86_64"


def _ms(seconds: float) -> str:
    return f"{seconds * 1e3:.3g} ms"


def _between_tokens(modes: Record) -> str:
    return _ms(modes["streaming"]["whole"]["between_tokens"]["p50"])


def _turns(modes: Record) -> str:
    parts = (modes["streaming"][part]["turn"]["p95"] for part in ("first_minute", "last_minute"))
    return " and ".join(map(_ms, parts))


def _share(modes: Record) -> str:
    return f"{modes['streaming']['roofline']['turn_share']:.0%}"


def _highest(found: Record) -> str:
    return f"{found['highest']}{' or more' if found['is_limit_of_search'] else ''}"


def _ratio_of_four(cases: Iterable[Record]) -> str:
    ratios = {case["num_threads"]: median(case["ratios"]) for case in cases if case["num_streams"] == 4}
    return ", ".join(f"{ratio:.2f} ({threads} thread{'s' * (threads > 1)})" for threads, ratio in ratios.items())


def _of_large(what: str, goal: str, words: str, part: str, told: Callable[[Any], str], width: int = _WIDE) -> Goal:
    """A goal of the large model on the GPU, shown frames of a width."""

    def applies(record: Record) -> bool:
        is_whole = part != "modes" or record["modes"].get("streaming", {}).get("ended") == ""
        return is_whole and _is_large(record) and record["settings"]["footage"]["width"] == width

    return Goal(what, goal, f"python scripts/bench.py model=7b {words}", part, applies, told)


GOALS = (
    _of_large(
        "7B, 720p at 2 frames/s: from one token to the next, p50",
        "at most 6.5 ms",
        "parts=[modes]",
        "modes",
        _between_tokens,
    ),
    _of_large(
        "the same: a second of stream, p95, first and last minute", "at most 110 ms", "parts=[modes]", "modes", _turns
    ),
    _of_large("the same: share of the floor", "at least 65 %", "parts=[modes]", "modes", _share),
    _of_large("the same: frames/s of one stream", "at least 40", "parts=[frames_per_s]", "frames_per_s", _highest),
    _of_large("the same: streams with p95 below 1 s", "at least 20", "parts=[streams]", "streams", _highest),
    _of_large(
        "7B, 1 frame/s of 72 tokens: streams with p95 below 1 s",
        "at least 200",
        "workload=72_tokens parts=[streams]",
        "streams",
        _highest,
        width=_SMALL,
    ),
    Goal(
        "CPU, embedded model: 4 streams in one engine against 4 sessions in turn",
        "at least 1.8 times",
        "python scripts/bench.py parts=[batching]",
        "batching",
        _is_embedded,
        _ratio_of_four,
    ),
)


def goals_table(records: Iterable[Record]) -> Table:
    """Each goal with what was measured, or with the command that would."""
    records = list(records)
    rows = []
    for goal in GOALS:
        found = goal.newest(records)
        told = "not yet measured" if found is None else f"{goal.told(found[goal.part])} ({found['date'][:10]})"
        rows.append([goal.what, goal.goal, told, f"`{goal.command}`"])
    return Table("Goals", ("what", "goal", "measured", "command"), rows)
