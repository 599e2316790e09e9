"""Files that a command writes: parts of a document between two marks, and whether there is room for a file at all."""

import os
from pathlib import Path

from streamingvlm.atomic import write_text
from streamingvlm.errors import ConfigError, DataError


def write_part(path: Path, name: str, text: str):
    """Put ``text`` between the marks of ``name``; all else in the file stays as it is, to the last byte.

    A file that has no such marks gets them at its end, and one that is not there is made.
    Raises DataError for marks that do not pair, OSError.
    """
    begin, end = f"<!-- {name}: written by a command -->", f"<!-- end of {name} -->"
    before = path.read_bytes().decode("utf-8") if path.exists() else ""
    part = f"{begin}\n{text.strip()}\n{end}"
    if begin not in before and end not in before:
        # A blank line in between, whatever the file ends with.
        gap = "" if not before else "\n" * (2 - min(2, len(before) - len(before.rstrip("\n"))))
        return write_text(path, f"{before}{gap}{part}\n")
    head, opened, rest = before.partition(begin)
    _, closed, tail = rest.partition(end)
    if not (opened and closed) or begin in rest or end in head + tail:
        raise DataError(f"{path} has not one {begin!r} with {end!r} after it; put both there once, or take both out")
    write_text(path, f"{head}{part}{tail}")


def check_writable(*paths: Path):
    """Make the folders of files that will be written. Raises ConfigError where that will fail, before hours of work."""
    for path in paths:
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise ConfigError(f"{path} cannot be written ({error.strerror}); name a file in another folder") from error
        if path.is_dir() or not os.access(path.parent, os.W_OK):
            raise ConfigError(f"{path} cannot be written; name a file, in a folder that is yours to write to")
