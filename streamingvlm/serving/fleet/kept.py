"""A session on disk: as much of it as another process needs to go on with it.

    session.json    who asked for what
    lines-N.jsonl   what was said, a line a turn; N counts the processes that had the session
    snapshot/       the stream after its newest turn

A line is written before the snapshot of its turn, and the snapshot before anybody is told the line. So wherever the
process is killed, what was told is kept; a line that was written and not told is let go, and said anew in the same
words by whoever takes up the stream.
"""

import json
import logging
import re
import shutil
import time
from pathlib import Path
from typing import Any, Self

from pydantic import Field, ValidationError

from streamingvlm.atomic import write_text
from streamingvlm.errors import SnapshotError
from streamingvlm.inference.snapshot import SnapshotKeeper
from streamingvlm.inference.snapshot_folder import has_snapshot, last_published, read_manifest
from streamingvlm.serving.requests import SessionAsked
from streamingvlm.serving.streams import Stream

log = logging.getLogger(__name__)

_ABOUT = "session.json"
_LINES = re.compile(r"lines-(\d+)\.jsonl")


class KeptAsked(SessionAsked):
    """A session to be opened and kept: its id, which names a folder, and whose it is."""

    id: str = Field(pattern=r"^ses_[A-Za-z0-9_-]{8,64}$")
    owner: str = Field(max_length=64)


class KeptSession:
    """The folder of a session, written by the process that has it.

    max_lines: how many of the newest lines are kept at least. Raises SnapshotError where the folder cannot be written.
    """

    def __init__(self, path: Path, asked: KeptAsked, lines: list[dict[str, Any]], max_lines: int):
        self.path = path
        self.asked = asked
        self.lines = lines  # those that were said before this process had the session
        self.seen_s = lines[-1]["end_s"] if lines else 0.0
        self._max_lines, self._num_lines = max_lines, len(lines)
        self._last_id = lines[-1]["id"] if lines else 0
        self._journal = path / f"lines-{_newest(path) + 1}.jsonl"
        self._keeper = SnapshotKeeper(self.snapshot)

    @classmethod
    def new(cls, folder: Path, asked: KeptAsked, *, max_lines: int) -> Self:
        """Begin to keep a session in a folder of folders."""
        path = folder / asked.id
        _written(lambda: write_text(path / _ABOUT, asked.model_dump_json(exclude_none=True)))
        return cls(path, asked, [], max_lines)

    @classmethod
    def found(cls, folder: Path, session_id: str, *, max_lines: int) -> Self:
        """Find what another process has kept. Raises SnapshotError where that is nothing, or cannot be read."""
        path = folder / session_id
        try:
            asked = KeptAsked.model_validate_json((path / _ABOUT).read_bytes())
            lines = _read_lines(path)
        except (OSError, ValueError, ValidationError, KeyError) as error:
            raise SnapshotError(f"nothing that can be read is kept of {session_id} ({type(error).__name__})") from error
        kept = cls(path, asked, lines, max_lines)
        kept.rewrite(lines[-max_lines:])
        return kept

    @property
    def snapshot(self) -> Path:
        """Where the stream is."""
        return self.path / "snapshot"

    @property
    def has_snapshot(self) -> bool:
        """Whether the stream was saved at all."""
        return has_snapshot(self.snapshot)

    def now_s(self) -> float:
        """Stream time of a source that ran on while nobody had the session, in whole seconds."""
        if not self.has_snapshot:
            return 0.0
        return self.seen_s + max(0, round(time.time() - last_published(self.snapshot)))

    def keep(self, line: dict[str, Any], stream: Stream):
        """Write the newest line, then the stream as it stands after it. Raises SnapshotError."""
        self._last_id += 1
        self._num_lines += 1
        text = json.dumps({"id": self._last_id, **line}, ensure_ascii=False)
        _written(lambda: _append(self._journal, text + "\n"))
        stream.save(self._keeper)
        if self._num_lines > 2 * self._max_lines:
            self.rewrite(_read_lines(self.path)[-self._max_lines :])

    def save(self, stream: Stream):
        """Write the stream as it stands. Raises SnapshotError."""
        stream.save(self._keeper)

    def rewrite(self, lines: list[dict[str, Any]]):
        """Have these lines and no others in the journal, and no other journal."""
        self.lines, self._num_lines = lines, len(lines)
        text = "".join(json.dumps(line, ensure_ascii=False) + "\n" for line in lines)
        _written(lambda: write_text(self._journal, text))
        for file in self.path.iterdir():
            if _LINES.fullmatch(file.name) and file != self._journal:
                file.unlink(missing_ok=True)

    def remove(self):
        """Forget the session."""
        shutil.rmtree(self.path, ignore_errors=True)


def left_in(folder: Path) -> list[KeptAsked]:
    """The sessions that were kept in a folder of folders, oldest first; what cannot be read is passed over."""
    left = []
    for about in sorted(folder.glob(f"*/{_ABOUT}"), key=lambda file: file.stat().st_mtime):
        try:
            left.append(KeptAsked.model_validate_json(about.read_bytes()))
        except ValidationError:
            log.warning("a kept session cannot be read", extra={"folder": about.parent.name})
    return left


def _read_lines(path: Path) -> list[dict[str, Any]]:
    """The lines of the newest journal up to the turn of the snapshot; what follows was not told to anybody."""
    if not has_snapshot(path / "snapshot"):
        return []
    num_turns = read_manifest(path / "snapshot")["stream"]["num_turns"]
    journal = path / f"lines-{_newest(path)}.jsonl"
    # A kill in the middle of a write leaves half a line, which is of a turn that has no snapshot.
    whole = journal.read_text("utf-8").split("\n")[:-1] if journal.exists() else []
    return [line for line in map(json.loads, whole) if line["id"] <= num_turns]


def _newest(path: Path) -> int:
    return max((int(match[1]) for file in path.iterdir() if (match := _LINES.fullmatch(file.name))), default=0)


def _append(file: Path, text: str):
    # Closed every time: that is when other machines see what was written to a folder that they share.
    with file.open("a", encoding="utf-8") as journal:
        journal.write(text)


def _written(write):
    try:
        write()
    except OSError as error:
        raise SnapshotError(f"{error.filename} cannot be written ({error.strerror}); make room for sessions") from error
