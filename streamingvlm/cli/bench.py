"""``streamingvlm bench``: measure, show tables, and save the record."""

import json
import logging
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.markup import escape
from rich.progress import Progress
from rich.table import Table

from streamingvlm.benchmark.batching import measure_batching
from streamingvlm.benchmark.chart import draw_modes
from streamingvlm.benchmark.load import Trial, max_frames_per_s, max_streams
from streamingvlm.benchmark.low_precision import measure_low_precision
from streamingvlm.benchmark.mode_summary import summarize_mode
from streamingvlm.benchmark.modes import StreamSettings, measure_mode
from streamingvlm.benchmark.random_weights import random_model
from streamingvlm.benchmark.record_tables import RecordTable, outcome, tables_of
from streamingvlm.benchmark.roofline import Costs, measure_ceilings, summarize_roofline
from streamingvlm.cli.bench_record import make_record, save_record
from streamingvlm.errors import ConfigError
from streamingvlm.inference.limits import StreamLimits
from streamingvlm.model.loading import StreamingModel, device_named, dtype_named, load_model
from streamingvlm.model.quantization import quantization_named, quantize_

Options = Mapping[str, Any]
_PIPE_WIDTH = 180


def bench(options: Options):
    """Measure the requested parts; print tables and, as the last line, the record, which is saved as well."""
    check_options(options)
    console = Console(stderr=True)
    with torch_threads(options["num_threads"]), without_warnings("streamingvlm.inference.stream_config"):
        model = open_model(options)
        record = make_record("streaming", model.device, settings=record_settings(model, options))
        for part in options["parts"]:
            console.print(f"measuring {part}")
            record |= PARTS[part](model, options, console)
    for table in tables_of(record):
        print_table(table)
    if options["result_folder"]:
        save(record, Path(options["result_folder"]), console)
    print(json.dumps(record))


@contextmanager
def without_warnings(name: str) -> Iterator[None]:
    """Log no warnings of a module: settings of a benchmark differ from those of training on purpose, in each run."""
    logger = logging.getLogger(name)
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        logger.setLevel(level)


def check_options(options: Options):
    """Raise ConfigError for options that would otherwise fail after minutes of work."""
    parts = options["parts"]
    if not isinstance(parts, list) or not parts or (unknown := [part for part in parts if part not in PARTS]):
        shown = unknown[0] if isinstance(parts, list) and parts else parts
        raise ConfigError(f"parts={shown} is unknown; give a list of {', '.join(PARTS)}")
    if options.get("architecture") and "low_precision" in parts:
        raise ConfigError("parts=[low_precision] scores the commentary of trained weights; choose model=pitch")


def record_settings(model: StreamingModel, options: Options) -> dict[str, Any]:
    """Return the settings that determine the results, for the record."""
    names = ("parts", "footage", "duration_s", "video", "cache", "sampling", *options["parts"])
    weights = {"name": model.name, "dtype": str(model.dtype).removeprefix("torch.")}
    return {"model": weights | {"quantization": options["model"]["quantization"]}} | {n: options[n] for n in names}


def open_model(options: Options) -> StreamingModel:
    """Load the checkpoint that the options name, or build their architecture with random weights."""
    architecture, weights = options.get("architecture"), options["model"]
    if not architecture:
        return load_model(**weights)
    device = device_named(weights["device"])
    dtype = dtype_named(weights["dtype"], device)
    model = random_model(architecture, device=device, dtype=dtype, cpu_kernels=weights["cpu_kernels"])
    if weights["quantization"]:
        quantize_(model.text_model, quantization_named(weights["quantization"], dtype))
    return model


def stream_settings(options: Options) -> StreamSettings:
    """Return the settings shared by all streams."""
    return StreamSettings(video=options["video"], sampling=options["sampling"], **options["footage"])


