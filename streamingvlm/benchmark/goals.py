"""The performance goals, and the record of a benchmark that measures each of them."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from statistics import median
from typing import Any

from streamingvlm.benchmark.record_tables import Record, RecordTable

_LARGE = "7b"
_GPU = "H100"
_HD_WIDTH, _SMALL_WIDTH = 1280, 252
_NUM_BATCHED_STREAMS = 4


@dataclass(frozen=True)
class Goal:
    """One number to reach.

    title: the number and its unit. target: its value. command: the benchmark that measures it. part: the key of the
    record that holds it. matches: return True if a record measures this goal. value: format the number from that part.
    """

    title: str
    target: str
    command: str
    part: str
    matches: Callable[[Record], bool]
    value: Callable[[Any], str]

    def newest(self, records: Iterable[Record]) -> Record | None:
        """Return the newest record that measures this goal; None if it has not been measured."""
        matching = [record for record in records if self.part in record and self.matches(record)]
        return max(matching, key=lambda record: record["date"], default=None)


def _is_large(record: Record) -> bool:
    model = {"name": _LARGE, "dtype": "bfloat16", "quantization": None}
    return _GPU in record["machine"]["device"] and record["settings"]["model"] == model


def _is_embedded(record: Record) -> bool:
    return record["settings"]["model"]["name"] == "pitch" and record["machine"]["device"] == "x86_64"


def _milliseconds(seconds: float) -> str:
    return f"{seconds * 1e3:.3g}"


def _inter_token(modes: Record) -> str:
    return _milliseconds(modes["streaming"]["whole"]["inter_token"]["p50"])


def _turn_latency(part: str) -> Callable[[Record], str]:
    return lambda modes: _milliseconds(modes["streaming"][part]["turn"]["p95"])


def _roofline_share(modes: Record) -> str:
    return f"{modes['streaming']['roofline']['turn_share'] * 100:.0f}"


def _highest_load(found: Record) -> str:
    return f"{found['highest']}{' or more' if found['is_limit_of_search'] else ''}"


def _speedups(batching: Iterable[Record], num_threads: int) -> list[float]:
    return [
        median(case["ratios"])
        for case in batching
        if (case["num_streams"], case["num_threads"]) == (_NUM_BATCHED_STREAMS, num_threads)
    ]


def _large_goal(
    title: str, target: str, options: str, part: str, value: Callable[[Any], str], width: int = _HD_WIDTH
) -> Goal:
    """A goal of the large model on the GPU, with footage of this width."""

    def matches(record: Record) -> bool:
        is_complete = part != "modes" or record["modes"].get("streaming", {}).get("stop_reason") == ""
        return is_complete and _is_large(record) and record["settings"]["footage"]["width"] == width

    return Goal(title, target, f"streamingvlm bench model=7b {options}", part, matches, value)


def _batching_goal(num_threads: int) -> Goal:
    """A goal of the embedded model on a CPU, with this many threads."""
    threads = f"{num_threads} {'thread' if num_threads == 1 else 'threads'}"
    return Goal(
        f"embedded model, {threads}: {_NUM_BATCHED_STREAMS} streams, speedup of one engine over sequential sessions",
        "≥ 1.8",
        "streamingvlm bench parts=[batching]",
        "batching",
        lambda record: _is_embedded(record) and bool(_speedups(record["batching"], num_threads)),
        lambda batching: f"{_speedups(batching, num_threads)[-1]:.2f}",
    )


GOALS = (
    _large_goal("7B, 720p at 2 frames/s: inter-token latency p50, ms", "≤ 6.5", "parts=[modes]", "modes", _inter_token),
    *(
        _large_goal(
            f"7B, 720p at 2 frames/s: turn latency p95 in the {part} minute, ms",
            "≤ 110",
            "parts=[modes]",
            "modes",
            _turn_latency(f"{part}_minute"),
        )
        for part in ("first", "last")
    ),
    _large_goal("7B, 720p at 2 frames/s: share of the roofline, %", "≥ 65", "parts=[modes]", "modes", _roofline_share),
    _large_goal("7B, 720p: frames/s of one stream", "≥ 40", "parts=[frames_per_s]", "frames_per_s", _highest_load),
    _large_goal(
        "7B, 720p at 2 frames/s: streams with a turn latency p95 below 1 s",
        "≥ 20",
        "parts=[streams]",
        "streams",
        _highest_load,
    ),
    _large_goal(
        "7B, 1 frame/s of 72 tokens: streams with a turn latency p95 below 1 s",
        "≥ 200",
        "workload=72_tokens parts=[streams]",
        "streams",
        _highest_load,
        width=_SMALL_WIDTH,
    ),
    *map(_batching_goal, (1, 2)),
)


def goals_table(records: Iterable[Record]) -> RecordTable:
    """Return each goal with its newest measurement, its date and the command that measures it."""
    records = list(records)
    rows = []
    for goal in GOALS:
        record = goal.newest(records)
        result = ("not measured", "-") if record is None else (goal.value(record[goal.part]), record["date"][:10])
        rows.append([goal.title, goal.target, *result, f"`{goal.command}`"])
    return RecordTable("Goals", ("goal", "target", "measured", "date", "command"), rows)
