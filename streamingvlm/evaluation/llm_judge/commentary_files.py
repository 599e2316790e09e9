"""Files of candidates' commentary in the layout of Inf-Streams-Eval: a line a chunk, or a line a video once merged."""

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from streamingvlm.atomic import write_text
from streamingvlm.errors import DataError


@dataclass(frozen=True)
class Piece:
    """Something that was said, in the file's own times."""

    start_s: float
    end_s: float
    text: str


@dataclass(frozen=True)
class CommentedChunk:
    """What was said of a part of a video."""

    start_s: float
    end_s: float
    pieces: tuple[Piece, ...]


def merged(chunks: Sequence[CommentedChunk]) -> CommentedChunk:
    """One chunk of several, the pieces in the order of their times."""
    pieces = sorted((piece for chunk in chunks for piece in chunk.pieces), key=lambda piece: piece.end_s)
    return CommentedChunk(min(c.start_s for c in chunks), max(c.end_s for c in chunks), tuple(pieces))


def text_between(pieces: Iterable[Piece], start_s: float, end_s: float) -> str:
    """The pieces whose end lies in (start_s, end_s], joined by spaces: the published rule for a segment."""
    return " ".join(piece.text for piece in pieces if start_s < piece.end_s <= end_s and piece.text)


def write_commentary(path: Path, by_video: Mapping[str, Sequence[CommentedChunk]]):
    """Write a line a chunk, whole or not at all; videos go by their base names. Raises DataError."""
    lines = (to_line(video, chunk) for video, chunks in by_video.items() for chunk in chunks)
    try:
        write_text(path, "".join(json.dumps(line, ensure_ascii=False) + "\n" for line in lines))
    except OSError as error:
        raise DataError(f"{path} cannot be written ({error.strerror}); make room, or name another folder") from error


def read_commentary(path: Path) -> dict[str, CommentedChunk]:
    """Read a file of chunks or of merged lines, a CommentedChunk a video by its base name.

    Raises DataError for a file of another layout, or one that breaks off.
    """
    chunks: dict[str, list[CommentedChunk]] = {}
    for where, line in json_lines(path):
        video, chunk = from_line(line, where)
        chunks.setdefault(video, []).append(chunk)
    return {video: merged(of_video) for video, of_video in chunks.items()}


def json_lines(path: Path) -> Iterable[tuple[str, Any]]:
    """Yield what each line of a JSONL file holds, with "file:line" for messages. Raises DataError."""
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


def to_line(video: str, chunk: CommentedChunk) -> dict[str, Any]:
    """A chunk as the published files have it."""
    items = [{"start_time": piece.start_s, "end_time": piece.end_s, "response": piece.text} for piece in chunk.pieces]
    return {"video": Path(video).name, "chunk_start": chunk.start_s, "chunk_end": chunk.end_s, "items": items}


def from_line(line: Any, where: str) -> tuple[str, CommentedChunk]:
    """Read a published line: the video's base name, and what was said; DataError otherwise."""
    try:
        pieces = tuple(_piece(item) for item in line["items"])
        return Path(line["video"]).name, CommentedChunk(float(line["chunk_start"]), float(line["chunk_end"]), pieces)
    except (TypeError, KeyError, ValueError, AttributeError) as error:
        raise DataError(
            f"{where} is no line of a candidate; expected video, chunk_start, chunk_end and items of start_time, "
            "end_time and response or text"
        ) from error


def _piece(item: Mapping[str, Any]) -> Piece:
    text = item["response"] if "response" in item else item["text"]
    return Piece(float(item["start_time"]), float(item["end_time"]), text.strip())
