"""Commentary of many clips by one candidate, stored per video so that an interrupted run can be resumed."""

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
from streamingvlm.evaluation.candidates.candidate import Candidate
from streamingvlm.evaluation.candidates.video_clip import Clip
from streamingvlm.evaluation.llm_judge.commentary_files import CommentedClip, Utterance, from_line, to_line
from streamingvlm.inference.commentary import Commentary

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class CommentaryTask:
    """Clips of one video in sequence; the commentary of a clip is previous text to the next.

    name: unique, for example the path of the video in the dataset.
    """

    name: str
    clips: tuple[Clip, ...]

    def comment(self, candidate: Candidate, on_line: Callable[[Commentary], None]) -> Iterator[CommentedClip]:
        """Yield the commentary of each clip. Raises VideoError where the video cannot be read."""
        said: list[str] = []
        for clip in self.clips:
            previous = " ".join(filter(None, [clip.previous_text, *said]))
            utterances, line = [], None
            for line in candidate.comment(replace(clip, previous_text=previous)):
                on_line(line)
                if line.text:
                    utterances.append(Utterance(line.start_s, line.end_s, line.text))
            self._warn_of_early_end(clip, line)
            said += [utterance.text for utterance in utterances]
            yield CommentedClip(clip.start_s, clip.end_s, tuple(utterances))

    def _warn_of_early_end(self, clip: Clip, last: Commentary | None):
        """Warn if at least one turn is missing at the end of a clip: the file is shorter than the dataset states."""
        end_s = last.end_s if last else clip.start_s
        turn_s = last.end_s - last.start_s if last else 0.0
        if math.isfinite(clip.end_s) and end_s + turn_s <= clip.end_s + TIME_SLACK_S:
            log.warning("%s ends at %g s, not at %g s; there is no commentary after that", self.name, end_s, clip.end_s)


@dataclass(frozen=True)
class CandidateCommentary:
    """The commentary of a candidate on a task; candidate and path are its `Candidate.name` and `Candidate.path`."""

    candidate: str
    path: str
    clips: tuple[CommentedClip, ...]


class CommentaryStore:
    """The commentary of one candidate, a small file per task.

    settings: everything that determines the commentary, JSON. A file is found only under the settings that made it.
    """

    def __init__(self, folder: str | Path, settings: Mapping[str, Any]):
        self.folder = Path(folder)
        self._settings = settings

    def read(self, task: CommentaryTask) -> CandidateCommentary | None:
        """Return the stored commentary, None if there is no complete file."""
        try:
            document = json.loads(self._path(task).read_text("utf-8"))
            clips = tuple(from_line(line, "")[1] for line in document["clips"])
            return CandidateCommentary(document["candidate"], document["path"], clips)
        except (OSError, ValueError, KeyError, TypeError, DataError):
            return None

    def write(self, task: CommentaryTask, commentary: CandidateCommentary):
        """Store commentary atomically. Raises DataError where the disk refuses it."""
        document = {
            "candidate": commentary.candidate,
            "path": commentary.path,
            "made_with": self._key(task),
            "clips": [to_line(task.name, clip) for clip in commentary.clips],
        }
        try:
            write_json(self._path(task), document)
        except OSError as error:
            raise DataError(
                f"{self.folder} cannot store commentary ({error.strerror}); free some space there"
            ) from error

    def _key(self, task: CommentaryTask) -> dict[str, Any]:
        # The base name, so that the folder of videos may move.
        clips = [{**asdict(clip), "video": clip.video.name} for clip in task.clips]
        return {"settings": self._settings, "name": task.name, "clips": clips}

    def _path(self, task: CommentaryTask) -> Path:
        digest = hashlib.sha256(json.dumps(self._key(task), sort_keys=True).encode()).hexdigest()
        readable = re.sub(r"[^\w.-]+", "_", task.name)[-80:]
        return self.folder / f"{readable}-{digest[:16]}.json"


def generate_commentary(
    tasks: Sequence[CommentaryTask],
    open_candidate: Callable[[], Candidate],
    store: CommentaryStore,
    *,
    on_line: Callable[[Commentary], None] = lambda line: None,
) -> dict[str, CandidateCommentary]:
    """Return the commentary of each task by its name; stored commentary is not generated again.

    open_candidate: called once, and never if everything is stored. on_line: called with each new line.

    A video that cannot be read does not stop the others; VideoError names it after they are done. Raises DataError
    before the first clip is read if videos are missing.
    """
    stored = {task.name: store.read(task) for task in tasks}
    missing = [task for task in tasks if stored[task.name] is None]
    _check_videos([clip.video for task in missing for clip in task.clips])
    failures: list[VideoError] = []
    if missing:
        with closing(_commentaries(missing, open_candidate(), on_line)) as commentaries:
            for task, commentary in commentaries:
                if isinstance(commentary, VideoError):
                    log.warning("%s: %s", task.name, commentary)
                    failures.append(commentary)
                    continue
                store.write(task, commentary)
                stored[task.name] = commentary
    if failures:
        raise VideoError(
            f"{len(failures)} of {len(tasks)} videos failed, the others are stored; the first: {failures[0]}"
        )
    return stored


class _Stopped(Exception):
    """Raised in a worker when the run ends during a clip."""


def _commentaries(
    tasks: Sequence[CommentaryTask], candidate: Candidate, on_line: Callable[[Commentary], None]
) -> Generator[tuple[CommentaryTask, CandidateCommentary | VideoError]]:
    stop = Event()

    def report(line: Commentary):
        if stop.is_set():  # Ctrl-C must not wait for hours of video
            raise _Stopped
        on_line(line)

    def comment(task: CommentaryTask) -> tuple[CommentaryTask, CandidateCommentary | VideoError]:
        try:
            return task, CandidateCommentary(candidate.name, candidate.path, tuple(task.comment(candidate, report)))
        except VideoError as error:
            return task, error

    if candidate.num_parallel == 1:
        yield from map(comment, tasks)
    else:
        yield from map_in_threads(comment, tasks, candidate.num_parallel, stop=stop)


def _check_videos(videos: Sequence[Path]):
    absent = list(dict.fromkeys(video for video in videos if not video.is_file()))
    if absent:
        others = f" and {len(absent) - 1} more" if len(absent) > 1 else ""
        raise DataError(f"{absent[0]}{others} of {len(set(videos))} videos: no such file; check video_root")
