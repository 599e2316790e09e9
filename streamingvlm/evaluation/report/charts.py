"""The geometry of the report's charts: SVG paths in a fixed viewport, ticks in percent of the width and height.

The page stretches a chart to the available width, which would distort text in the drawing. Ticks are therefore given in
percent, and the template renders their labels as HTML.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from math import ceil, floor, log10

from streamingvlm.evaluation.report.stream_report import CacheFill, ReportTurn
from streamingvlm.inference.stats import percentile

WIDTH, HEIGHT = 1000, 200
_NUM_BINS = 250
_NUM_TICKS = 6
_STEPS_S = (10, 30, 60, 120, 300, 600, 1200, 1800, 3600, 7200, 14400, 43200, 86400)
# From the bottom of the stack to its top.
_LAYERS = (
    ("sink", "text sink", "sink_tokens"),
    ("window", "text window", "window_tokens"),
    ("turns", "turns kept whole", "turn_tokens"),
    ("vision", "vision", "vision_tokens"),
)


@dataclass(frozen=True)
class Tick:
    """A tick on an axis: its position in percent from the left or the top, and its label."""

    percent: float
    label: str


@dataclass(frozen=True)
class Area:
    """A filled shape or a line, with its CSS class (kind) and its entry in the legend."""

    kind: str
    label: str
    path: str
    value: str = ""


@dataclass(frozen=True)
class Chart:
    """A chart of WIDTH x HEIGHT units. line: a labelled bound; summary: the content in words."""

    summary: str
    areas: Sequence[Area]
    x_ticks: Sequence[Tick]
    y_ticks: Sequence[Tick]
    line: Tick | None = None
    width: int = field(default=WIDTH, init=False)
    height: int = field(default=HEIGHT, init=False)


def strip(turns: Iterable[ReportTurn], start_s: float, turn_s: float) -> dict[str, str]:
    """Draw a minute of the timeline, 60 units wide: true events above, the commentary below, by verdict."""
    marks: dict[str, list[str]] = {}
    for turn in turns:
        for kind, top, height in _marks_of(turn):
            x, width = turn.start_s - start_s, 0.82 * turn_s
            marks.setdefault(kind, []).append(f"M{x:g} {top:g}h{width:g}v{height:g}h{-width:g}z")
    return {kind: "".join(paths) for kind, paths in marks.items()}


def _marks_of(turn: ReportTurn) -> Iterable[tuple[str, float, float]]:
    if turn.truth:
        yield "truth", 0, 5
    if turn.said is None:
        yield "unwatched", 6, 5
    elif turn.said:
        yield {None: "said", 0.0: "right", 1.0: "wrong"}.get(turn.fault, "partly"), 6, 5
    elif turn.fault:
        yield "missed", 9.6, 1.4


def fault_chart(minutes: Sequence[tuple[float, int, int]]) -> Chart | None:
    """Draw the share of faulty turns per minute (start_s, num_faulty, num_turns) as bars; None below three minutes."""
    if len(minutes) < 3:
        return None
    end_s = minutes[-1][0] + 60
    shares = [num_faulty / num_turns for _, num_faulty, num_turns in minutes]
    top = max(0.05, *shares)
    bars = [
        f"M{_x(start_s, end_s)} {HEIGHT}h{_n(0.86 * 60 / end_s * WIDTH)}V{_y(share, top)}H{_x(start_s, end_s)}z"
        for (start_s, _, _), share in zip(minutes, shares, strict=True)
        if share
    ]
    overall = sum(num_faulty for _, num_faulty, _ in minutes) / sum(num_turns for _, _, num_turns in minutes)
    return Chart(
        f"Turns that are not right, by minute: {overall:.1%} in all, {max(shares):.0%} in the worst minute.",
        [Area("wrong", "not right", "".join(bars))],
        _time_ticks(end_s),
        [Tick(100 * (1 - share / top), f"{share:.0%}") for share in (0, top)],
    )


def cache_chart(turns: Sequence[ReportTurn], turn_s: float, capacity_tokens: int | None = None) -> Chart | None:
    """Draw the tokens in the cache, stacked by kind; None without counts."""
    filled = [turn for turn in turns if turn.fill is not None and turn.said is not None]
    if not filled:
        return None
    end_s = _end_s(turns, turn_s)
    # The fullest turn of each bin is shown, because memory must suffice for the peak.
    bins = [max(part, key=lambda turn: turn.fill.num_tokens) for part in _binned(filled)]
    most = max(turn.fill.num_tokens for turn in filled)
    top = max(most, capacity_tokens or 0) or 1
    last = filled[-1].fill
    return Chart(
        f"Tokens in the cache, at most {most:,}; at the end {_counts(last)}.",
        _layers(bins, end_s, turn_s, top),
        _time_ticks(end_s),
        _count_ticks(top),
        Tick(100 * (1 - capacity_tokens / top), f"capacity {capacity_tokens:,}") if capacity_tokens else None,
    )


def _layers(bins: Sequence[ReportTurn], end_s: float, turn_s: float, top: float) -> list[Area]:
    xs = [_x(turn.start_s, end_s) for turn in bins] + [_x(bins[-1].start_s + turn_s, end_s)]
    areas, below = [], [0] * len(bins)
    for kind, label, name in _LAYERS:
        above = [base + getattr(turn.fill, name) for base, turn in zip(below, bins, strict=True)]
        upper, lower = ([_y(value, top) for value in (*edge, edge[-1])] for edge in (above, below))
        outward = [f"{x} {y}" for x, y in zip(xs, upper, strict=True)]
        back = [f"{x} {y}" for x, y in zip(reversed(xs), reversed(lower), strict=True)]
        areas.append(Area(kind, label, f"M{'L'.join(outward + back)}z", f"{getattr(bins[-1].fill, name):,}"))
        below = above
    return areas


def _counts(fill: CacheFill) -> str:
    return ", ".join(f"{getattr(fill, name):,} of {label}" for _, label, name in _LAYERS)


def latency_chart(turns: Sequence[ReportTurn], turn_s: float) -> Chart | None:
    """Draw the latency of turns, median and slowest of each bin, with the real-time line; None without latencies."""
    timed = [turn for turn in turns if turn.latency_s > 0]
    if not timed:
        return None
    end_s, latencies_s = _end_s(turns, turn_s), [turn.latency_s for turn in timed]
    low, high = floor(log10(min(latencies_s))), log10(max(*latencies_s, turn_s)) + 0.12
    p50, p95 = (percentile(latencies_s, share) for share in (0.5, 0.95))

    def y(latency_s: float) -> float:
        return (high - log10(latency_s)) / (high - low)

    parts = list(_binned(timed))
    lines = {
        "slowest": [max(turn.latency_s for turn in part) for part in parts],
        "median": [percentile([turn.latency_s for turn in part], 0.5) for part in parts],
    }
    xs = [_x(part[0].start_s, end_s) for part in parts]
    late = sum(latency_s > turn_s for latency_s in latencies_s)
    return Chart(
        f"Work on a turn: median {duration(p50)}, 95th percentile {duration(p95)}, slowest "
        f"{duration(max(latencies_s))}; {late:,} of {len(timed):,} took longer than the {turn_s:g} s of a turn.",
        [
            Area(kind, kind, "M" + "L".join(f"{x} {_n(y(v) * HEIGHT)}" for x, v in zip(xs, values, strict=True)))
            for kind, values in lines.items()
        ],
        _time_ticks(end_s),
        [Tick(100 * y(10.0**power), duration(10.0**power)) for power in range(low, ceil(high)) if power <= high],
        Tick(100 * y(turn_s), f"real time, {turn_s:g} s"),
    )


def _binned(turns: Sequence[ReportTurn]) -> Iterable[Sequence[ReportTurn]]:
    num_bins = min(_NUM_BINS, len(turns))
    cuts = [len(turns) * number // num_bins for number in range(num_bins + 1)]
    return [turns[a:b] for a, b in pairwise(cuts)]


def _end_s(turns: Sequence[ReportTurn], turn_s: float) -> float:
    return turns[-1].start_s + turn_s


def _time_ticks(end_s: float) -> list[Tick]:
    step_s = next((step for step in _STEPS_S if end_s / step <= _NUM_TICKS), _STEPS_S[-1])
    times = range(0, int(end_s) + 1, step_s)
    return [Tick(100 * time_s / end_s, _time(time_s, step_s)) for time_s in times]


def _time(time_s: int, step_s: int) -> str:
    if step_s >= 3600:
        return f"{time_s / 3600:g} h"
    return f"{time_s // 60} min" if step_s >= 60 else f"{time_s} s"


def _count_ticks(top: float) -> list[Tick]:
    rough = 10 ** floor(log10(top))
    step = next(rough * share for share in (0.2, 0.5, 1, 2) if top / (rough * share) <= 5)
    return [Tick(100 * (1 - number * step / top), f"{number * step:,.0f}") for number in range(int(top / step) + 1)]


def duration(seconds: float) -> str:
    """Format a short time: 8.5 ms, 85 ms, 1.35 s."""
    if seconds >= 0.9995:
        return f"{seconds:.3g} s"
    return f"{seconds * 1e3:.0f} ms" if seconds >= 0.00995 else f"{seconds * 1e3:.2g} ms"


def _x(time_s: float, end_s: float) -> str:
    return _n(time_s / end_s * WIDTH)


def _y(value: float, top: float) -> str:
    return _n((1 - value / top) * HEIGHT)


def _n(value: float) -> str:
    return f"{value:.1f}".removesuffix(".0")
