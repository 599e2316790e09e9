"""The results of a record as tables, for the terminal and for the performance page."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from statistics import median_high
from typing import Any

from streamingvlm.benchmark.mode_summary import STAGES

Record = Mapping[str, Any]
_SHARES = ("p50", "p95", "p99")
_PERCENTILES_MS = ("p50, ms", "p95, ms", "p99, ms")
_PARTS = {"whole": "whole stream", "first_minute": "first minute", "last_minute": "last minute"}


@dataclass(frozen=True)
class RecordTable:
    """A title, the column names, and rows of text; the first columns name the row."""

    title: str
    columns: Sequence[str]
    rows: Sequence[Sequence[str]]

    def markdown(self) -> str:
        """Return the table as Markdown, without its title."""
        lines = [self.columns, ["---"] * len(self.columns), *self.rows]
        return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def tables_of(record: Record) -> Iterator[RecordTable]:
    """Yield all tables that the record has results for."""
    if modes := record.get("modes"):
        yield modes_table(modes)
        yield turn_latency_table(modes)
        yield token_table(modes)
        yield from stages_tables(modes)
    if "ceilings" in record:
        yield roofline_table(record)
        yield token_roofline_table(record)
    for part, unit in (("frames_per_s", "frames/s"), ("streams", "streams")):
        if part in record:
            yield trials_table(record[part], unit)
    if "batching" in record:
        yield from batching_tables(record["batching"])
    if "low_precision" in record:
        yield from low_precision_tables(record["low_precision"])


def modes_table(modes: Record) -> RecordTable:
    """The cache and memory of each mode at the end of its stream, and why it stopped."""
    columns = ("mode", "turns", "cache, tokens", "GPU memory, MB", "resident memory, MB", "outcome")
    rows = [
        [
            name,
            *(_count(summary.get(key)) for key in ("num_turns", "cache_tokens", "cuda_peak_mb", "resident_peak_mb")),
            summary["stop_reason"] or "completed",
        ]
        for name, summary in modes.items()
    ]
    return RecordTable("Modes", columns, rows)


def turn_latency_table(modes: Record) -> RecordTable:
    """The latency of a turn in each mode: over the whole stream, in its first minute and in its last."""
    rows = [
        [name, title, *_percentiles_ms(summary[part]["turn"])]
        for name, summary in _measured(modes)
        for part, title in _PARTS.items()
    ]
    return RecordTable("Turn latency", ("mode", "part", *_PERCENTILES_MS), rows)


def token_table(modes: Record) -> RecordTable:
    """The inter-token latency of each mode, and its turn latency divided by the tokens of the turn."""
    columns = ("mode", *(f"inter-token {name}" for name in _PERCENTILES_MS), "turn latency per token p50, ms")
    rows = [
        [name, *_percentiles_ms(summary["whole"]["inter_token"]), _ms(summary["whole"]["token"], "p50")]
        for name, summary in _measured(modes)
    ]
    return RecordTable("Tokens", columns, rows)


def stages_tables(modes: Record) -> Iterator[RecordTable]:
    """The time of each stage of a turn, one table per percentile."""
    for share in _SHARES:
        rows = [
            [f"{name}, {title}", *(_ms(summary[part][stage], share) for stage in STAGES)]
            for name, summary in _measured(modes)
            for part, title in _PARTS.items()
            if all(summary[part].get(stage, {}).get("n") for stage in STAGES if stage != "decode")
        ]
        yield RecordTable(f"Stages of a turn, {share}", ("mode", *(f"{stage}, ms" for stage in STAGES)), rows)


def roofline_table(record: Record) -> RecordTable:
    """The lower bound of a turn and of its stages, next to the measured latency."""
    ceilings = record["ceilings"]
    title = (
        f"Roofline of a turn, at the measured {ceilings['flop_per_s'] / 1e12:.4g} TFLOP/s (matrix product) and "
        f"{ceilings['bytes_per_s'] / 1e9:.4g} GB/s (copy)"
    )
    rows = [
        [
            name,
            *(_milliseconds(bound[part]) for part in ("vision_s", "prefill_s", "turn_s")),
            _percent(bound.get("turn_share")),
        ]
        for name, bound in _rooflines(record)
    ]
    columns = ("mode", "vision, ms", "prefill, ms", "turn, ms", "share of the measured turn latency, %")
    return RecordTable(title, columns, rows)


def token_roofline_table(record: Record) -> RecordTable:
    """The lower bound of a decoded token, next to the measured inter-token latency."""
    rows = [
        [name, _milliseconds(bound["token_s"]), _percent(bound.get("token_share"))]
        for name, bound in _rooflines(record)
    ]
    columns = ("mode", "token, ms", "share of the measured inter-token latency, %")
    return RecordTable("Roofline of a decoded token", columns, rows)


def trials_table(found: Record, unit: str) -> RecordTable:
    """The trials of a search, in the order in which they ran."""
    more = ", the limit of the search" if found["is_limit_of_search"] else ""
    window = f"; constant {found['window']} in the vision window" if "window" in found else ""
    rows = [
        [str(trial["load"]), *_percentiles_ms(trial["turn"]), outcome(trial["passed"], trial["stop_reason"])]
        for trial in found["trials"]
    ]
    columns = (unit, *(f"turn {name}" for name in _PERCENTILES_MS), "outcome")
    return RecordTable(f"Highest load: {found['highest']} {unit}{more}{window}", columns, rows)


def outcome(passed: bool, stop_reason: str) -> str:
    """Return the outcome of a trial as a word, or the reason why it stopped."""
    return stop_reason or ("passed" if passed else "too slow")


def batching_tables(batching: Sequence[Record]) -> Iterator[RecordTable]:
    """One engine compared with sessions one after the other, one table per number of threads."""
    columns = (
        "streams",
        "sequential sessions, ms",
        "one engine, ms",
        "speedup, median",
        "speedup, lowest",
        "speedup, highest",
    )
    for num_threads in dict.fromkeys(case["num_threads"] for case in batching):
        rows = [_batching_row(case) for case in batching if case["num_threads"] == num_threads]
        threads = f"{num_threads} {'thread' if num_threads == 1 else 'threads'}"
        yield RecordTable(f"One turn of all streams, {threads}", columns, rows)


def _batching_row(case: Record) -> list[str]:
    ratios = case["ratios"]
    return [
        str(case["num_streams"]),
        *(f"{median_high(case[side]) * 1e3:.0f}" for side in ("sequential_s", "batched_s")),
        *(f"{ratio:.2f}" for ratio in (median_high(ratios), min(ratios), max(ratios))),
    ]


def low_precision_tables(cases: Mapping[str, Record]) -> Iterator[RecordTable]:
    """The size of each low-precision case, then its commentary, one table per match."""
    sizes = [
        [
            name,
            f"{case['weight_mb']:.1f}" if "runs" in case else "-",
            str(case.get("cache_bytes_per_token", "-")),
            case.get("error", "completed"),
        ]
        for name, case in cases.items()
    ]
    columns = ("case", "weights, MB", "cache, bytes per token", "outcome")
    yield RecordTable("Low precision: size", columns, sizes)
    completed = {name: case for name, case in cases.items() if "runs" in case}
    for seed in next((list(case["runs"]) for case in completed.values()), []):
        rows = [[name, *_commentary_cells(case["runs"][seed])] for name, case in completed.items()]
        columns = ("case", "macro-F1", "correct lines, share", "identical lines, share", "turn p50, ms")
        yield RecordTable(f"Low precision: commentary on match {seed}", columns, rows)


def _commentary_cells(run: Record) -> list[str]:
    shares = (run[key] for key in ("macro_f1", "right_share", "same_lines"))
    return [*(f"{share:.3f}" for share in shares), f"{run['turn_p50_s'] * 1e3:.0f}"]


def _measured(modes: Record) -> Iterator[tuple[str, Record]]:
    """Yield the modes that completed at least one turn."""
    return ((name, summary) for name, summary in modes.items() if "whole" in summary)


def _rooflines(record: Record) -> Iterator[tuple[str, Record]]:
    return ((name, summary["roofline"]) for name, summary in record["modes"].items() if "roofline" in summary)


def _percentiles_ms(times: Record) -> list[str]:
    return [_ms(times, share) for share in _SHARES]


def _ms(times: Record, share: str) -> str:
    return _milliseconds(times[share]) if times.get("n") else "-"


def _milliseconds(seconds: float) -> str:
    """Three significant digits, without an exponent."""
    return f"{float(f'{seconds * 1e3:.3g}'):.15g}"


def _count(value: float | None) -> str:
    return "-" if value is None else f"{value:.0f}"


def _percent(value: float | None) -> str:
    return "-" if value is None else f"{value * 100:.0f}"
