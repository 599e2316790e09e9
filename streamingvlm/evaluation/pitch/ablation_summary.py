"""Tables of runs: measures by seed and their means, as Markdown and as JSON."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from math import isnan, nan
from statistics import fmean
from typing import Any

from streamingvlm.evaluation.pitch.ablation_tables import FIFTHS, AblationRow, AblationTable
from streamingvlm.evaluation.pitch.run import PitchRun, none_if_nan

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


def mean(values: Sequence[float]) -> float:
    """Return the mean of one value per seed; seeds without a value (NaN) are left out. NaN if none has one."""
    known = [float(value) for value in values if not isnan(value)]
    return fmean(known) if known else nan


@dataclass(frozen=True)
class AblationResult:
    """A table with the runs of each row, in the order of the rows and of the seeds."""

    table: AblationTable
    runs: Mapping[str, Sequence[PitchRun]]

    def values(self, row: AblationRow, column: str) -> list[float]:
        """Return a figure of a row by seed."""
        return [MEASURES[column].of(run) for run in self.runs[row.name]]

    def markdown(self) -> str:
        """Return the tables in Markdown, without a heading: one per group of columns, the paper's figures last.

        A row is a mean over the seeds. The first table has the rows of the seeds, too.
        """
        names = [row.name for row in self.table.rows]
        first, *others = self.table.column_groups
        blocks = [{column: self._means(column) for column in group} for group in others]
        if paper := self._paper_columns():
            fits = blocks and 1 + len(blocks[-1]) + len(paper) <= _MAX_COLUMNS
            blocks = [*blocks[:-1], blocks[-1] | paper] if fits else [*blocks, paper]
        tables = [self._by_seed(first), *(_markdown_table(names, block) for block in blocks)]
        return "\n\n".join([*tables, "\n".join(self._notes())])

    def _means(self, column: str) -> list[str]:
        return [_cell(mean(self.values(row, column)), column) for row in self.table.rows]

    def _by_seed(self, columns: Sequence[str]) -> str:
        """Return the table of some columns, each mean above its seeds if there are several."""
        names, cells = [], {column: [] for column in columns}
        for row in self.table.rows:
            runs = self.runs[row.name]
            seeds = [f"· seed {run.seed}" for run in runs] if len(runs) > 1 else []
            names += [row.name, *seeds]
            for column, of_column in cells.items():
                values = self.values(row, column)
                of_column += [_cell(value, column) for value in [mean(values), *values][: 1 + len(seeds)]]
        return _markdown_table(names, cells)

    def _paper_columns(self) -> dict[str, list[str]]:
        return {
            heading: [row.paper[index] if row.paper else "–" for row in self.table.rows]
            for index, heading in enumerate(self.table.paper)
        }

    def _notes(self) -> list[str]:
        runs = self.runs[self.table.rows[0].name]
        seeds = ", ".join(str(run.seed) for run in runs)
        spread = "; a row is the mean over the seeds" if len(runs) > 1 else ""
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
                column: {
                    "mean": none_if_nan(mean(values := self.values(row, column))),
                    "by_seed": [none_if_nan(value) for value in values],
                }
                for column in self.table.columns
            },
            "stopped": [run.stopped for run in runs],
        }


def _cell(value: float, column: str) -> str:
    return "–" if isnan(value) else f"{value:,.{MEASURES[column].digits}f}"


def _markdown_table(row_names: Sequence[str], columns: Mapping[str, Sequence[str]]) -> str:
    """Format a table of columns of equal length, with the names of the rows first."""
    heads = ["", *columns]
    rows = [heads, ["---"] * len(heads), *zip(row_names, *columns.values(), strict=True)]
    return "\n".join(f"| {' | '.join(cells)} |" for cells in rows)


def _ratio(part: float, whole: float) -> float:
    return part / whole if whole else nan
