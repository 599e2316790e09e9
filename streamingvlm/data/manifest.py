"""The manifest of prepared data: its version, its settings, and what was dropped or repaired."""

import json
from pathlib import Path
from typing import Any

from streamingvlm.errors import ConfigError, DataError

MANIFEST, VERSION = "manifest.json", 1


def read_manifest(folder: str | Path | None) -> dict[str, Any]:
    """Read the manifest of a folder of prepared data. Raises ConfigError for None, and DataError."""
    if folder is None:
        raise ConfigError("no data given; give data=FOLDER, a folder that `streamingvlm prepare` wrote")
    path = Path(folder) / MANIFEST
    try:
        manifest = json.loads(path.read_text("utf-8"))
    except FileNotFoundError:
        raise DataError(f"{folder} holds no prepared data; create it: streamingvlm prepare SOURCE") from None
    except (OSError, ValueError) as error:
        raise DataError(f"{path} cannot be read ({error}); prepare the data again") from error
    version = manifest.get("version") if isinstance(manifest, dict) else None
    if version != VERSION:
        raise DataError(
            f"{path} has version {version}, but this release reads version {VERSION}; prepare the data again"
        )
    return manifest
