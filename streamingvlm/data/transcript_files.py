"""Transcript files: WhisperX and faster-whisper JSON, WebVTT and SubRip, recognised by their content.

Every reader returns `Cue`s with the times of the file; `streamingvlm.data.transcript.repair` makes them consistent.
"""

import html
import io
import json
import logging
import re
from collections.abc import Iterator, Mapping, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

import webvtt
from webvtt.errors import MalformedCaptionError, MalformedFileError

from streamingvlm.data.transcript import Cue, TimedText
from streamingvlm.errors import DataError
from streamingvlm.provenance import is_generated_text

log = logging.getLogger(__name__)

TRANSCRIPT_SUFFIXES = (".json", ".vtt", ".srt")
"""Suffixes of a transcript beside its video, in order of preference: JSON has times for each word."""

_SUBRIP_TIMING = re.compile(r"^\s*\d+:\d{1,2}:\d{1,2}[,.]\d+\s*-->", re.MULTILINE)
_INLINE_TIME = re.compile(r"<((?:\d+:)?\d{2}:\d{2}\.\d{3})>")
_TAG = re.compile(r"</?[^>]*>|\{\\[^}]*\}")


def read_cues(path: str | Path) -> list[Cue]:
    """Read a transcript of any of these formats. Raises DataError with the file and the fault."""
    text = _read_text(Path(path))
    if is_generated_text(text):
        raise DataError(
            f"{path} was written by a model, not by people (it bears the mark of streamingvlm); delete or move it, or "
            "give another transcript"
        )
    start = text.lstrip()[:1]
    if start and start in "{[":
        return _whisper_cues(_json(text, path), path)
    if text.startswith("WEBVTT"):
        return _caption_cues(text, "vtt", path)
    if _SUBRIP_TIMING.search(text):
        return _caption_cues(text, "srt", path)
    raise DataError(f"{path} is not a transcript; give WhisperX or faster-whisper JSON, WebVTT or SubRip")


def segment_cue(segment: Any, where: str) -> Cue:
    """Return a speech recogniser's segment as a cue.

    segment: a dict from JSON, or an object with the same fields. where: names the segment in a DataError.
    """
    field = segment.get if isinstance(segment, Mapping) else lambda name: getattr(segment, name, None)
    words, text = field("words"), field("text")
    start_s, end_s = field("start"), field("end")
    if isinstance(words, Sequence) and not isinstance(words, str) and words:
        return Cue(tuple(_timed_word(word, where) for word in words), start_s, end_s)
    if not isinstance(text, str):
        raise DataError(f"{where} has neither words nor text; give WhisperX or faster-whisper JSON")
    return Cue.from_text(text, start_s, end_s)


def _timed_word(word: Any, where: str) -> TimedText:
    field = word.get if isinstance(word, Mapping) else lambda name: getattr(word, name, None)
    if not isinstance(text := field("word"), str):
        raise DataError(f"{where} has a word without text; give WhisperX or faster-whisper JSON")
    return TimedText(text, field("start"), field("end"))


def _read_text(path: Path) -> str:
    try:
        return path.read_text("utf-8-sig")
    except UnicodeDecodeError as error:
        raise DataError(f"{path} is not UTF-8 text; convert it: iconv -f LATIN1 -t UTF-8 FILE > NEW") from error
    except OSError as error:
        raise DataError(f"{path} cannot be read ({error.strerror}); check the path to the transcript") from error


def _json(text: str, path: str | Path) -> Any:
    try:
        return json.loads(text)
    except json.JSONDecodeError as error:
        raise DataError(f"{path}:{error.lineno} is not valid JSON ({error.msg}); write the file again") from error
    except (RecursionError, ValueError) as error:
        raise DataError(f"{path} is JSON that cannot be parsed; write the file again") from error


def _whisper_cues(document: Any, path: str | Path) -> list[Cue]:
    segments = document.get("segments") if isinstance(document, dict) else document
    if not isinstance(segments, list):
        raise DataError(f"{path} has no list of segments; give WhisperX or faster-whisper JSON")
    return [segment_cue(segment, f"{path}: segment {number}") for number, segment in enumerate(segments)]


def _caption_cues(text: str, kind: str, path: str | Path) -> list[Cue]:
    try:
        captions = webvtt.from_buffer(io.StringIO(text), format=kind).captions
    except (MalformedFileError, MalformedCaptionError) as error:
        raise DataError(f"{path} is damaged ({error}); write the file again") from error
    if (num_skipped := text.count("-->") - len(captions)) > 0:
        log.warning("%s: skipped %d cues that are empty or cannot be parsed", path, num_skipped)
    has_inline_times = any(_INLINE_TIME.search(caption.raw_text) for caption in captions)
    # Live captions put a time on each word of the new line and repeat the previous line without times.
    read = _inline_timed_words if has_inline_times else _whole_text
    return [cue for caption in captions for cue in read(caption)]


def _whole_text(caption: webvtt.Caption) -> Iterator[Cue]:
    yield Cue.from_text(_plain(caption.raw_text), *_span_s(caption))


def _inline_timed_words(caption: webvtt.Caption) -> Iterator[Cue]:
    start_s, end_s = _span_s(caption)
    for line in caption.lines:
        first, *rest = _INLINE_TIME.split(line)
        if not rest:
            continue
        times_s = [start_s, *map(_seconds, rest[::2]), end_s]
        texts = map(_plain, [first, *rest[1::2]])
        words = (TimedText(text, *span) for text, span in zip(texts, pairwise(times_s), strict=True) if text.strip())
        yield Cue(tuple(words), start_s, end_s)


def _span_s(caption: webvtt.Caption) -> tuple[float, float]:
    return _seconds(caption.start), _seconds(caption.end)


def _seconds(timestamp: str) -> float:
    total = 0.0
    for part in timestamp.split(":"):
        total = total * 60 + float(part)
    return total


def _plain(text: str) -> str:
    """Remove the tags of both formats and decode HTML entities."""
    return html.unescape(_TAG.sub("", text))