def bench_modes(model: StreamingModel, options: Options, console: Console) -> dict[str, Any]:
    """Measure one stream in each mode, and its roofline."""
    ceilings, costs = measure_ceilings(model.device, model.dtype), Costs.of(model, options["cache"]["dtype"])
    modes = {}
    with Progress(console=console) as progress:
        for name, changes in options["modes"].items():
            task = progress.add_task(name, total=options["duration_s"])
            run = measure_mode(
                model,
                options["cache"] | changes,
                stream_settings(options),
                duration_s=options["duration_s"],
                limits=StreamLimits(**options["limits"]),
                on_turn=lambda turn, task=task: progress.update(task, completed=turn.start_s + 1),
            )
            modes[name] = summarize_mode(run)
            if run.turns:
                modes[name]["roofline"] = summarize_roofline(run, costs, ceilings)
    return {"ceilings": vars(ceilings), "costs": vars(costs), "modes": modes}


def bench_frames_per_s(model: StreamingModel, options: Options, console: Console) -> dict[str, Any]:
    """Search the highest frame rate of one stream."""
    found = max_frames_per_s(
        model,
        options["cache"],
        stream_settings(options),
        **options["frames_per_s"],
        on_trial=_trial_printer(console, "frames/s"),
    )
    return {"frames_per_s": found}


def bench_streams(model: StreamingModel, options: Options, console: Console) -> dict[str, Any]:
    """Search the highest number of streams of one engine."""
    found = max_streams(
        model,
        options["cache"],
        stream_settings(options),
        **options["streams"],
        on_trial=_trial_printer(console, "streams"),
    )
    return {"streams": found}


def bench_batching(model: StreamingModel, options: Options, console: Console) -> dict[str, Any]:
    """Compare one engine with sequential sessions, by number of threads and of streams."""
    settings = dict(options["batching"])
    thread_counts, stream_counts = settings.pop("num_threads"), settings.pop("num_streams")
    cases = []
    for num_threads in thread_counts:
        with torch_threads(num_threads):
            for num_streams in stream_counts:
                console.print(f"  {num_streams} streams, {num_threads} threads")
                case = measure_batching(
                    model, options["cache"], stream_settings(options), num_streams=num_streams, **settings
                )
                cases.append(case)
    return {"batching": cases}


def bench_low_precision(_model: StreamingModel, options: Options, console: Console) -> dict[str, Any]:
    """Measure the effect of low-precision weights and caches on the commentary."""
    settings = options["low_precision"]
    base = {"model": options["model"], "cache": options["cache"]}
    cases = {
        name: {part: base[part] | changes.get(part, {}) for part in base} for name, changes in settings["cases"].items()
    }

    def print_case(name: str):
        console.print(f"  {name}")

    results = measure_low_precision(cases, settings["seeds"], settings["duration_s"], on_case=print_case)
    return {"low_precision": results}


PARTS: dict[str, Callable[[StreamingModel, Options, Console], dict[str, Any]]] = {
    "modes": bench_modes,
    "frames_per_s": bench_frames_per_s,
    "streams": bench_streams,
    "batching": bench_batching,
    "low_precision": bench_low_precision,
}


@contextmanager
def torch_threads(num_threads: int | None) -> Iterator[None]:
    """Set the number of torch's CPU threads inside the block; None keeps it."""
    before = torch.get_num_threads()
    torch.set_num_threads(num_threads or before)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def _trial_printer(console: Console, unit: str) -> Callable[[Trial], None]:
    def print_trial(trial: Trial):
        console.print(f"  {trial.load} {unit}: {outcome(trial.passed, trial.stop_reason)}", markup=False)

    return print_trial


def print_table(table: RecordTable):
    """Print a table to standard output."""
    shown = Table(*table.columns, title=escape(table.title), title_justify="left")
    for row in table.rows:
        shown.add_row(*map(escape, row))
    console = Console()
    # In a pipe rich assumes 80 columns and would wrap the cells.
    console.width = console.width if console.is_terminal else _PIPE_WIDTH
    console.print(shown)


def save(record: dict[str, Any], folder: Path, console: Console):
    """Save the record and, if matplotlib is installed, the figure of its modes next to it."""
    name = record["settings"]["model"]["name"]
    path = save_record(record, folder, name.rstrip("/").rpartition("/")[2])
    console.print(f"the record is in {path}", markup=False)
    if "modes" not in record:
        return
    title = f"{name} on {record['machine']['device']}, {record['date'][:10]}"
    try:
        draw_modes(record["modes"], path.with_suffix(".png"), title=title)
    except ConfigError as error:  # no matplotlib: the record is saved all the same
        console.print(str(error), markup=False)
