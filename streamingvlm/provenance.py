"""The mark of files that a model wrote, so that nobody trains on them as if people had written them.

JSON lines  the first line is {"streamingvlm": {...}}
WebVTT      a NOTE before the first cue, which players do not show
SubRip      a word after the times of the first cue, where some writers put coordinates and players ignore the rest;
            SubRip has no comments, and a sidecar would stay behind when the file is moved
mp4         the name ends in .captioned.mp4
"""

import json
import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from streamingvlm import __version__

MARK = "streamingvlm"
CAPTIONED_SUFFIX = ".captioned.mp4"

_GENERATED = re.compile(
    rf"""\s*(?:\{{\s*"{MARK}":|WEBVTT[^\n]*\n\s*NOTE\s{MARK}\b|\d+\s*\n[^\n]*-->[^\n]*[ ]{MARK}\n)"""
)
_HEAD_CHARS = 400  # the mark is in the first lines


@dataclass(frozen=True)
class Provenance:
    """Where commentary comes from: the model, its source, its instruction and its settings, all of them JSON."""

    model: str
    source: str
    query: str = ""
    settings: Mapping[str, Any] = field(default_factory=dict)
    version: str = __version__

    def to_json(self) -> str:
        """Return a JSON object on one line, with ``MARK`` as its only key."""
        return json.dumps({MARK: asdict(self)}, ensure_ascii=False)


def is_generated_text(text: str) -> bool:
    """Return True for the text of a WebVTT, SubRip or JSON lines file with the mark."""
    return bool(_GENERATED.match(text.removeprefix("\ufeff")[:_HEAD_CHARS].replace("\r\n", "\n")))


def is_generated_file(path: Path) -> bool:
    """Return True for a text file with the mark, and for a video with captions of ours. Raises OSError."""
    if path.name.lower().endswith(CAPTIONED_SUFFIX):
        return True
    with path.open("rb") as file:
        return is_generated_text(file.read(4 * _HEAD_CHARS).decode("utf-8", errors="replace"))
