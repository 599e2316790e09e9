"""Atomic file writes: a file is complete or absent, whatever happens during the write.

Each function makes missing folders, replaces an existing file, and leaves no partial file behind.
"""

import json
import os
from pathlib import Path
from typing import Any
from uuid import uuid4


def write_json(path: Path, document: Any, *, indent: int | None = None):
    """Write a document as JSON. Raises OSError."""
    write_text(path, json.dumps(document, ensure_ascii=False, indent=indent))


def write_text(path: Path, text: str):
    """Write text as UTF-8. Raises OSError."""
    write_bytes(path, text.encode("utf-8", errors="replace"))


def write_bytes(path: Path, content: bytes):
    """Write bytes. Raises OSError."""
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".{path.name}.{uuid4().hex}")
    try:
        partial.write_bytes(content)
        os.replace(partial, path)
    except BaseException:
        partial.unlink(missing_ok=True)
        raise
