"""A session on disk, from which another process can resume it.

    session.json    the request that opened it, with its newest query
    lines-N.jsonl   its commentary, one line per turn; N counts the processes that have run the session
    snapshot/       the stream after its newest turn

For each turn the line is written first, then the snapshot, and then the line is published. So wherever the process is
killed, every published line is stored. A line without its snapshot was not published; it is discarded, and the stream
generates it again.
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
from streamingvlm.inference.snapshot import SnapshotWriter
from streamingvlm.inference.snapshot_folder import has_snapshot, last_published, read_manifest
from streamingvlm.serving.api_requests import SessionRequest
from streamingvlm.serving.stream_pool import StreamHandle

log = logging.getLogger(__name__)

_REQUEST = "session.json"
_LINES = re.compile(r"lines-(\d+)\.jsonl")


class StoredSessionRequest(SessionRequest):
    """A session to open and store: its id, which is the name of its folder, and its owner."""

    id: str = Field(pattern=r"^ses_[A-Za-z0-9_-]{8,64}$")
    owner: str = Field(max_length=64)


class SessionStore:
    """The folder of a session, written by the process that runs it.

    max_lines: minimum number of newest lines to keep. Raises SnapshotError if the folder cannot be written.
    """

    def __init__(self, path: Path, request: StoredSessionRequest, lines: list[dict[str, Any]], max_lines: int):
        self.path = path
        self.request = request
        self.lines = lines  # of the processes before this one
        self.end_s = lines[-1]["end_s"] if lines else 0.0  # stream time up to which those processes got
        self._max_lines, self._num_lines = max_lines, len(lines)
        self._last_id = lines[-1]["id"] if lines else 0
        self._number = _newest_journal(path) + 1
        self._journal = path / f"lines-{self._number}.jsonl"
        self._writer = SnapshotWriter(self.snapshot)

    @classmethod
    def create(cls, folder: Path, request: StoredSessionRequest, *, max_lines: int) -> Self:
        """Create the folder of a new session below ``folder``."""
        store = cls(folder / request.id, request, [], max_lines)
        store._write_request()
        return store

    @classmethod
    def load(cls, folder: Path, session_id: str, *, max_lines: int) -> Self:
        """Load a session that another process has stored. Raises SnapshotError if it is missing or damaged."""
        path = folder / session_id
        try:
            request = StoredSessionRequest.model_validate_json((path / _REQUEST).read_bytes())
            lines = _read_lines(path)
        except (OSError, ValueError, ValidationError, KeyError) as error:
            raise SnapshotError(f"the stored session {session_id} cannot be read ({type(error).__name__})") from error
        store = cls(path, request, lines, max_lines)
        store._rewrite(lines[-max_lines:])
        return store

    @property
    def snapshot(self) -> Path:
        """Return the folder of the stream's snapshot."""
        return self.path / "snapshot"

    @property
    def has_snapshot(self) -> bool:
        """Return True if a turn has been stored."""
        return has_snapshot(self.snapshot)

    def live_start_s(self) -> float:
        """Return the stream time at which a live source continues, in whole seconds.

        It includes the time during which no process ran the session.
        """
        if not self.has_snapshot:
            return 0.0
        return self.end_s + max(0, round(time.time() - last_published(self.snapshot)))

    def append(self, line: dict[str, Any], stream: StreamHandle):
        """Write the newest line, then the snapshot of the stream after it. Raises SnapshotError."""
        self._last_id += 1
        self._num_lines += 1
        text = json.dumps({"id": self._last_id, **line}, ensure_ascii=False)
        _check_write(lambda: _append_text(self._journal, text + "\n"))
        stream.save(self._writer)
        if self._num_lines > 2 * self._max_lines:
            self._rewrite(_read_lines(self.path)[-self._max_lines :])

    def set_query(self, query: str):
        """Store a new query. Raises SnapshotError.

        The query is not stored by a snapshot: a turn may be done whose line is not written yet, and a snapshot must
        not be ahead of the lines.
        """
        if _newest_journal(self.path) > self._number:
            raise SnapshotError(f"{self.path.name} is run by another process now; send the request there")
        self.request = self.request.model_copy(update={"query": query})
        self._write_request()

    def remove(self):
        """Delete the folder."""
        shutil.rmtree(self.path, ignore_errors=True)

    def _write_request(self):
        text = self.request.model_dump_json(exclude_none=True)
        _check_write(lambda: write_text(self.path / _REQUEST, text))

    def _rewrite(self, lines: list[dict[str, Any]]):
        """Replace all journals by one with these lines."""
        self.lines, self._num_lines = lines, len(lines)
        text = "".join(json.dumps(line, ensure_ascii=False) + "\n" for line in lines)
        _check_write(lambda: write_text(self._journal, text))
        for file in self.path.iterdir():
            if _LINES.fullmatch(file.name) and file != self._journal:
                file.unlink(missing_ok=True)


def stored_sessions(folder: Path) -> list[StoredSessionRequest]:
    """Return the sessions stored below ``folder``, oldest first; unreadable ones are logged and skipped."""
    found = []
    for file in sorted(folder.glob(f"*/{_REQUEST}"), key=lambda file: file.stat().st_mtime):
        try:
            found.append(StoredSessionRequest.model_validate_json(file.read_bytes()))
        except ValidationError:
            log.warning("a stored session cannot be read", extra={"folder": file.parent.name})
    return found


def _read_lines(path: Path) -> list[dict[str, Any]]:
    """Return the lines of the newest journal up to the turn of the snapshot; lines after it were not published."""
    if not has_snapshot(path / "snapshot"):
        return []
    num_turns = read_manifest(path / "snapshot")["stream"]["num_turns"]
    journal = path / f"lines-{_newest_journal(path)}.jsonl"
    # A kill during a write leaves an incomplete last line; its turn has no snapshot.
    complete = journal.read_text("utf-8").split("\n")[:-1] if journal.exists() else []
    return [line for line in map(json.loads, complete) if line["id"] <= num_turns]


def _newest_journal(path: Path) -> int:
    """Return the highest number of a journal, 0 if there is none."""
    if not path.is_dir():
        return 0
    return max((int(match[1]) for file in path.iterdir() if (match := _LINES.fullmatch(file.name))), default=0)


def _append_text(file: Path, text: str):
    # Closed after each write: network file systems show changes to other machines on close.
    with file.open("a", encoding="utf-8") as journal:
        journal.write(text)


def _check_write(write):
    try:
        write()
    except OSError as error:
        raise SnapshotError(
            f"{error.filename} cannot be written ({error.strerror}); free space for sessions"
        ) from error
