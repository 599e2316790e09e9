"""Writing commentary to files turn by turn: WebVTT and SubRip subtitles, plain text, JSON lines, captioned video.

Each file is complete after every turn, so that Ctrl-C or a kill loses nothing: a cue or a line is one write without a
buffer, and no format here needs a footer. If the disk is full, a half-written cue is removed and the error raised.
Files that a program might take for a transcript bear the mark of `streamingvlm.provenance`.
"""

import json
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import asdict
from html import escape
from itertools import count
from pathlib import Path

from streamingvlm.errors import StreamingVLMError
from streamingvlm.inference.commentary import Commentary
from streamingvlm.provenance import CAPTIONED_SUFFIX, MARK, Provenance
from streamingvlm.video.captioned import CaptionedVideo, Captions


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
        return f"{timestamp(line.start_s)} --> {timestamp(line.end_s)}\n{escape(words, quote=False)}\n\n"


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


def timestamp(time_s: float, *, decimal: str = ".") -> str:
    """Return stream time as subtitles write it, ``01:02:03.456``."""
    seconds, milliseconds = divmod(round(time_s * 1000), 1000)
    minutes, seconds = divmod(seconds, 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours:02d}:{minutes:02d}:{seconds:02d}{decimal}{milliseconds:03d}"


def _one_line(text: str) -> str:
    """Return the words separated by single spaces: an empty line would end the cue."""
    return " ".join(text.split())
