"""Tables of runs: measures, means over seeds with intervals, as Markdown and as JSON."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from math import isnan, nan, sqrt
from statistics import fmean, stdev
from typing import Any

from streamingvlm.evaluation.pitch.ablation_tables import FIFTHS, AblationRow, AblationTable
from streamingvlm.evaluation.pitch.run import PitchRun, none_if_nan

CONFIDENCE = 0.95
_MAX_COLUMNS = 6


@dataclass(frozen=True)
class Measure:
    """A figure of a run, and its digits in a table."""

    of: Callable[[PitchRun], float]
    digits: int = 3


def _fifth(number: int) -> Measure:
    return Measure(lambda run: run.fifths[number].macro_f1)


MEASURES: Mapping[str, Measure] = {
    "macro-F1": Measure(lambda run: run.report.macro_f1),
    "lines right": Measure(lambda run: run.right_share),
    "side": Measure(lambda run: run.report.side_accuracy),
    "club": Measure(lambda run: run.report.club_accuracy),
    "score": Measure(lambda run: run.report.score_accuracy),
    "score at goals": Measure(lambda run: run.report.goal_score_accuracy),
    "silence": Measure(lambda run: run.report.silence_f1),
    "late": Measure(lambda run: run.report.late_share),
    "delay, s": Measure(lambda run: run.report.mean_delay_s, 1),
    "time per token, ms": Measure(lambda run: 1e3 * run.token_s, 1),
    "cache, tokens": Measure(lambda run: run.max_cache_tokens, 0),
    "stream, s": Measure(lambda run: len(run.watched), 0),
    **{name: _fifth(number) for number, name in enumerate(FIFTHS[:5])},
    FIFTHS[5]: Measure(lambda run: _ratio(run.fifths[4].macro_f1, run.fifths[0].macro_f1)),
}


@dataclass(frozen=True)
class Estimate:
    """A mean over seeds and half the width of its interval, NaN for fewer than two seeds."""

    mean: float
    half_width: float

    def text(self, digits: int) -> str:
        """Format as a cell of a table: "–" if no seed has a value."""
        if isnan(self.mean):
            return "–"
        spread = "" if isnan(self.half_width) else f" ± {self.half_width:,.{digits}f}"
        return f"{self.mean:,.{digits}f}{spread}"


def estimate(values: Sequence[float], confidence: float = CONFIDENCE) -> Estimate:
    """Return the mean of one value per seed with Student's interval; seeds without a value (NaN) are left out.

    Not a bootstrap: three seeds have only ten resamples, and the interval would be too narrow.
    """
    known = [float(value) for value in values if not isnan(value)]
    if not known:
        return Estimate(nan, nan)
    if len(known) == 1:
        return Estimate(known[0], nan)
    from scipy.stats import t as student  # an optional dependency; a single stream is scored without it

    quantile = float(student.ppf((1 + confidence) / 2, len(known) - 1))
    return Estimate(fmean(known), quantile * stdev(known) / sqrt(len(known)))


@dataclass(frozen=True)
class AblationResult:
    """A table with the runs of each row, in the order of the rows and of the seeds."""

    table: AblationTable
    runs: Mapping[str, Sequence[PitchRun]]

    def estimates(self, row: AblationRow) -> dict[str, Estimate]:
        """Return the figures of a row by column."""
        return {name: estimate([MEASURES[name].of(run) for run in self.runs[row.name]]) for name in self.table.columns}

    def markdown(self) -> str:
        """Return the tables in Markdown, without a heading: one per group of columns, the paper's figures last."""
        estimates = {row.name: self.estimates(row) for row in self.table.rows}
        blocks = [
            {name: [estimates[row.name][name].text(MEASURES[name].digits) for row in self.table.rows] for name in group}
            for group in self.table.column_groups
        ]
        if paper := self._paper_columns():
            fits = 1 + len(blocks[-1]) + len(paper) <= _MAX_COLUMNS
            blocks = [*blocks[:-1], blocks[-1] | paper] if fits else [*blocks, paper]
        names = [row.name for row in self.table.rows]
        return "\n\n".join([*(_markdown_table(names, block) for block in blocks), "\n".join(self._notes())])

    def _paper_columns(self) -> dict[str, list[str]]:
        return {
            heading: [row.paper[index] if row.paper else "–" for row in self.table.rows]
            for index, heading in enumerate(self.table.paper)
        }

    def _notes(self) -> list[str]:
        runs = self.runs[self.table.rows[0].name]
        seeds = ", ".join(str(run.seed) for run in runs)
        spread = f"; mean ± half the {CONFIDENCE:.0%} interval of Student's t over the seeds" if len(runs) > 1 else ""
        matches = "Matches of seeds" if len(runs) > 1 else "Match of seed"
        setup = f"{matches} {seeds}, {len(runs[0].seconds):,} s each{spread}."
        ended = [
            f"{run.name}, seed {run.seed}: {run.stopped}." for row in self.runs.values() for run in row if run.stopped
        ]
        return [line for line in (f"{setup} {self.table.note}".strip(), " ".join(ended)) if line]

    def document(self) -> dict[str, Any]:
        """Return the table as JSON: every value, seeds, commits and settings."""
        runs = [run for row in self.runs.values() for run in row]
        return {
            "table": self.table.name,
            "title": self.table.title,
            "seeds": [run.seed for run in self.runs[self.table.rows[0].name]],
            "duration_s": len(runs[0].seconds),
            "commits": sorted({run.commit for run in runs if run.commit}),
            "rows": [self._row_document(row) for row in self.table.rows],
        }

    def _row_document(self, row: AblationRow) -> dict[str, Any]:
        runs = self.runs[row.name]
        return {
            "name": row.name,
            "paper": list(row.paper) or None,
            "settings": runs[0].settings,
            "figures": {
                name: {
                    "mean": none_if_nan(figure.mean),
                    "half_width": none_if_nan(figure.half_width),
                    "by_seed": [none_if_nan(MEASURES[name].of(run)) for run in runs],
                }
                for name, figure in self.estimates(row).items()
            },
            "stopped": [run.stopped for run in runs],
        }


def _markdown_table(row_names: Sequence[str], columns: Mapping[str, Sequence[str]]) -> str:
    """Format a table of columns of equal length, with the names of the rows first."""
    heads = ["", *columns]
    rows = [heads, ["---"] * len(heads), *zip(row_names, *columns.values(), strict=True)]
    return "\n".join(f"| {' | '.join(cells)} |" for cells in rows)


def _ratio(part: float, whole: float) -> float:
    return part / whole if whole else nan
