"""Prepared data as a trainer reads it."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

from datasets import Dataset
from datasets.exceptions import DatasetGenerationError

from streamingvlm.data.tables import CHUNKS, MANIFEST, RECORDINGS, VERSION
from streamingvlm.errors import DataError


@dataclass(frozen=True)
class PreparedData:
    """Recordings and the chunks in them; the columns are those of `streamingvlm.data.tables`.

    recordings: one row a recording, with the text of every turn.
    chunks: one row a chunk; its ``recording`` is a recording's ``id``.
    manifest: the settings, the sources, and all that was dropped or mended.
    """

    folder: Path
    recordings: Dataset
    chunks: Dataset
    manifest: dict[str, Any]

    @classmethod
    def open(cls, folder: str | Path, *, cache_folder: str | Path | None = None) -> Self:
        """Open what `prepare` wrote; DataError where it is missing, damaged or of another version.

        cache_folder: where `datasets` keeps its memory-mapped copy; by default where it always does.
        """
        folder = Path(folder)
        manifest = _manifest(folder)
        recordings, chunks = (_table(folder / name, cache_folder) for name in (RECORDINGS, CHUNKS))
        return cls(folder, recordings, chunks, manifest)

    @property
    def turn_s(self) -> float:
        """Seconds a turn."""
        return self.manifest["turn_s"]

    @property
    def video_root(self) -> Path:
        """What the paths of the recordings are relative to, as it was when they were prepared."""
        return Path(self.manifest["video_root"])


def _manifest(folder: Path) -> dict[str, Any]:
    path = folder / MANIFEST
    try:
        manifest = json.loads(path.read_text("utf-8"))
    except FileNotFoundError:
        raise DataError(f"{folder} holds no prepared data; make it: python scripts/prepare_data.py SOURCE") from None
    except (OSError, ValueError) as error:
        raise DataError(f"{path} cannot be read ({error}); prepare the data again") from error
    version = manifest.get("version") if isinstance(manifest, dict) else None
    if version != VERSION:
        raise DataError(f"{path} is of version {version}, but version {VERSION} is read here; prepare the data again")
    return manifest


def _table(path: Path, cache_folder: str | Path | None) -> Dataset:
    if not path.is_file():
        raise DataError(f"{path} is missing; prepare the data again")
    try:
        return Dataset.from_parquet(str(path), cache_dir=cache_folder and str(cache_folder))
    except (DatasetGenerationError, OSError, ValueError) as error:
        raise DataError(f"{path} is damaged or cut off; prepare the data again") from error
