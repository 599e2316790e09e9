"""Ablation tables on Pitch: stream the runs that are missing, then write tables, figures and JSON."""

from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from rich.progress import Progress

from streamingvlm.atomic import write_json
from streamingvlm.cli.checkout import commit
from streamingvlm.cli.evaluations.pitch import check_style
from streamingvlm.config import at_least
from streamingvlm.errors import ConfigError
from streamingvlm.evaluation.documents import check_writable, write_part
from streamingvlm.evaluation.pitch.ablation_figures import draw
from streamingvlm.evaluation.pitch.ablation_runs import AblationRun, RunSetup, read_runs, run_missing
from streamingvlm.evaluation.pitch.ablation_summary import AblationResult
from streamingvlm.evaluation.pitch.ablation_tables import AblationTable, ablation_table
from streamingvlm.evaluation.pitch.run_report import report_of
from streamingvlm.evaluation.report.rendering import write_report
from streamingvlm.inference.limits import StreamLimits


def evaluate(options: dict[str, Any]):
    """Stream all runs of the tables, then print and write the tables."""
    check(options)
    setup = setup_of(options)
    tables = [table_of(name, setup, options["checkpoints"]) for name in options["tables"]]
    runs = {table.name: runs_of(table, setup, options["seeds"]) for table in tables}
    folder = Path(options["folder"])
    results = Path(options["results_path"] or folder / "results.md")
    check_writable(folder / "runs" / "a run", results)
    with Progress() as progress:
        bar = progress.add_task("streaming", total=None)
        run_missing(
            [run for of_table in runs.values() for run in of_table],
            folder / "runs",
            workers=options["workers"],
            on_done=lambda done, total: progress.update(bar, completed=done, total=total),
        )
    for table in tables:
        result = result_of(table, runs[table.name], folder)
        print(f"{table.title}\n\n{result.markdown()}\n")
        write(result, results)
    if options["pages"]:
        write_pages([run for of_table in runs.values() for run in of_table], folder)


def check(options: dict[str, Any]):
    """Raise ConfigError now for errors that would otherwise end the run after hours."""
    check_style(options["style"])
    for name, what in (("duration_s", "seconds of stream"), ("workers", "processes")):
        at_least(name, options[name], 1, what)
    for name in ("tables", "seeds"):
        if not isinstance(options[name], list) or not options[name]:
            raise ConfigError(f"{name}={options[name]} is no list; write {name}=[a,b]")
    if find_spec("matplotlib") is None:
        raise ConfigError('matplotlib is not installed, and tables need it; pip install "streamingvlm[eval]"')


def setup_of(options: dict[str, Any]) -> RunSetup:
    """Return the settings that all runs share."""
    shared = {name: options[name] for name in ("model", "duration_s", "cache", "video", "sampling", "style")}
    return RunSetup(**shared, limits=StreamLimits(**options["limits"]), commit=commit())


def table_of(name: str, setup: RunSetup, checkpoints: dict[str, str | None]) -> AblationTable:
    """Return a table for the model of the setup."""
    base = setup.session_settings()
    return ablation_table(name, base=base["cache"], fps=base["video"].fps, checkpoints=checkpoints)


def runs_of(table: AblationTable, setup: RunSetup, seeds: list[int]) -> list[AblationRun]:
    """Return the runs of a table, row by row. Raises ConfigError for a row that the settings do not allow."""
    return [AblationRun(row, seed, setup) for row in table.rows for seed in dict.fromkeys(seeds)]


def result_of(table: AblationTable, runs: list[AblationRun], folder: Path) -> AblationResult:
    """Return the table with the records of its runs."""
    by_row = {row.name: [run for run in runs if run.row is row] for row in table.rows}
    return AblationResult(table, {name: read_runs(of_row, folder / "runs") for name, of_row in by_row.items()})


def write(result: AblationResult, path: Path):
    """Write the table into the document, with its figure and its JSON beside it."""
    stem = f"pitch-{result.table.name.replace('_', '-')}"
    draw(result, path.with_name(f"{stem}.png"))
    write_json(path.with_name(f"{stem}.json"), result.document(), indent=1)
    title = result.table.title
    links = f"![{title}]({stem}.png)\n\nEvery value, settings and commit: [{stem}.json]({stem}.json)."
    write_part(path, f"benchmark=pitch_tables {result.table.name}", f"### {title}\n\n{result.markdown()}\n\n{links}")


def write_pages(runs: list[AblationRun], folder: Path):
    """Write a report for every run."""
    for run in {run.path: run for run in runs}.values():
        (record,) = read_runs([run], folder / "runs")
        page = folder / "pages" / run.path.with_suffix(".html").name
        write_report(report_of(replace(record, name=run.row.name)), page)
