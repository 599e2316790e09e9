"""The tables of prepared data and their writer: two parquet files and a manifest, made visible by one rename.

Recordings hold the text and chunks refer to them, so overlapping chunks and their previous text take no extra space.
"""

import json
import os
import shutil
from collections.abc import Iterable
from pathlib import Path
from typing import Any, Self
from uuid import uuid4

import pyarrow as pa
from pyarrow import parquet

from streamingvlm.data.manifest import MANIFEST, VERSION
from streamingvlm.errors import DataError

RECORDINGS, CHUNKS = "recordings.parquet", "chunks.parquet"

RECORDING_SCHEMA = pa.schema(
    {
        "id": pa.string(),
        "video": pa.string(),  # relative to the manifest's video_root
        "start_s": pa.float64(),  # the span of the file that is used
        "end_s": pa.float64(),
        "num_turns": pa.int32(),
        "lines": pa.list_(pa.string()),  # the text of each turn, "" for a silent one
        "previous_text": pa.string(),  # from before the recording
        "query": pa.string(),
        "title": pa.string(),
        "category": pa.string(),
        "width": pa.int32(),  # of the displayed video
        "height": pa.int32(),
        "source": pa.string(),
        "questions": pa.list_(pa.struct({"turn": pa.int32(), "question": pa.string(), "answer": pa.string()})),
    }
)
CHUNK_SCHEMA = pa.schema(
    {
        "recording": pa.string(),
        "first_turn": pa.int32(),
        "num_turns": pa.int32(),
        "num_words": pa.int32(),  # `streamingvlm.data.units` defines what is a word and what is a character
        "num_characters": pa.int32(),
        "split": pa.string(),  # train or held_out
    }
)
_ROWS_PER_GROUP = 256


def check_target(target: Path, *, num_bytes: int):
    """Raise DataError if the folder is not empty or not writable, or if the disk has less than ``num_bytes`` free."""
    if target.exists() and (not target.is_dir() or any(target.iterdir())):
        raise DataError(f"{target} is not empty; choose a new folder for the prepared data")
    above = next(folder for folder in target.absolute().parents if folder.exists())
    if not os.access(above, os.W_OK):
        raise DataError(f"{above} is not writable by this user; choose another folder for the prepared data")
    free = shutil.disk_usage(above).free
    if free < num_bytes:
        raise DataError(
            f"{above} has {free / 1e6:,.0f} MB left, but the prepared data may take {num_bytes / 1e6:,.0f} MB; "
            "free disk space, or choose a folder on another disk"
        )


class PreparedDataWriter:
    """Writes a folder of prepared data; the folder appears under its name only after `finish`.

    Raises DataError if the disk cannot be written.
    """

    def __init__(self, target: Path):
        self._target = target
        self._partial: Path | None = None

    def __enter__(self) -> Self:
        try:
            partial = self._target.with_name(f".{self._target.name}.partial-{uuid4().hex[:8]}")
            partial.mkdir(parents=True)
            self._partial = partial
            self._recordings = _ParquetTable(self._partial / RECORDINGS, RECORDING_SCHEMA)
            self._chunks = _ParquetTable(self._partial / CHUNKS, CHUNK_SCHEMA)
        except OSError as error:
            self._discard()
            raise self._unwritable(error) from error
        return self

    def __exit__(self, *exc_info: object):
        self._discard()

    def add(self, recording: dict[str, Any], chunks: Iterable[dict[str, Any]]):
        """Append a recording and its chunks."""
        try:
            self._recordings.add(recording)
            for chunk in chunks:
                self._chunks.add(chunk)
        except OSError as error:
            raise self._unwritable(error) from error

    def finish(self, manifest: dict[str, Any]):
        """Write the manifest and rename the folder to its final name."""
        try:
            self._recordings.close()
            self._chunks.close()
            text = json.dumps({"version": VERSION, **manifest}, indent=1, ensure_ascii=False)
            (self._partial / MANIFEST).write_text(text + "\n", "utf-8", errors="replace")
            os.rename(self._partial, self._target)  # This replaces an empty folder of that name.
        except OSError as error:
            raise self._unwritable(error) from error
        self._partial = None

    def _discard(self):
        if self._partial is not None:
            shutil.rmtree(self._partial, ignore_errors=True)

    def _unwritable(self, error: OSError) -> DataError:
        reason = error.strerror or " ".join(str(error).split())
        return DataError(f"{self._target} cannot be written ({reason}); free disk space, or choose another folder")


class _ParquetTable:
    """A parquet file, written one row group at a time."""

    def __init__(self, path: Path, schema: pa.Schema):
        self._writer = parquet.ParquetWriter(path, schema)
        self._schema = schema
        self._rows: list[dict[str, Any]] = []

    def add(self, row: dict[str, Any]):
        self._rows.append(row)
        if len(self._rows) == _ROWS_PER_GROUP:
            self._flush()

    def close(self):
        self._flush()
        self._writer.close()

    def _flush(self):
        if self._rows:
            self._writer.write_table(pa.Table.from_pylist(self._rows, self._schema))
        self._rows = []
