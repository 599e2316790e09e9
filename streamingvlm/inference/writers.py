"""Writing commentary to files turn by turn: WebVTT and SubRip subtitles, plain text, JSON lines, captioned video.

Each file is complete after every turn, so that Ctrl-C or a kill loses nothing: a cue or a line is one write without a
buffer, and no format here needs a footer. If the disk is full, a half-written cue is removed and the error raised.
Files that a program might take for a transcript bear the mark of `streamingvlm.provenance`.

Existing files are not overwritten unless asked: a second run over ``match.mp4`` writes ``match.2.vtt`` and so on, with
one number for all its files. A file of that name may be subtitles made by hand.
"""

import json
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import asdict
from functools import partial
from itertools import count
from pathlib import Path
from typing import Self

from streamingvlm.errors import ConfigError, StreamingVLMError
from streamingvlm.inference.commentary import Commentary
from streamingvlm.provenance import CAPTIONED_SUFFIX, MARK, Provenance
from streamingvlm.video.captioned import CAPTIONS, CaptionedVideo, Captions


class LineWriter:
    """A file that grows by one line of commentary at a time.

    resume_at: size in bytes of an existing file after the last line that is kept; the rest is cut off.

    Raises FileExistsError if ``path`` exists and ``overwrite`` is false, OSError if it cannot be written.
    """

    suffix: str

    def __init__(self, path: str | Path, *, overwrite: bool = False, resume_at: int | None = None):
        self.path = Path(path)
        self._holds_old = resume_at is None and overwrite and self.path.exists()
        self._file = self.path.open("xb" if resume_at is None and not self._holds_old else "r+b", buffering=0)
        # The header waits for the first line: an old file keeps its content until then.
        self._has_header = bool(resume_at)
        if resume_at is not None:
            self._file.truncate(resume_at)
            self._file.seek(resume_at)

    @property
    def size(self) -> int:
        """Bytes in the file, all lines included."""
        return 0 if self._holds_old else self._file.tell()

    def write(self, line: Commentary, origin: Provenance):
        """Append a line; the operating system has it when this returns."""
        if self._holds_old:
            self._file.truncate(0)
            self._holds_old = False
        header = b"" if self._has_header else self.header(origin)
        self._append(header + self.encode(line))
        self._has_header = True

    def header(self, origin: Provenance) -> bytes:
        """Return what stands before the first line."""
        return b""

    def encode(self, line: Commentary) -> bytes:
        """Return what a line adds to the file."""
        return self.format(line).encode()

    def format(self, line: Commentary) -> str:
        """Return a line in this format, empty if the format leaves silence out."""
        raise NotImplementedError

    def flush(self):
        """Wait until all lines are in the file."""

    def close(self):
        """Close the file; closing twice is allowed."""
        self._file.close()

    def discard(self):
        """Close the file and restore the folder, after a run that wrote nothing."""
        self.close()
        if not (self._holds_old or self._has_header):
            self.path.unlink(missing_ok=True)

    def _append(self, content: bytes):
        rest = memoryview(content)
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

    def header(self, origin: Provenance) -> bytes:
        """Return the signature, and the mark as a note. A note cannot contain an arrow."""
        return f"WEBVTT\n\nNOTE {MARK}\n{origin.to_json().replace('-->', '->')}\n\n".encode()

    def format(self, line: Commentary) -> str:
        """Return a cue: its times, and its words with ``&``, ``<`` and ``>`` escaped."""
        if not (words := _one_line(line.text)):
            return ""
        words = words.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
        return f"{timestamp(line.start_s)} --> {timestamp(line.end_s)}\n{words}\n\n"


class SrtWriter(LineWriter):
    """SubRip subtitles: a cue, numbered from 1, for each turn that is not silent. The first cue bears the mark."""

    suffix = ".srt"

    def __init__(self, path: str | Path, *, overwrite: bool = False, resume_at: int | None = None):
        super().__init__(path, overwrite=overwrite, resume_at=resume_at)
        self._numbers = count(1 + (self.path.read_bytes().count(b" --> ") if resume_at else 0))

    def format(self, line: Commentary) -> str:
        """Return a cue: its number, its times and its words."""
        if not (words := _one_line(line.text)):
            return ""
        start, end = (timestamp(time_s, decimal=",") for time_s in (line.start_s, line.end_s))
        number = next(self._numbers)
        mark = f"  {MARK}" if number == 1 else ""
        return f"{number}\n{start} --> {end}{mark}\n{words.replace('-->', '->')}\n\n"


