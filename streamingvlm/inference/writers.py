"""Writing commentary to files turn by turn: WebVTT and SubRip subtitles, and JSON lines.

Each file is complete after every turn, so that Ctrl-C or a kill loses nothing: a cue or a line is one write without a
buffer, and no format here needs a footer. If the disk is full, a half-written cue is removed and the error raised.

Existing files are not overwritten unless asked: a second run over ``match.mp4`` writes ``match.2.vtt`` and so on, with
one number for all its files. A file of that name may be subtitles made by hand.
"""

import json
from collections.abc import Sequence
from dataclasses import asdict
from itertools import count
from pathlib import Path
from typing import Self

from streamingvlm.errors import ConfigError, StreamingVLMError
from streamingvlm.inference.commentary import Commentary


class LineWriter:
    """A file that grows by one line of commentary at a time.

    Raises FileExistsError if ``path`` exists and ``overwrite`` is false, OSError if it cannot be written.
    """

    suffix: str
    header = ""

    def __init__(self, path: str | Path, *, overwrite: bool = False):
        self.path = Path(path)
        # The old content stays until the first line replaces it.
        self._holds_old = overwrite and self.path.exists()
        self._file = self.path.open("r+b" if self._holds_old else "xb", buffering=0)
        if not self._holds_old:
            self._append(self.header)

    def write(self, line: Commentary):
        """Append a line; the operating system has it when this returns."""
        if self._holds_old:
            self._file.truncate(0)
            self._holds_old = False
            self._append(self.header)
        self._append(self.format(line))

    def format(self, line: Commentary) -> str:
        """Return a line in this format, empty if the format leaves silence out."""
        raise NotImplementedError

    def close(self):
        """Close the file; closing twice is allowed."""
        self._file.close()

    def discard(self):
        """Close the file and restore the folder, after a run that wrote nothing."""
        self.close()
        if not self._holds_old:
            self.path.unlink(missing_ok=True)

    def _append(self, text: str):
        rest = memoryview(text.encode())
        start = self._file.tell()
        try:
            while rest:
                rest = rest[self._file.write(rest) :]
        except OSError as error:
            self._file.truncate(start)
            raise StreamingVLMError(
                f"{self.path}: cannot be written further ({error.strerror}); it is complete up to here; free some "
                "space and resume"
            ) from error


class VttWriter(LineWriter):
    """WebVTT subtitles: a cue for each turn that is not silent."""

    suffix = ".vtt"
    header = "WEBVTT\n\n"

    def format(self, line: Commentary) -> str:
        """Return a cue: its times, and its words with ``&``, ``<`` and ``>`` escaped."""
        if not (words := _one_line(line.text)):
            return ""
        words = words.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
        return f"{timestamp(line.start_s)} --> {timestamp(line.end_s)}\n{words}\n\n"


class SrtWriter(LineWriter):
    """SubRip subtitles: a cue, numbered from 1, for each turn that is not silent."""

    suffix = ".srt"

    def __init__(self, path: str | Path, *, overwrite: bool = False):
        super().__init__(path, overwrite=overwrite)
        self._numbers = count(1)

    def format(self, line: Commentary) -> str:
        """Return a cue: its number, its times and its words."""
        if not (words := _one_line(line.text)):
            return ""
        start, end = (timestamp(time_s, decimal=",") for time_s in (line.start_s, line.end_s))
        return f"{next(self._numbers)}\n{start} --> {end}\n{words}\n\n"


class JsonlWriter(LineWriter):
    """JSON lines: an object for each turn, silent ones included, with all fields of the commentary."""

    suffix = ".jsonl"

    def format(self, line: Commentary) -> str:
        """Return a JSON object with the commentary's fields."""
        return json.dumps(asdict(line), ensure_ascii=False) + "\n"


FORMATS = {kind.suffix[1:]: kind for kind in (VttWriter, SrtWriter, JsonlWriter)}


class MultiWriter:
    """Several files written together; closed before the first line, it leaves the folder as it was."""

    def __init__(self, writers: Sequence[LineWriter]):
        self._writers = tuple(writers)
        self._num_lines = 0

    @property
    def paths(self) -> list[Path]:
        """The files that hold commentary."""
        return [writer.path for writer in self._writers] if self._num_lines else []

    def write(self, line: Commentary):
        """Append a line to every file."""
        self._num_lines += 1
        for writer in self._writers:
            writer.write(line)

    def close(self):
        """Close the files, and remove them if no line was written."""
        for writer in self._writers:
            if self._num_lines:
                writer.close()
            else:
                writer.discard()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_):
        self.close()


def open_writers(
    source: str | Path,
    *,
    path: str | Path | None = None,
    formats: Sequence[str] = tuple(FORMATS),
    overwrite: bool = False,
) -> MultiWriter:
    """Create the files for the commentary of a video, so that an error shows before the first turn.

    source: the video, whose name the files take.
    path: a folder, created if absent, or one file (``notes.vtt``), which is then the only one; by default the folder of
        the video.
    formats: any of ``vtt``, ``srt`` and ``jsonl``.
    overwrite: replace files of that name; by default the next free number is added to the name.

    Raises ConfigError for an unknown format and StreamingVLMError if the files cannot be created.
    """
    folder, stem, formats = _target(Path(source), path, formats)
    for name in formats:
        if name not in FORMATS:
            raise ConfigError(f"output.formats has {name!r}, which is unknown; choose from {', '.join(FORMATS)}")
    try:
        if formats:
            folder.mkdir(parents=True, exist_ok=True)
        return _create(folder, stem, formats, overwrite=overwrite)
    except OSError as error:
        raise StreamingVLMError(
            f"{error.filename or folder}: cannot be written ({error.strerror}); "
            "give a writable folder by output.path=..., or output=none"
        ) from error


def timestamp(time_s: float, *, decimal: str = ".") -> str:
    """Return stream time as subtitles write it, ``01:02:03.456``."""
    seconds, milliseconds = divmod(round(time_s * 1000), 1000)
    minutes, seconds = divmod(seconds, 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours:02d}:{minutes:02d}:{seconds:02d}{decimal}{milliseconds:03d}"


def _target(source: Path, path: str | Path | None, formats: Sequence[str]) -> tuple[Path, str, Sequence[str]]:
    """Return folder, name without suffix, and formats of the files to write."""
    if path is None:
        return source.parent, source.stem, formats
    path = Path(path)
    if path.suffix[1:] in FORMATS and not path.is_dir():
        return path.parent, path.stem, [path.suffix[1:]]
    return path, source.stem, formats


def _create(folder: Path, stem: str, formats: Sequence[str], *, overwrite: bool) -> MultiWriter:
    paths = [folder / f"{stem}.{name}" for name in formats]
    numbers = count(2)
    while not overwrite and any(path.exists() for path in paths):
        number = next(numbers)
        paths = [folder / f"{stem}.{number}.{name}" for name in formats]
    writers = []
    try:
        for name, path in zip(formats, paths, strict=True):
            writers.append(FORMATS[name](path, overwrite=overwrite))
    except OSError:
        MultiWriter(writers).close()
        raise
    return MultiWriter(writers)


def _one_line(text: str) -> str:
    """Return the words separated by single spaces: an empty line would end the cue."""
    return " ".join(text.split())
