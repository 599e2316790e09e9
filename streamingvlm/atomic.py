"""Files that are whole or not there at all, whatever happens while they are written."""

import json
import os
from pathlib import Path
from typing import Any
from uuid import uuid4


def write_json(path: Path, document: Any, *, indent: int | None = None):
    """Write a document as JSON, in place of what is there; folders are made. Raises OSError, and leaves no scrap."""
    write_text(path, json.dumps(document, ensure_ascii=False, indent=indent))


def write_text(path: Path, text: str):
    """Write a text in UTF-8, in place of what is there; folders are made. Raises OSError, and leaves no scrap."""
    write_bytes(path, text.encode("utf-8", errors="replace"))


def write_bytes(path: Path, content: bytes):
    """Write a file, in place of what is there; folders are made. Raises OSError, and leaves no scrap."""
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".{path.name}.{uuid4().hex}")
    try:
        partial.write_bytes(content)
        os.replace(partial, path)
    except BaseException:
        partial.unlink(missing_ok=True)
        raise
