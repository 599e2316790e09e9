"""Files of commentary in the layout of Inf-Streams-Eval: a line per clip, or a merged line per video."""

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from streamingvlm.atomic import write_text
from streamingvlm.errors import DataError


@dataclass(frozen=True)
class Utterance:
    """A line of commentary in the file's own times."""

    start_s: float
    end_s: float
    text: str


@dataclass(frozen=True)
class CommentedClip:
    """The commentary of a part of a video."""

    start_s: float
    end_s: float
    utterances: tuple[Utterance, ...]


def merge_clips(clips: Sequence[CommentedClip]) -> CommentedClip:
    """Merge clips of one video into one, its utterances sorted by their ends."""
    utterances = sorted((u for clip in clips for u in clip.utterances), key=lambda u: u.end_s)
    return CommentedClip(min(c.start_s for c in clips), max(c.end_s for c in clips), tuple(utterances))


def text_between(utterances: Iterable[Utterance], start_s: float, end_s: float) -> str:
    """Join the utterances whose end lies in (start_s, end_s] by spaces: the published rule for a segment."""
    return " ".join(u.text for u in utterances if start_s < u.end_s <= end_s and u.text)


def write_commentary(path: Path, by_video: Mapping[str, Sequence[CommentedClip]]):
    """Write a line per clip, atomically, under the base names of the videos. Raises DataError."""
    lines = (to_line(video, clip) for video, clips in by_video.items() for clip in clips)
    try:
        write_text(path, "".join(json.dumps(line, ensure_ascii=False) + "\n" for line in lines))
    except OSError as error:
        raise DataError(
            f"{path} cannot be written ({error.strerror}); free some space or name another folder"
        ) from error


def read_commentary(path: Path) -> dict[str, CommentedClip]:
    """Read a file of clips or of merged lines into one CommentedClip per video, by its base name.

    Raises DataError for a file of another layout or an incomplete one.
    """
    clips: dict[str, list[CommentedClip]] = {}
    for where, line in json_lines(path):
        video, clip = from_line(line, where)
        clips.setdefault(video, []).append(clip)
    return {video: merge_clips(of_video) for video, of_video in clips.items()}


def json_lines(path: Path) -> Iterable[tuple[str, Any]]:
    """Yield ("file:line", value) for each line of a JSONL file; the former is for messages. Raises DataError."""
    try:
        with path.open(encoding="utf-8") as file:
            for number, line in enumerate(file, 1):
                if line.strip():
                    yield f"{path}:{number}", json.loads(line)
    except json.JSONDecodeError as error:
        raise DataError(f"{path}:{number} is not JSON ({error.msg}); download or write the file again") from error
    except (UnicodeDecodeError, RecursionError) as error:
        raise DataError(f"{path} is damaged text; download or write the file again") from error
    except OSError as error:
        raise DataError(f"{path} cannot be read ({error.strerror}); check the path") from error


def to_line(video: str, clip: CommentedClip) -> dict[str, Any]:
    """Return a clip in the published layout, whose fields call a clip a chunk."""
    items = [{"start_time": u.start_s, "end_time": u.end_s, "response": u.text} for u in clip.utterances]
    return {"video": Path(video).name, "chunk_start": clip.start_s, "chunk_end": clip.end_s, "items": items}


def from_line(line: Any, where: str) -> tuple[str, CommentedClip]:
    """Read the base name of the video and its commentary from a line of the published layout. Raises DataError."""
    try:
        utterances = tuple(_utterance(item) for item in line["items"])
        return Path(line["video"]).name, CommentedClip(float(line["chunk_start"]), float(line["chunk_end"]), utterances)
    except (TypeError, KeyError, ValueError, AttributeError) as error:
        raise DataError(
            f"{where} is no line of a candidate; expected video, chunk_start, chunk_end and items of start_time, "
            "end_time and response or text"
        ) from error


def _utterance(item: Mapping[str, Any]) -> Utterance:
    text = item["response"] if "response" in item else item["text"]
    return Utterance(float(item["start_time"]), float(item["end_time"]), text.strip())
