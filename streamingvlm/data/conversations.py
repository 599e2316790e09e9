"""Conversations in JSONL, the format in which LiveCC and Inf-Streams-Train are published.

A line holds the user's message (a video, the span of it, a query, the previous text) and the assistant's words with
their times. A seek index, the byte offset of each line, may be the last line or a file of its own. Sequential reading
does not need it, but its length shows whether the file is complete. Three simpler lines are read as well: a video with
its ``content`` (Inf-Streams-Eval), a video with the path of its ``transcript``, and a video alone.
"""

import json
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from streamingvlm.data.transcript import Cue, TimedText
from streamingvlm.data.units import with_blanks
from streamingvlm.errors import DataError

_INDEX = re.compile(rb"\s*\[\s*(\d|\]\s*$)")
_QUESTION_TURNS = {"conversations", "messages"}  # of ShareGPT and of ms-swift
_INDEX_SUFFIX, _INDEXED_SUFFIX = "_seeks", "_with_seeks"

MAX_TIME_S = 1e9
"""Longer than any recording; larger values are errors."""


@dataclass(frozen=True)
class TimedQuestion:
    """A question that the user asks during the stream, and its answer."""

    ask_s: float
    question: str
    answer: str


@dataclass(frozen=True)
class Conversation:
    """One line of the file.

    cues: None if the line has no words. transcript: path of the file that has them instead.
    end_s: None means the end of the video.
    num_bad_questions: entries of the line's ``qa_stream`` that could not be parsed.
    """

    video: str
    cues: tuple[Cue, ...] | None = None
    transcript: str | None = None
    start_s: float = 0.0
    end_s: float | None = None
    previous_text: str = ""
    query: str = ""
    title: str = ""
    category: str = ""
    questions: tuple[TimedQuestion, ...] = ()
    num_bad_questions: int = 0


def is_conversation_file(path: Path) -> bool:
    """Return True if the first line is a conversation, a listed video or a seek index."""
    with path.open("rb") as file:
        first = file.readline()
    if _INDEX.match(first):
        return True
    try:
        parse_conversation(first)
    except DataError:
        return path.suffix == ".jsonl"
    return True


def read_conversations(path: Path) -> Iterator[tuple[int, Conversation | DataError]]:
    """Yield each line's number, from 1, with its conversation or the error in it; one line is in memory at a time.

    If the seek index lists another number of lines than the file has, the last item is an error that says so.
    """
    num_lines, num_indexed = 0, _separate_index(path)
    with path.open("rb") as file:
        for number, line in enumerate(file, 1):
            if not line.strip():
                continue
            if _INDEX.match(line):
                num_indexed = _num_offsets(line)
                continue
            num_lines += 1
            try:
                yield number, parse_conversation(line)
            except DataError as error:
                yield number, error
    if num_indexed not in (None, num_lines):
        yield (
            num_lines,
            DataError(f"its seek index lists {num_indexed} lines, but it has {num_lines}; download the file again"),
        )


def parse_conversation(line: bytes) -> Conversation:
    """Parse one line. Raises DataError with the fault; the caller adds the file and the line number."""
    try:
        document = json.loads(line)
    except (ValueError, RecursionError) as error:
        reason = error.msg if isinstance(error, json.JSONDecodeError) else "invalid text"
        raise DataError(f"is not JSON ({reason})") from error
    if isinstance(document, dict):
        return _listed_video(document)
    if not isinstance(document, list):
        raise DataError("is neither a conversation nor a video")
    return _conversation(document)


def _separate_index(path: Path) -> int | None:
    """Return the number of lines by the seek index in the file beside this one, or None without such a file."""
    index_path = path.with_name(path.name.replace(_INDEXED_SUFFIX, _INDEX_SUFFIX))
    if index_path == path or not index_path.is_file():
        return None
    data = index_path.read_bytes()
    return _num_offsets(data) if _INDEX.match(data) else None


def _num_offsets(index: bytes) -> int:
    """Count the offsets without parsing them: an index may have millions."""
    return index.count(b",") + (index.strip() != b"[]")