class TxtWriter(LineWriter):
    """Plain text as the terminal shows it, ``[01:02] words``: a line for each turn that is not silent."""

    suffix = ".txt"

    def format(self, line: Commentary) -> str:
        """Return the start of the turn and its words."""
        return "" if line.is_silent else f"{_one_line(str(line))}\n"


class JsonlWriter(LineWriter):
    """JSON lines: the provenance, then an object for each turn, silent ones included, with all fields of it."""

    suffix = ".jsonl"

    def header(self, origin: Provenance) -> bytes:
        """Return the line of the provenance."""
        return f"{origin.to_json()}\n".encode()

    def format(self, line: Commentary) -> str:
        """Return a JSON object with the commentary's fields."""
        return json.dumps(asdict(line), ensure_ascii=False) + "\n"


class VideoWriter(LineWriter):
    """An mp4 of the video with the commentary; a fragment for each turn, made in a thread while the model goes on.

    A line is shown from the start of its turn until the next line.
    """

    suffix = CAPTIONED_SUFFIX

    def __init__(
        self,
        path: str | Path,
        *,
        video: str | Path,
        captions: Captions,
        start_s: float,
        overwrite: bool = False,
        resume_at: int | None = None,
        caption: str = "",
    ):
        self._video = CaptionedVideo(video, captions=captions, start_s=start_s)
        super().__init__(path, overwrite=overwrite, resume_at=resume_at)
        self.caption = caption
        self._worker = ThreadPoolExecutor(1, thread_name_prefix=f"write {self.path.name}")
        self._pending: list[Future] = []

    def write(self, line: Commentary, origin: Provenance):
        """Hand a line to the thread; wait if two turns are waiting already."""
        self._wait(max_pending=1)
        self._pending.append(self._worker.submit(super().write, line, origin))

    def header(self, origin: Provenance) -> bytes:
        """Return the head of the file."""
        return self._video.head()

    def encode(self, line: Commentary) -> bytes:
        """Return the fragment of a turn."""
        self.caption = _one_line(line.text) or self.caption
        return self._video.fragment(line.start_s, line.end_s, self.caption)

    def flush(self):
        """Wait until all turns are in the file."""
        self._wait(max_pending=0)

    def close(self):
        """Finish the turns that are waiting and close both files."""
        try:
            self.flush()
        finally:
            self._worker.shutdown()
            self._video.close()
            super().close()

    def _wait(self, max_pending: int):
        while len(self._pending) > max_pending:
            self._pending.pop(0).result()


TEXT_FORMATS = {kind.suffix[1:]: kind for kind in (VttWriter, SrtWriter, TxtWriter, JsonlWriter)}
FORMATS = (*TEXT_FORMATS, "mp4")


class MultiWriter:
    """Several files written together; closed before the first line, it leaves the folder as it was."""

    def __init__(self, writers: Sequence[LineWriter]):
        self._writers = tuple(writers)
        self._num_lines = 0
        self.origin = Provenance(model="", source="")

    @property
    def paths(self) -> list[Path]:
        """The files that hold commentary."""
        return [writer.path for writer in self._writers] if self._num_lines else []

    @property
    def sizes(self) -> dict[str, int]:
        """The bytes in each file, by its absolute path, once all lines are written."""
        for writer in self._writers:
            writer.flush()
        return {str(writer.path.absolute()): writer.size for writer in self._writers}

    @property
    def caption(self) -> str:
        """The caption that a video shows at its end."""
        return next((writer.caption for writer in self._writers if isinstance(writer, VideoWriter)), "")

    def write(self, line: Commentary):
        """Append a line to every file."""
        self._num_lines += 1
        for writer in self._writers:
            writer.write(line, self.origin)

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
    formats: Sequence[str] = tuple(TEXT_FORMATS),
    overwrite: bool = False,
    captions: Captions = "burned",
    start_s: float = 0.0,
) -> MultiWriter:
    """Create the files for the commentary of a video, so that an error shows before the first turn.

    source: the video, whose name the files take.
    path: a folder, created if absent, or one file (``notes.vtt``), which is then the only one; by default the folder of
        the video.
    formats: any of ``vtt``, ``srt``, ``txt``, ``jsonl`` and ``mp4``.
    overwrite: replace files of that name; by default the next free number is added to the name.
    captions: of an mp4, ``burned`` into the picture, or a ``track`` that players show on demand.
    start_s: where in the video the stream starts; the mp4 starts there.

    Raises ConfigError for an unknown format and StreamingVLMError if the files cannot be created.
    """
    folder, stem, suffixes = _target(Path(source), path, formats)
    kinds = _kinds(source, captions, start_s)
    try:
        if suffixes:
            folder.mkdir(parents=True, exist_ok=True)
        return _create(folder, stem, suffixes, kinds, overwrite=overwrite)
    except OSError as error:
        raise StreamingVLMError(
            f"{error.filename or folder}: cannot be written ({error.strerror}); "
            "give a writable folder by output.path=..., or output=none"
        ) from error


