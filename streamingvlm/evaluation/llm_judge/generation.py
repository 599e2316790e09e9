"""Commentary of many clips by one candidate, each kept in a file that is whole or not there: a run can be taken up."""

import hashlib
import json
import logging
import math
import re
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from threading import Event
from typing import Any

from streamingvlm.atomic import write_json
from streamingvlm.config import TIME_SLACK_S
from streamingvlm.data.parallel import map_in_threads
from streamingvlm.errors import DataError, VideoError
from streamingvlm.evaluation.candidates.candidates import Candidate
from streamingvlm.evaluation.candidates.clips import Clip
from streamingvlm.evaluation.llm_judge.commentary_files import CommentedChunk, Piece, from_line, to_line
from streamingvlm.inference.commentary import Commentary

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Assignment:
    """Clips of one video, watched one after the other; what is said of one is previous text to the next.

    name: unique, the video's path as the dataset has it, for instance.
    """

    name: str
    clips: tuple[Clip, ...]

    def comment(self, candidate: Candidate, on_line: Callable[[Commentary], None]) -> Iterator[CommentedChunk]:
        """Have the clips commented; VideoError where the video cannot be watched."""
        said: list[str] = []
        for clip in self.clips:
            previous = " ".join(filter(None, [clip.previous_text, *said]))
            pieces, line = [], None
            for line in candidate.comment(replace(clip, previous_text=previous)):
                on_line(line)
                if line.text:
                    pieces.append(Piece(line.start_s, line.end_s, line.text))
            self._warn_of_early_end(clip, line)
            said += [piece.text for piece in pieces]
            yield CommentedChunk(clip.start_s, clip.end_s, tuple(pieces))

    def _warn_of_early_end(self, clip: Clip, last: Commentary | None):
        """Say where a whole turn is missing at the end of a clip: the file is shorter than the dataset says."""
        end_s = last.end_s if last else clip.start_s
        turn_s = last.end_s - last.start_s if last else 0.0
        if math.isfinite(clip.end_s) and end_s + turn_s <= clip.end_s + TIME_SLACK_S:
            log.warning("%s ends at %g s, not at %g s: after that, nothing is said", self.name, end_s, clip.end_s)


@dataclass(frozen=True)
class Spoken:
    """What a candidate said of an assignment; name and path are the candidate's."""

    name: str
    path: str
    chunks: tuple[CommentedChunk, ...]


class CommentStore:
    """What one candidate said, a small file an assignment.

    settings: all that decides what it says, JSON; a file is found again under the same settings alone.
    """

    def __init__(self, folder: str | Path, settings: Mapping[str, Any]):
        self.folder = Path(folder)
        self._settings = settings

    def read(self, assignment: Assignment) -> Spoken | None:
        """Return what was said; None where nothing whole is kept."""
        try:
            document = json.loads(self._path(assignment).read_text("utf-8"))
            chunks = tuple(from_line(line, "")[1] for line in document["chunks"])
            return Spoken(document["candidate"], document["path"], chunks)
        except (OSError, ValueError, KeyError, TypeError, DataError):
            return None

    def write(self, assignment: Assignment, spoken: Spoken):
        """Keep what was said. Raises DataError where the disk does not take it."""
        document = {
            "candidate": spoken.name,
            "path": spoken.path,
            "made_with": self._key(assignment),
            "chunks": [to_line(assignment.name, chunk) for chunk in spoken.chunks],
        }
        try:
            write_json(self._path(assignment), document)
        except OSError as error:
            raise DataError(f"{self.folder} cannot keep commentary ({error.strerror}); make room there") from error

    def _key(self, assignment: Assignment) -> dict[str, Any]:
        # By its name in the dataset: the folder of videos may move.
        clips = [{**asdict(clip), "video": clip.video.name} for clip in assignment.clips]
        return {"settings": self._settings, "name": assignment.name, "clips": clips}

    def _path(self, assignment: Assignment) -> Path:
        digest = hashlib.sha256(json.dumps(self._key(assignment), sort_keys=True).encode()).hexdigest()
        readable = re.sub(r"[^\w.-]+", "_", assignment.name)[-80:]
        return self.folder / f"{readable}-{digest[:16]}.json"


def generate(
    assignments: Sequence[Assignment],
    open_candidate: Callable[[], Candidate],
    store: CommentStore,
    *,
    on_line: Callable[[Commentary], None] = lambda line: None,
) -> dict[str, Spoken]:
    """Return what the candidate says of each assignment, by name; what is kept is not said again.

    open_candidate: called once, and not at all where everything is kept. on_line: called with each line as it is said.

    A video that cannot be watched does not stop the others: when they are done, VideoError names it. Raises DataError
    before anything is watched where videos are missing.
    """
    kept = {assignment.name: store.read(assignment) for assignment in assignments}
    missing = [assignment for assignment in assignments if kept[assignment.name] is None]
    _check_videos([clip.video for assignment in missing for clip in assignment.clips])
    failures: list[VideoError] = []
    if missing:
        with closing(_spoken(missing, open_candidate(), on_line)) as all_spoken:
            for assignment, spoken in all_spoken:
                if isinstance(spoken, VideoError):
                    log.warning("%s: %s", assignment.name, spoken)
                    failures.append(spoken)
                    continue
                store.write(assignment, spoken)
                kept[assignment.name] = spoken
    if failures:
        raise VideoError(f"{len(failures)} of {len(assignments)} videos failed, what is done is kept: {failures[0]}")
    return kept


class _Stopped(Exception):
    """The run ends while a clip is being watched."""


def _spoken(
    assignments: Sequence[Assignment], candidate: Candidate, on_line: Callable[[Commentary], None]
) -> Generator[tuple[Assignment, Spoken | VideoError]]:
    stop = Event()

    def tell(line: Commentary):
        if stop.is_set():  # whoever leaves shall not wait for hours of video
            raise _Stopped
        on_line(line)

    def spoken(assignment: Assignment) -> tuple[Assignment, Spoken | VideoError]:
        try:
            return assignment, Spoken(candidate.name, candidate.path, tuple(assignment.comment(candidate, tell)))
        except VideoError as error:
            return assignment, error

    if candidate.num_parallel == 1:
        yield from map(spoken, assignments)
    else:
        yield from map_in_threads(spoken, assignments, candidate.num_parallel, stop=stop)


def _check_videos(videos: Sequence[Path]):
    absent = list(dict.fromkeys(video for video in videos if not video.is_file()))
    if absent:
        others = f" and {len(absent) - 1} more" if len(absent) > 1 else ""
        raise DataError(f"{absent[0]}{others} of {len(set(videos))} videos: no such file; check video_root")
