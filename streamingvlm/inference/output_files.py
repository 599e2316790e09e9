"""The output files of a stream: opened together, numbered together, and continued after a stop.

Existing files are not overwritten unless asked: a second run over ``match.mp4`` writes ``match.2.vtt`` and so on, with
one number for all its files. A file of that name may be subtitles made by hand.
"""

import json
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from itertools import count
from pathlib import Path
from typing import Self

from streamingvlm.atomic import write_json
from streamingvlm.errors import ConfigError, SnapshotError, StreamingVLMError
from streamingvlm.inference.commentary import Commentary
from streamingvlm.inference.snapshot_folder import OUTPUT_JOURNAL
from streamingvlm.inference.writers import JsonlWriter, LineWriter, SrtWriter, TxtWriter, VideoWriter, VttWriter
from streamingvlm.provenance import CAPTIONED_SUFFIX, Provenance
from streamingvlm.video.captioned import CAPTIONS, Captions

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


class OutputJournal:
    """How far the output files had come after the last turns, kept in the folder of a stream's snapshot.

    A turn is recorded when its lines are written and before the stream is saved. So a stream that was killed at any
    moment is continued with each line exactly once: the files are cut back to the turn of the snapshot.
    """

    def __init__(self, folder: str | Path):
        self._path = Path(folder) / OUTPUT_JOURNAL
        self._turns: list[dict] = []

    def record(self, num_turns: int, output: MultiWriter, *, start_s: float, end_s: float, is_finished: bool = False):
        """Write the state of the files after a turn. Raises SnapshotError if it cannot be written.

        start_s: stream time at which the files begin. end_s: end of the turn. is_finished: the source has ended.
        """
        turn = {
            "num_turns": num_turns,
            "sizes": output.sizes,
            "caption": output.caption,
            "start_s": start_s,
            "end_s": end_s,
            "is_finished": is_finished,
        }
        # The snapshot may be of this turn or of the one before.
        self._turns = [*(known for known in self._turns[-1:] if known["num_turns"] != num_turns), turn]
        try:
            write_json(self._path, self._turns)
        except OSError as error:
            raise SnapshotError(f"{self._path} cannot be written ({error.strerror}); free some space") from error

    def read(self, num_turns: int) -> dict | None:
        """Return what was recorded for a turn, by the names of ``record``; None without a record.

        Raises SnapshotError for a record of other turns.
        """
        if not self._path.exists():
            return None
        try:
            self._turns = json.loads(self._path.read_bytes())
            return next(turn for turn in self._turns if turn["num_turns"] == num_turns)
        except (OSError, ValueError, KeyError, TypeError, StopIteration) as error:
            raise SnapshotError(
                f"{self._path} does not belong to the snapshot beside it, so that no file can be continued; start "
                "again with another autosave="
            ) from error
