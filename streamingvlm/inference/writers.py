"""Commentary into files, while it is spoken: WebVTT and SubRip subtitles, and a line of JSON a second.

Each file is whole after every second, so that Ctrl-C or a kill costs nothing that was said: a cue or a line goes to
the operating system in one write, nothing waits in a buffer, and no format here needs a footer. On a full disk the
half-written cue is taken back before the error is raised.

An existing file is never touched unless asked: a second run over ``match.mp4`` writes ``match.2.vtt`` and so on, with
one number for all its files. Subtitles made by hand often stand beside a video under just this name.
"""

import json
from collections.abc import Sequence
from dataclasses import asdict
from itertools import count
from pathlib import Path
from typing import TYPE_CHECKING, Self

from streamingvlm.errors import ConfigError, StreamingVLMError

if TYPE_CHECKING:
    from streamingvlm.inference.commentary import Commentary


class LineWriter:
    """One file that grows by one second of commentary at a time.

    Raises FileExistsError where ``path`` exists and ``overwrite`` is false, OSError where it cannot be written.
    """

    suffix: str
    header = ""

    def __init__(self, path: str | Path, *, overwrite: bool = False):
        self.path = Path(path)
        # What is replaced stays as it was until there is something to replace it with.
        self._holds_old = overwrite and self.path.exists()
        self._file = self.path.open("r+b" if self._holds_old else "xb", buffering=0)
        if not self._holds_old:
            self._append(self.header)

    def write(self, line: "Commentary"):
        """Append one second; the operating system has it when this returns."""
        if self._holds_old:
            self._file.truncate(0)
            self._holds_old = False
            self._append(self.header)
        self._append(self.format(line))

    def format(self, line: "Commentary") -> str:
        """The text that stands for one second in this format, empty where the format leaves silence out."""
        raise NotImplementedError

    def close(self):
        """Close the file; closing twice is allowed."""
        self._file.close()

    def discard(self):
        """Close the file and leave the folder as it was before, for a run that wrote nothing."""
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
                f"{self.path}: cannot be written further ({error.strerror}); what it holds is complete up to here"
            ) from error


class VttWriter(LineWriter):
    """WebVTT subtitles, one cue for each second in which something is said."""

    suffix = ".vtt"
    header = "WEBVTT\n\n"

    def format(self, line: "Commentary") -> str:
        """One cue: its times, and its words with ``&``, ``<`` and ``>`` escaped."""
        if not (words := _one_line(line.text)):
            return ""
        words = words.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
        return f"{timestamp(line.start_s)} --> {timestamp(line.end_s)}\n{words}\n\n"


class SrtWriter(LineWriter):
    """SubRip subtitles, numbered from 1, one cue for each second in which something is said."""

    suffix = ".srt"

    def __init__(self, path: str | Path, *, overwrite: bool = False):
        super().__init__(path, overwrite=overwrite)
        self._numbers = count(1)

    def format(self, line: "Commentary") -> str:
        """One cue: its number, its times and its words."""
        if not (words := _one_line(line.text)):
            return ""
        start, end = (timestamp(time_s, decimal=",") for time_s in (line.start_s, line.end_s))
        return f"{next(self._numbers)}\n{start} --> {end}\n{words}\n\n"


class JsonlWriter(LineWriter):
    """One JSON object a line for every second, the silent ones too: all fields of the commentary."""

    suffix = ".jsonl"

    def format(self, line: "Commentary") -> str:
        """One JSON object with the names of the commentary's fields."""
        return json.dumps(asdict(line), ensure_ascii=False) + "\n"


FORMATS = {kind.suffix[1:]: kind for kind in (VttWriter, SrtWriter, JsonlWriter)}


class MultiWriter:
    """Several files fed together; closed before the first second, it leaves the folder as it was."""

    def __init__(self, writers: Sequence[LineWriter]):
        self._writers = tuple(writers)
        self._num_lines = 0

    @property
    def paths(self) -> list[Path]:
        """The files that hold commentary by now."""
        return [writer.path for writer in self._writers] if self._num_lines else []

    def write(self, line: "Commentary"):
        """Append one second to every file."""
        self._num_lines += 1
        for writer in self._writers:
            writer.write(line)

    def close(self):
        """Close the files, and remove them where no second was ever written."""
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
    """Create the files for the commentary of a video, so that a folder that cannot be written shows at once.

    source: the video; the files take its name.
    path: a folder, made where it does not exist, or one file (``notes.vtt``), which then is the only one; without it
        they stand beside the video.
    formats: any of ``vtt``, ``srt`` and ``jsonl``.
    overwrite: replace files of that name, where else the next free number is taken.

    Raises ConfigError for a format that does not exist and StreamingVLMError where the files cannot be created.
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
            "name a folder that can by output.path=..., or output=none"
        ) from error


def timestamp(time_s: float, *, decimal: str = ".") -> str:
    """Stream time as subtitles write it: hours, minutes, seconds and milliseconds, ``01:02:03.456``."""
    seconds, milliseconds = divmod(round(time_s * 1000), 1000)
    minutes, seconds = divmod(seconds, 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours:02d}:{minutes:02d}:{seconds:02d}{decimal}{milliseconds:03d}"


def _target(source: Path, path: str | Path | None, formats: Sequence[str]) -> tuple[Path, str, Sequence[str]]:
    """Folder, name without suffix, and formats of the files to write."""
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
    """The words with every run of white space made one space: an empty line would end the cue."""
    return " ".join(text.split())
