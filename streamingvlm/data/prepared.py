"""`PreparedData`, which opens the folder that `streamingvlm.data.prepare` wrote."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

from datasets import Dataset
from datasets.exceptions import DatasetGenerationError

from streamingvlm.data.prepared_tables import CHUNKS, MANIFEST, RECORDINGS, VERSION
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
        folder = Path(folder)
        manifest = _manifest(folder)
        recordings, chunks = (_table(folder / name, cache_folder) for name in (RECORDINGS, CHUNKS))
        return cls(folder, recordings, chunks, manifest)

    @property
    def turn_s(self) -> float:
        """Seconds per turn."""
        return self.manifest["turn_s"]

    @property
    def video_root(self) -> Path:
        """The folder that the video paths are relative to, as it was at preparation."""
        return Path(self.manifest["video_root"])


def _manifest(folder: Path) -> dict[str, Any]:
    path = folder / MANIFEST
    try:
        manifest = json.loads(path.read_text("utf-8"))
    except FileNotFoundError:
        raise DataError(f"{folder} holds no prepared data; create it: python scripts/prepare_data.py SOURCE") from None
    except (OSError, ValueError) as error:
        raise DataError(f"{path} cannot be read ({error}); prepare the data again") from error
    version = manifest.get("version") if isinstance(manifest, dict) else None
    if version != VERSION:
        raise DataError(
            f"{path} has version {version}, but this release reads version {VERSION}; prepare the data again"
        )
    return manifest


def _table(path: Path, cache_folder: str | Path | None) -> Dataset:
    if not path.is_file():
        raise DataError(f"{path} is missing; prepare the data again")
    try:
        return Dataset.from_parquet(str(path), cache_dir=cache_folder and str(cache_folder))
    except (DatasetGenerationError, OSError, ValueError) as error:
        raise DataError(f"{path} is damaged or truncated; prepare the data again") from error