def _conversation(messages: list[Any]) -> Conversation:
    user, assistant = (_content_parts(messages, role) for role in ("user", "assistant"))
    video, text = (_first(user, kind) for kind in ("video", "text"))
    speech = _first(assistant, "text_stream")
    if not video or not speech:
        raise DataError("is a conversation without the user's video or without the assistant's text_stream")
    questions, num_bad = _questions(speech.get("qa_stream"))
    return Conversation(
        video=_name(video.get("video")),
        cues=_cues(speech.get("text_stream"), "text_stream"),
        start_s=_time(video, "video_start") or 0.0,
        end_s=_time(video, "video_end"),
        previous_text=_previous_text(text),
        query=_text(text.get("text")),
        title=_text(text.get("title")),
        category=_text(text.get("category")),
        questions=questions,
        num_bad_questions=num_bad,
    )


def _listed_video(document: dict[str, Any]) -> Conversation:
    if "video" not in document:
        raise DataError("is neither a conversation nor a video")
    if turns := _QUESTION_TURNS & document.keys():
        raise DataError(
            f"is a conversation of questions and answers ({min(turns)}), whose words have no times; give lines with a "
            "text_stream or content"
        )
    content, transcript = document.get("content"), document.get("transcript")
    return Conversation(
        video=_name(document["video"]),
        cues=None if content is None else _cues(content, "content"),
        transcript=None if transcript is None else _name(transcript),
        start_s=_time(document, "video_start") or 0.0,
        end_s=_time(document, "video_end"),
        previous_text=_previous_text(document),
        query=_text(document.get("query")),
        title=_text(document.get("title")),
        category=_text(document.get("category")),
    )


def _content_parts(messages: list[Any], role: str) -> list[dict[str, Any]]:
    """Return the content parts of all messages with this role."""
    contents = [m.get("content") for m in messages if isinstance(m, dict) and m.get("role") == role]
    return [part for content in contents if isinstance(content, list) for part in content if isinstance(part, dict)]


def _first(parts: list[dict[str, Any]], kind: str) -> dict[str, Any]:
    return next((part for part in parts if part.get("type") == kind), {})


def _name(path: Any) -> str:
    if not isinstance(path, str) or not path:
        raise DataError(f"has {path!r:.40} where a path is expected")
    return path


def _text(value: Any) -> str:
    return value if isinstance(value, str) else ""


def _previous_text(part: dict[str, Any]) -> str:
    """Return the words before a recording; LiveCC's raw lines call them ``preasr``."""
    return _text(part.get("previous")) or _text(part.get("preasr"))


def _time(part: dict[str, Any], name: str) -> float | None:
    value = part.get(name)
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value < MAX_TIME_S:
        raise DataError(f"{name} is {value!r:.40}; expected a time in seconds")
    return float(value)


def _cues(stream: Any, name: str) -> tuple[Cue, ...]:
    if not isinstance(stream, list):
        raise DataError(f"{name} is not a list of [start, end, word]")
    for item in stream:
        if not (isinstance(item, list) and len(item) == 3 and isinstance(item[2], str)):
            raise DataError(f"{name} has {item!r:.40} where [start, end, word] is expected")
    # A single cue, so that a word without times can be interpolated between its neighbours.
    pieces = with_blanks([text for _, _, text in stream], None)
    words = (TimedText(piece, start_s, end_s) for piece, (start_s, end_s, _) in zip(pieces, stream, strict=True))
    return (Cue(tuple(words)),)


def _questions(stream: Any) -> tuple[tuple[TimedQuestion, ...], int]:
    entries: Sequence[Any] = stream if isinstance(stream, list) else []
    good = [
        TimedQuestion(float(entry[1]), entry[2], entry[3])
        for entry in entries
        if isinstance(entry, list)
        and len(entry) == 4
        and isinstance(entry[1], int | float)
        and 0 <= entry[1] < MAX_TIME_S
        and isinstance(entry[2], str)
        and isinstance(entry[3], str)
    ]
    return tuple(good), len(entries) - len(good)
