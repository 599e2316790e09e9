"""A record's figures as tables, for a terminal and for a page alike."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from streamingvlm.benchmark.figures import STAGES

Record = Mapping[str, Any]


@dataclass(frozen=True)
class Table:
    """A title, the names of the columns, rows of text; the first column names the row."""

    title: str
    columns: Sequence[str]
    rows: Sequence[Sequence[str]]

    def markdown(self) -> str:
        """The table for a page, without its title."""
        lines = [self.columns, ["---"] * len(self.columns), *self.rows]
        return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def tables_of(record: Record) -> Iterator[Table]:
    """All tables that a record has figures for."""
    if modes := record.get("modes"):
        yield modes_table(modes)
        yield stages_table(modes)
    if "ceilings" in record:
        yield roofline_table(record)
    for part, unit in (("frames_per_s", "frames/s"), ("streams", "streams")):
        if part in record:
            yield trials_table(record[part], unit)
    if "batching" in record:
        yield batching_table(record["batching"])
    if "lighter" in record:
        yield lighter_table(record["lighter"])


def modes_table(modes: Record) -> Table:
    """How long a second of stream and a token take in each mode, in the first minute and in the last."""
    columns = (
        "mode",
        "turn p50 / p95 / p99, ms",
        "first minute p50 / p95",
        "last minute p50 / p95",
        "between tokens p50 / p95 / p99, ms",
        "a token, all work, ms",
        "cache, tokens",
        "memory, MB (GPU / resident)",
        "ended",
    )
    return Table("Modes", columns, [_mode_row(name, figures) for name, figures in modes.items()])


def _mode_row(name: str, figures: Record) -> list[str]:
    if "whole" not in figures:
        return [name, *["-"] * 7, figures["ended"]]
    whole = figures["whole"]
    parts = [_ms(figures[part]["turn"], ("p50", "p95")) for part in ("first_minute", "last_minute")]
    memory = " / ".join(_number(figures[key]) for key in ("cuda_peak_mb", "resident_peak_mb"))
    return [
        name,
        _ms(whole["turn"]),
        *parts,
        _ms(whole["between_tokens"]),
        _ms(whole["token"], ("p50",)),
        str(figures["cache_tokens"]),
        memory,
        figures["ended"] or f"{figures['num_turns']} turns",
    ]


def stages_table(modes: Record) -> Table:
    """Where the time of a turn goes."""
    rows = [
        [f"{name}, {part.replace('_', ' ')}", *(_ms(figures[part][stage]) for stage in STAGES)]
        for name, figures in modes.items()
        if "whole" in figures
        for part in ("whole", "first_minute", "last_minute")
        if all(figures[part].get(stage, {}).get("n") for stage in STAGES if stage != "decode")
    ]
    return Table("Stages of a turn, p50 / p95 / p99 in ms", ("mode", *STAGES), rows)


def roofline_table(record: Record) -> Table:
    """The floor of a turn and of a token, and its share of what was measured."""
    ceilings = record["ceilings"]
    title = (
        f"Floor: {ceilings['flop_per_s'] / 1e12:.4g} TFLOP/s (a matrix product), "
        f"{ceilings['bytes_per_s'] / 1e9:.4g} GB/s (a copy), both measured"
    )
    rows = [
        [
            name,
            *(f"{figures['roofline'][part] * 1e3:.3g}" for part in ("vision_s", "prefill_s", "token_s", "turn_s")),
            *(_percent(figures["roofline"].get(part)) for part in ("token_share", "turn_share")),
        ]
        for name, figures in record["modes"].items()
        if "roofline" in figures
    ]
    columns = ("mode", "vision, ms", "prefill, ms", "a token, ms", "a turn, ms", "floor / token", "floor / turn")
    return Table(title, columns, rows)


def trials_table(found: Record, unit: str) -> Table:
    """The trials of a search, in their order."""
    more = ", no more were tried" if found["is_limit_of_search"] else ""
    window = f"; the window keeps its {found['window']}" if "window" in found else ""
    rows = [
        [str(trial["load"]), _ms(trial["turn"]), trial["ended"] or ("kept up" if trial["passed"] else "too slow")]
        for trial in found["trials"]
    ]
    title = f"Highest load: {found['highest']} {unit}{more}{window}"
    return Table(title, (unit, "turn p50 / p95 / p99, ms", "outcome"), rows)


def batching_table(batching: Sequence[Record]) -> Table:
    """An engine of many streams against as many sessions in turn."""
    rows = [
        [
            str(case["num_streams"]),
            str(case["num_threads"]),
            f"{_median(case['in_turn_s']) * 1e3:.0f}",
            f"{_median(case['batched_s']) * 1e3:.0f}",
            f"{_median(case['ratios']):.2f}",
            f"{min(case['ratios']):.2f} to {max(case['ratios']):.2f}",
        ]
        for case in batching
    ]
    columns = ("streams", "threads", "in turn, ms", "one engine, ms", "ratio", "of all repeats")
    return Table("A turn of all streams: sessions in turn against one engine", columns, rows)


def lighter_table(cases: Mapping[str, Record]) -> Table:
    """What smaller weights and a smaller cache do to what is said."""
    columns = ("case", "weights, MB", "cache, bytes a token", "macro-F1", "lines right", "same lines", "turn p50, ms")
    rows = []
    for name, case in cases.items():
        if "error" in case:
            rows.append([name, *["-"] * 5, case["error"]])
            continue
        by_seed = [
            " ".join(f"{run[key]:.3f}" for run in case["runs"].values())
            for key in ("macro_f1", "right_share", "same_lines")
        ]
        rows.append(
            [
                name,
                f"{case['weight_mb']:.1f}",
                str(case["cache_bytes_per_token"]),
                *by_seed,
                " ".join(f"{run['turn_p50_s'] * 1e3:.0f}" for run in case["runs"].values()),
            ]
        )
    seeds = next((list(case["runs"]) for case in cases.values() if "runs" in case), [])
    return Table(f"Smaller and lighter, on the matches of seeds {' and '.join(seeds)}", columns, rows)


def _ms(times: Record, shares: Sequence[str] = ("p50", "p95", "p99")) -> str:
    if not times.get("n"):
        return "-"
    return " / ".join(f"{times[share] * 1e3:.3g}" for share in shares)


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:,.0f}"


def _percent(value: float | None) -> str:
    return "-" if value is None else f"{value:.0%}"


def _median(values: Sequence[float]) -> float:
    return sorted(values)[len(values) // 2]
