"""Write the performance page from the records of benchmarks, so that it holds measured results only."""

import json
import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from streamingvlm.benchmark.goals import goals_table
from streamingvlm.benchmark.record_tables import Record, tables_of
from streamingvlm.errors import DataError
from streamingvlm.evaluation.documents import write_part

PARTS = ("modes", "frames_per_s", "streams", "batching", "low_precision")
_MARK = "write_performance"
# Other keys of the record that the tables of a part need.
_NEEDED_BY = {"modes": ("ceilings",)}


def read_records(folder: Path) -> dict[Path, Record]:
    """Read the records of streaming benchmarks in a folder, by file. Raises DataError for any other JSON file."""
    records = {}
    for path in sorted(folder.glob("*.json")):
        try:
            record = json.loads(path.read_text(encoding="utf-8"))
            if record["benchmark"] == "streaming":
                records[path] = record
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise DataError(f"{path} is not the record of a benchmark ({error}); remove it from the folder") from error
    return records


def write_page(records: Mapping[Path, Record], path: Path):
    """Write the goals, and the newest results by model, machine and footage. Raises DataError, OSError."""
    write_part(path, f"{_MARK} goals", goals_table(records.values()).markdown())
    write_part(path, f"{_MARK} figures", "\n\n".join(_sections(records, path.parent)))


def _sections(records: Mapping[Path, Record], page_folder: Path) -> Iterator[str]:
    newest: dict[str, dict[str, Path]] = {}
    for path, record in sorted(records.items(), key=lambda item: item[1]["date"]):
        for part in PARTS:
            if part in record:
                newest.setdefault(_heading(record), {})[part] = path
    for heading, by_part in newest.items():
        yield f"### {heading}"
        for part in PARTS:
            if part in by_part:
                yield _section(by_part[part], records[by_part[part]], part, page_folder)


def _heading(record: Record) -> str:
    settings = record["settings"]
    model = settings["model"]
    weights = model["quantization"] or model["dtype"]
    return f"{model['name']}, {weights}, on {record['machine']['device']}: {_footage(settings)}"


def _footage(settings: Mapping[str, Any]) -> str:
    footage, fps = settings["footage"], settings["video"]["fps"]
    size = f" of {footage['width']}x{footage['height']}" if footage["source"] == "noise" else ""
    rate = f" at {fps:g} frames/s" if fps else ""
    return f"{Path(footage['source']).name}{size}{rate}"


def _section(path: Path, record: Record, part: str, page_folder: Path) -> str:
    """Return the tables of a part, its figure, and a link to its record."""
    machine = record["machine"]
    commit = (record["commit"] or "an installation")[:10]
    threads = f"{machine['num_threads']} {'thread' if machine['num_threads'] == 1 else 'threads'}"
    link = f"[{path.name}]({_relative(path, page_folder)})"
    source = f"{link}: {record['date'][:10]}, {commit}, torch {machine['torch']}, {threads}."
    selected = {name: record[name] for name in (part, *_NEEDED_BY.get(part, ()))}
    blocks = [f"**{table.title}**\n\n{table.markdown()}" for table in tables_of(selected)]
    figure = path.with_suffix(".png")
    if part == "modes" and figure.exists():
        blocks.append(f"![Turn latency per token along the stream]({_relative(figure, page_folder)})")
    return "\n\n".join([*blocks, source])


def _relative(path: Path, folder: Path) -> str:
    return Path(os.path.relpath(path, folder)).as_posix()
