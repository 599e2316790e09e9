"""Figures of the ablation tables: means along the stream, or rows beside each other, a mark for each seed."""

from collections.abc import Callable, Sequence
from dataclasses import replace
from itertools import pairwise
from math import isnan
from pathlib import Path
from statistics import fmean

from streamingvlm.evaluation.pitch.ablation_summary import AblationResult, mean
from streamingvlm.evaluation.pitch.run import PitchRun, RunSecond, right_share
from streamingvlm.plotting import COLOURS, new_figure, save_figure, style_figure

SeriesMeasure = Callable[[PitchRun, int], list[float]]

_NUM_PARTS = 20
_COMPARED = ("macro-F1", "lines right", "side", "club", "score", "silence")


def draw(result: AblationResult, path: Path):
    """Draw a table as a PNG. Raises ConfigError if matplotlib is not installed, OSError."""
    save_figure(_along_the_stream(result) if result.table.by_time else _row_by_row(result), path)


def _along_the_stream(result: AblationResult):
    from matplotlib.ticker import LogFormatter

    figure = new_figure(figsize=(11, 3.6))
    quality, lines, cost = figure.subplots(1, 3)
    for (name, runs), colour in zip(result.runs.items(), COLOURS, strict=False):
        quality.plot(*_by_part(runs, _macro_f1), label=name, color=colour)
        lines.plot(*_by_part(runs, _right_share), color=colour)
        cost.plot(*_by_part(runs, _token_ms), color=colour)
    quality.set(xlabel="stream, s", ylabel="macro-F1", ylim=(0, 1.03))
    lines.set(xlabel="stream, s", ylabel="lines right", ylim=(0, 1.03))
    cost.set(xlabel="stream, s", ylabel="time per token, ms", yscale="log")
    cost.yaxis.set_major_formatter(LogFormatter())
    cost.yaxis.set_minor_formatter(LogFormatter(minor_thresholds=(2, 0.5)))
    figure.legend(loc="outside lower center", ncols=4, frameon=False)
    return style_figure(figure, result.table.title)


def _row_by_row(result: AblationResult):
    rows = result.table.rows
    figure = new_figure(figsize=(11, 1 + 0.42 * len(rows)))
    names = [name for name in _COMPARED if name in result.table.columns]
    for panel, name in zip(figure.subplots(1, len(names), sharey=True, squeeze=False)[0], names, strict=True):
        for at, row in enumerate(rows):
            values = result.values(row, name)
            panel.plot(values, [at] * len(values), "|", color=COLOURS[0], markersize=9)
            panel.plot([mean(values)], [at], "o", color=COLOURS[0])
        panel.set(xlabel=name, xlim=(-0.03, 1.03), yticks=range(len(rows)), yticklabels=[row.name for row in rows])
    panel.invert_yaxis()
    return style_figure(figure, result.table.title)


def _by_part(runs: Sequence[PitchRun], measure: SeriesMeasure) -> tuple[list[float], list[float]]:
    """Return the middle of each part of the stream, and the mean of a measure over the runs that have a value there."""
    num_seconds = len(runs[0].seconds)
    num_parts = min(_NUM_PARTS, max(1, num_seconds // 10))
    by_run = [measure(run, num_parts) for run in runs]
    middles, means = [], []
    for part, values in enumerate(zip(*by_run, strict=True)):
        if known := [value for value in values if not isnan(value)]:
            middles.append((part + 0.5) * num_seconds / num_parts)
            means.append(fmean(known))
    return middles, means


def _macro_f1(run: PitchRun, num_parts: int) -> list[float]:
    return [report.macro_f1 for report in run.parts(num_parts)]


def _right_share(run: PitchRun, num_parts: int) -> list[float]:
    return [right_share(part) for part in _split(run, num_parts)]


def _token_ms(run: PitchRun, num_parts: int) -> list[float]:
    return [1e3 * replace(run, seconds=part).token_s for part in _split(run, num_parts)]


def _split(run: PitchRun, num_parts: int) -> list[tuple[RunSecond, ...]]:
    cuts = [len(run.seconds) * part // num_parts for part in range(num_parts + 1)]
    return [run.seconds[a:b] for a, b in pairwise(cuts)]
