"""The page of performance, written from the records that benchmarks left: figures that were measured, and no others."""

import json
import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from streamingvlm.benchmark.goals import goals_table
from streamingvlm.benchmark.tables import Record, tables_of
from streamingvlm.errors import DataError
from streamingvlm.evaluation.documents import write_part

PARTS = ("modes", "frames_per_s", "streams", "batching", "lighter")
_MARK = "write_performance"
# A record's part comes with what it is to be read beside.
_WITH = {"modes": ("ceilings",)}


def read_records(folder: Path) -> dict[Path, Record]:
    """The records of streaming benchmarks in a folder, by file. Raises DataError for a file that is no record."""
    records = {}
    for path in sorted(folder.glob("*.json")):
        try:
            record = json.loads(path.read_text(encoding="utf-8"))
            if record["benchmark"] == "streaming":
                records[path] = record
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise DataError(f"{path} is no record of a benchmark ({error}); take it out of the folder") from error
    return records


def write_page(records: Mapping[Path, Record], path: Path):
    """Write the goals, and the newest figures of each machine, model and footage. Raises DataError, OSError."""
    write_part(path, f"{_MARK} goals", goals_table(records.values()).markdown())
    write_part(path, f"{_MARK} figures", "\n\n".join(_sections(records, path.parent)))


def _sections(records: Mapping[Path, Record], home: Path) -> Iterator[str]:
    newest: dict[str, dict[str, Path]] = {}
    for path, record in sorted(records.items(), key=lambda item: item[1]["date"]):
        for part in PARTS:
            if part in record:
                newest.setdefault(_heading(record), {})[part] = path
    for heading, by_part in newest.items():
        yield f"### {heading}"
        for part in PARTS:
            if part in by_part:
                yield _shown(by_part[part], records[by_part[part]], part, home)


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


def _shown(path: Path, record: Record, part: str, home: Path) -> str:
    """The tables of a part, its figure, and where they come from."""
    machine = record["machine"]
    commit = (record["commit"] or "an installation")[:10]
    link = f"[{path.name}]({_relative(path, home)})"
    source = f"{link}: {record['date'][:10]}, {commit}, torch {machine['torch']}, {machine['num_threads']} threads."
    kept = {name: record[name] for name in (part, *_WITH.get(part, ()))}
    blocks = [f"**{table.title}**\n\n{table.markdown()}" for table in tables_of(kept)]
    picture = path.with_suffix(".png")
    if part == "modes" and picture.exists():
        blocks.append(f"![Seconds a token along the stream]({_relative(picture, home)})")
    return "\n\n".join([*blocks, source])


def _relative(path: Path, home: Path) -> str:
    return Path(os.path.relpath(path, home)).as_posix()
