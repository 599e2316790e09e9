"""Make tables of ablations on Pitch: watch what is not yet watched, then write tables, figures and their figures."""

from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from checkout import commit
from evaluations.pitch import check_style
from rich.progress import Progress

from streamingvlm.atomic import write_json
from streamingvlm.config import at_least
from streamingvlm.errors import ConfigError
from streamingvlm.evaluation.documents import check_writable, write_part
from streamingvlm.evaluation.pitch.figures import draw
from streamingvlm.evaluation.pitch.jobs import Job, Setup, read_runs, watch_missing
from streamingvlm.evaluation.pitch.page import as_watched
from streamingvlm.evaluation.pitch.summary import Result
from streamingvlm.evaluation.pitch.tables import Table, table_named
from streamingvlm.evaluation.report.page import write_report
from streamingvlm.inference.limits import StreamLimits


def evaluate(options: dict[str, Any]):
    """Watch all runs of the tables, then print and write them."""
    check(options)
    setup = setup_of(options)
    tables = [table_of(name, setup, options["checkpoints"]) for name in options["tables"]]
    jobs = {table.name: jobs_of(table, setup, options["seeds"]) for table in tables}
    folder = Path(options["folder"])
    results = Path(options["results_path"] or folder / "results.md")
    check_writable(folder / "runs" / "a run", results)
    with Progress() as progress:
        bar = progress.add_task("watching", total=None)
        watch_missing(
            [job for of_table in jobs.values() for job in of_table],
            folder / "runs",
            workers=options["workers"],
            on_done=lambda done, total: progress.update(bar, completed=done, total=total),
        )
    for table in tables:
        result = result_of(table, jobs[table.name], folder)
        print(f"{table.title}\n\n{result.markdown()}\n")
        write(result, results)
    if options["pages"]:
        write_pages([job for of_table in jobs.values() for job in of_table], folder)


def check(options: dict[str, Any]):
    """Raise ConfigError for what would fail only after hours."""
    check_style(options["style"])
    for name, what in (("duration_s", "seconds of stream"), ("workers", "processes")):
        at_least(name, options[name], 1, what)
    for name in ("tables", "seeds"):
        if not isinstance(options[name], list) or not options[name]:
            raise ConfigError(f"{name}={options[name]} is no list; write {name}=[a,b]")
    if missing := [name for name in ("matplotlib", "scipy") if find_spec(name) is None]:
        raise ConfigError(f'{missing[0]} is not installed, and tables need it; pip install "streamingvlm[eval]"')


def setup_of(options: dict[str, Any]) -> Setup:
    """What all runs share."""
    names = ("model", "duration_s", "cache", "video", "sampling", "style")
    return Setup(**{name: options[name] for name in names}, limits=StreamLimits(**options["limits"]), commit=commit())


def table_of(name: str, setup: Setup, checkpoints: dict[str, str | None]) -> Table:
    """The rows of a table, for the model that is watched with."""
    base = setup.session_settings()
    return table_named(name, base=base["cache"], fps=base["video"].fps, checkpoints=checkpoints)


def jobs_of(table: Table, setup: Setup, seeds: list[int]) -> list[Job]:
    """The runs of a table, row by row; a row that the settings do not allow is told now."""
    return [Job(row, seed, setup) for row in table.rows for seed in dict.fromkeys(seeds)]


def result_of(table: Table, jobs: list[Job], folder: Path) -> Result:
    """The table with its runs."""
    by_row = {row.name: [job for job in jobs if job.row is row] for row in table.rows}
    return Result(table, {name: read_runs(of_row, folder / "runs") for name, of_row in by_row.items()})


def write(result: Result, path: Path):
    """Write the table into the document, its figure and its JSON beside it."""
    stem = f"pitch-{result.table.name.replace('_', '-')}"
    draw(result, path.with_name(f"{stem}.png"))
    write_json(path.with_name(f"{stem}.json"), result.document(), indent=1)
    title = result.table.title
    links = f"![{title}]({stem}.png)\n\nEvery value, settings and commit: [{stem}.json]({stem}.json)."
    write_part(path, f"benchmark=pitch_tables {result.table.name}", f"### {title}\n\n{result.markdown()}\n\n{links}")


def write_pages(jobs: list[Job], folder: Path):
    """Write a page for every run."""
    for job in {job.path: job for job in jobs}.values():
        (run,) = read_runs([job], folder / "runs")
        write_report(as_watched(replace(run, name=job.row.name)), folder / "pages" / job.path.with_suffix(".html").name)