def reopen_writers(
    sizes: Mapping[str, int], source: str | Path, *, captions: Captions, start_s: float, caption: str
) -> MultiWriter:
    """Open the files of a run that was stopped, to append to them.

    sizes, caption: of the MultiWriter after the last line that is kept; what was written after it is cut off.

    Raises StreamingVLMError for a file that is gone or shorter.
    """
    kinds = _kinds(source, captions, start_s)
    writers = []
    try:
        for path, size in sizes.items():
            if not Path(path).is_file() or Path(path).stat().st_size < size:
                raise StreamingVLMError(
                    f"{path} is gone or was shortened, so that nothing can be appended; put it back, or start again "
                    "with another autosave="
                )
            kind = kinds["mp4" if path.endswith(".mp4") else Path(path).suffix[1:]]
            extra = {"caption": caption} if path.endswith(".mp4") else {}
            writers.append(kind(path, resume_at=size, **extra))
    except OSError as error:
        raise StreamingVLMError(f"{path} cannot be written ({error.strerror}); check its permissions") from error
    return MultiWriter(writers)


def is_one_file(path: str | Path) -> bool:
    """Return True if an output path names one file, not a folder."""
    return Path(path).suffix[1:] in FORMATS and not Path(path).is_dir()


def timestamp(time_s: float, *, decimal: str = ".") -> str:
    """Return stream time as subtitles write it, ``01:02:03.456``."""
    seconds, milliseconds = divmod(round(time_s * 1000), 1000)
    minutes, seconds = divmod(seconds, 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours:02d}:{minutes:02d}:{seconds:02d}{decimal}{milliseconds:03d}"


def _kinds(source: str | Path, captions: Captions, start_s: float) -> dict[str, Callable[..., LineWriter]]:
    if captions not in CAPTIONS:
        raise ConfigError(f"output.captions={captions} is unknown; choose from {', '.join(CAPTIONS)}")
    return {**TEXT_FORMATS, "mp4": partial(VideoWriter, video=source, captions=captions, start_s=start_s)}


def _target(source: Path, path: str | Path | None, formats: Sequence[str]) -> tuple[Path, str, dict[str, str]]:
    """Return the folder, the name without suffix, and the suffix of each format to write."""
    for name in formats:
        if name not in FORMATS:
            raise ConfigError(f"output.formats has {name!r}, which is unknown; choose from {', '.join(FORMATS)}")
    suffixes = {name: CAPTIONED_SUFFIX if name == "mp4" else f".{name}" for name in formats}
    if path is None:
        return source.parent, source.stem, suffixes
    path = Path(path)
    if not is_one_file(path):
        return path, source.stem, suffixes
    if path.resolve() == source.resolve():
        raise ConfigError(f"output.path={path} is the video itself; give another file")
    return path.parent, path.stem, {path.suffix[1:]: path.suffix}


def _create(
    folder: Path,
    stem: str,
    suffixes: Mapping[str, str],
    kinds: Mapping[str, Callable[..., LineWriter]],
    *,
    overwrite: bool,
) -> MultiWriter:
    paths = {name: folder / f"{stem}{suffix}" for name, suffix in suffixes.items()}
    numbers = count(2)
    while not overwrite and any(path.exists() for path in paths.values()):
        number = next(numbers)
        paths = {name: folder / f"{stem}.{number}{suffix}" for name, suffix in suffixes.items()}
    writers = []
    try:
        for name, path in paths.items():
            writers.append(kinds[name](path, overwrite=overwrite))
    except (OSError, StreamingVLMError):
        MultiWriter(writers).close()
        raise
    return MultiWriter(writers)


def _one_line(text: str) -> str:
    """Return the words separated by single spaces: an empty line would end the cue."""
    return " ".join(text.split())
