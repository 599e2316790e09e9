"""`PreparedData`, which opens the folder that `streamingvlm.data.prepare` wrote."""

import hashlib
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Self

from datasets import Dataset
from datasets.exceptions import DatasetGenerationError

from streamingvlm.data.manifest import read_manifest
from streamingvlm.data.prepared_tables import CHUNKS, RECORDINGS
from streamingvlm.errors import DataError


@dataclass(frozen=True)
class PreparedData:
    """Recordings and their chunks; `streamingvlm.data.prepared_tables` defines the columns.

    recordings: one row per recording, with the text of every turn.
    chunks: one row per chunk; its ``recording`` is the ``id`` of a recording.
    manifest: the settings, the sources, and counts of everything dropped or repaired.
    """

    folder: Path
    recordings: Dataset
    chunks: Dataset
    manifest: dict[str, Any]

    @classmethod
    def open(cls, folder: str | Path, *, cache_folder: str | Path | None = None) -> Self:
        """Open a folder of prepared data. Raises DataError if it is missing, damaged or of another version.

        cache_folder: where `datasets` keeps its memory-mapped copy; None uses its default.
        """
        manifest = read_manifest(folder)
        folder = Path(folder)
        recordings, chunks = (_table(folder / name, cache_folder) for name in (RECORDINGS, CHUNKS))
        return cls(folder, recordings, chunks, manifest)

    @property
    def turn_s(self) -> float:
        """Seconds per turn."""
        return self.manifest["turn_s"]

    @cached_property
    def digest(self) -> str:
        """A digest of all recordings and chunks: their text, times and order."""
        digest = hashlib.sha256()
        for name in (RECORDINGS, CHUNKS):
            with (self.folder / name).open("rb") as file:
                digest.update(hashlib.file_digest(file, "sha256").digest())
        return digest.hexdigest()[:16]

    @property
    def video_root(self) -> Path:
        """The folder that the video paths are relative to, as it was at preparation."""
        return Path(self.manifest["video_root"])


def _table(path: Path, cache_folder: str | Path | None) -> Dataset:
    if not path.is_file():
        raise DataError(f"{path} is missing; prepare the data again")
    try:
        return Dataset.from_parquet(str(path), cache_dir=cache_folder and str(cache_folder))
    except (DatasetGenerationError, OSError, ValueError) as error:
        raise DataError(f"{path} is damaged or truncated; prepare the data again") from error
