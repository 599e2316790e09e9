"""What ``bench.py`` does once its command line is understood."""

import json
import logging
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from bench_record import keep, record_of
from rich.console import Console
from rich.markup import escape
from rich.progress import Progress
from rich.table import Table as RichTable

from streamingvlm.benchmark.chart import draw_modes
from streamingvlm.benchmark.figures import mode_figures
from streamingvlm.benchmark.lighter import measure_lighter
from streamingvlm.benchmark.load import Trial, measure_batching, most_frames_per_s, most_streams
from streamingvlm.benchmark.modes import StreamSettings, measure_mode
from streamingvlm.benchmark.random_weights import random_model
from streamingvlm.benchmark.roofline import Costs, measure_ceilings, roofline_figures
from streamingvlm.benchmark.tables import Table, tables_of
from streamingvlm.errors import ConfigError
from streamingvlm.inference.limits import StreamLimits
from streamingvlm.model.loading import StreamingModel, device_named, dtype_named, load_model
from streamingvlm.model.quantization import quantization_named, quantize_

Options = Mapping[str, Any]
_WIDTH = 180


def bench(options: Options):
    """Measure the parts that are asked for; show tables, and as the last line the record, which is also kept."""
    check(options)
    # What is shown is not what the model was trained for, and is not listened to.
    logging.getLogger("streamingvlm.inference.setup").setLevel(logging.ERROR)
    console = Console(stderr=True)
    with torch_threads(options["num_threads"]):
        model = model_of(options)
        record = record_of("streaming", model.device, settings=settings_of(model, options))
        for part in options["parts"]:
            console.print(f"measuring {part}")
            record |= PARTS[part](model, options, console)
    for table in tables_of(record):
        show(table)
    if options["result_folder"]:
        write(record, Path(options["result_folder"]), console)
    print(json.dumps(record))


def check(options: Options):
    """Raise ConfigError for what would fail only after minutes."""
    parts = options["parts"]
    if not isinstance(parts, list) or not parts or (unknown := [part for part in parts if part not in PARTS]):
        shown = unknown[0] if isinstance(parts, list) and parts else parts
        raise ConfigError(f"parts={shown} is unknown; give a list of {', '.join(PARTS)}")
    if options.get("architecture") and "lighter" in parts:
        raise ConfigError("parts=[lighter] scores what is said, which random weights cannot; choose model=pitch")


def settings_of(model: StreamingModel, options: Options) -> dict[str, Any]:
    """What decides the figures, for the record."""
    names = ("parts", "footage", "duration_s", "video", "cache", "sampling", *options["parts"])
    weights = {"name": model.name, "dtype": str(model.dtype).removeprefix("torch.")}
    return {"model": weights | {"quantization": options["model"]["quantization"]}} | {n: options[n] for n in names}


def model_of(options: Options) -> StreamingModel:
    """The model that the options describe: a checkpoint, or random weights of an architecture."""
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
    """What all streams are opened with."""
    return StreamSettings(video=options["video"], sampling=options["sampling"], **options["footage"])


def bench_modes(model: StreamingModel, options: Options, console: Console) -> dict[str, Any]:
    """A stream under each policy, and the floor beside it."""
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
            modes[name] = mode_figures(run)
            if run.turns:
                modes[name]["roofline"] = roofline_figures(run, costs, ceilings)
    return {"ceilings": vars(ceilings), "costs": vars(costs), "modes": modes}


def bench_frames_per_s(model: StreamingModel, options: Options, console: Console) -> dict[str, Any]:
    """The highest rate of one stream."""
    found = most_frames_per_s(
        model,
        options["cache"],
        stream_settings(options),
        **options["frames_per_s"],
        on_trial=_telling(console, "frames/s"),
    )
    return {"frames_per_s": found}


def bench_streams(model: StreamingModel, options: Options, console: Console) -> dict[str, Any]:
    """The most streams of one engine."""
    found = most_streams(
        model, options["cache"], stream_settings(options), **options["streams"], on_trial=_telling(console, "streams")
    )
    return {"streams": found}


def bench_batching(model: StreamingModel, options: Options, console: Console) -> dict[str, Any]:
    """An engine against sessions in turn, by number of threads and of streams."""
    settings = dict(options["batching"])
    threads, numbers = settings.pop("num_threads"), settings.pop("num_streams")
    cases = []
    for num_threads in threads:
        with torch_threads(num_threads):
            for number in numbers:
                console.print(f"  {number} streams, {num_threads} threads")
                case = measure_batching(
                    model, options["cache"], stream_settings(options), num_streams=number, **settings
                )
                cases.append(case)
    return {"batching": cases}


def bench_lighter(_model: StreamingModel, options: Options, console: Console) -> dict[str, Any]:
    """Smaller weights and caches, and what they do to the commentary."""
    settings = options["lighter"]
    base = {"model": options["model"], "cache": options["cache"]}
    cases = {
        name: {part: base[part] | changes.get(part, {}) for part in base} for name, changes in settings["cases"].items()
    }

    def tell(name: str):
        console.print(f"  {name}")

    return {"lighter": measure_lighter(cases, settings["seeds"], settings["duration_s"], on_case=tell)}


PARTS: dict[str, Callable[[StreamingModel, Options, Console], dict[str, Any]]] = {
    "modes": bench_modes,
    "frames_per_s": bench_frames_per_s,
    "streams": bench_streams,
    "batching": bench_batching,
    "lighter": bench_lighter,
}


@contextmanager
def torch_threads(number: int | None) -> Iterator[None]:
    """Let torch use so many threads on the CPU inside the block; None leaves them as they are."""
    before = torch.get_num_threads()
    torch.set_num_threads(number or before)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def _telling(console: Console, unit: str) -> Callable[[Trial], None]:
    def tell(trial: Trial):
        outcome = trial.ended or ("kept up" if trial.passed else "too slow")
        console.print(f"  {trial.load} {unit}: {outcome}", markup=False)

    return tell


def show(table: Table):
    """Print a table for people."""
    shown = RichTable(*table.columns, title=escape(table.title), title_justify="left")
    for row in table.rows:
        shown.add_row(*map(escape, row))
    console = Console()
    # Where nobody watches a table is not folded to the width of a small terminal.
    console.width = console.width if console.is_terminal else _WIDTH
    console.print(shown)


def write(record: dict[str, Any], folder: Path, console: Console):
    """Keep the record, and the figure of its modes beside it where it can be drawn."""
    name = record["settings"]["model"]["name"]
    path = keep(record, folder, name.rstrip("/").rpartition("/")[2])
    console.print(f"the record is in {path}", markup=False)
    if "modes" not in record:
        return
    title = f"{name} on {record['machine']['device']}, {record['date'][:10]}"
    try:
        draw_modes(record["modes"], path.with_suffix(".png"), title=title)
    except ConfigError as error:  # without matplotlib; what was measured is not lost for that
        console.print(str(error), markup=False)
