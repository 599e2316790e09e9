"""Files that are whole or not there at all, whatever happens while they are written."""

import json
import os
from pathlib import Path
from typing import Any
from uuid import uuid4


def write_json(path: Path, document: Any):
    """Write a document as JSON, in place of what is there; folders are made. Raises OSError, and leaves no scrap."""
    write_text(path, json.dumps(document, ensure_ascii=False))


def write_text(path: Path, text: str):
    """Write a text in place of what is there, likewise."""
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".{path.name}.{uuid4().hex}")
    try:
        partial.write_text(text, "utf-8", errors="replace")
        os.replace(partial, path)
    except BaseException:
        partial.unlink(missing_ok=True)
        raise
