"""Output files of commands: sections of a document between markers, and early checks that a file can be written."""

import os
from pathlib import Path

from streamingvlm.atomic import write_text
from streamingvlm.errors import ConfigError, DataError


def write_part(path: Path, name: str, text: str):
    """Replace the text between the markers of ``name``; the rest of the file stays as it is, to the byte.

    A file without these markers gets them at its end; a missing file is created. Raises DataError for unpaired markers,
    OSError.
    """
    begin, end = f"<!-- {name}: written by a command -->", f"<!-- end of {name} -->"
    before = path.read_bytes().decode("utf-8") if path.exists() else ""
    part = f"{begin}\n{text.strip()}\n{end}"
    if begin not in before and end not in before:
        # One blank line in between, however the file ends.
        gap = "" if not before else "\n" * (2 - min(2, len(before) - len(before.rstrip("\n"))))
        return write_text(path, f"{before}{gap}{part}\n")
    head, opened, rest = before.partition(begin)
    _, closed, tail = rest.partition(end)
    if not (opened and closed) or begin in rest or end in head + tail:
        raise DataError(
            f"{path} lacks a single {begin!r} with {end!r} after it; write each of them once, or take both out"
        )
    write_text(path, f"{head}{part}{tail}")


def check_writable(*paths: Path):
    """Create the folders of output files. Raises ConfigError, before hours of work, if a file cannot be written."""
    for path in paths:
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise ConfigError(f"{path} cannot be written ({error.strerror}); name a file in another folder") from error
        if path.is_dir() or not os.access(path.parent, os.W_OK):
            raise ConfigError(f"{path} cannot be written; name a file in a folder that you may write to")
