"""Files of transcripts: WhisperX and faster-whisper JSON, WebVTT and SubRip, told apart by what is in them.

Every reader gives `Cue`s as the file has them; `streamingvlm.data.transcript.mend` makes sense of their times.
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

from streamingvlm.data.transcript import Cue, Stamped
from streamingvlm.errors import DataError

log = logging.getLogger(__name__)

TRANSCRIPT_SUFFIXES = (".json", ".vtt", ".srt")
"""Under which names a transcript stands beside its video, the richest format first."""

_SUBRIP_TIMING = re.compile(r"^\s*\d+:\d{1,2}:\d{1,2}[,.]\d+\s*-->", re.MULTILINE)
_INLINE_STAMP = re.compile(r"<((?:\d+:)?\d{2}:\d{2}\.\d{3})>")
_TAG = re.compile(r"</?[^>]*>|\{\\[^}]*\}")


def read_cues(path: str | Path) -> list[Cue]:
    """Read a transcript of any format; DataError names the file and what is wrong with it."""
    text = _read_text(Path(path))
    start = text.lstrip()[:1]
    if start and start in "{[":
        return _whisper_cues(_json(text, path), path)
    if text.startswith("WEBVTT"):
        return _caption_cues(text, "vtt", path)
    if _SUBRIP_TIMING.search(text):
        return _caption_cues(text, "srt", path)
    raise DataError(f"{path} is no transcript; give WhisperX or faster-whisper JSON, WebVTT or SubRip")


def segment_cue(segment: Any, where: str) -> Cue:
    """One segment of a recogniser as a cue, from JSON or from an object with the same fields; DataError otherwise."""
    field = segment.get if isinstance(segment, Mapping) else lambda name: getattr(segment, name, None)
    words, text = field("words"), field("text")
    start_s, end_s = field("start"), field("end")
    if isinstance(words, Sequence) and not isinstance(words, str) and words:
        return Cue(tuple(_stamped(word, where) for word in words), start_s, end_s)
    if not isinstance(text, str):
        raise DataError(f"{where} has neither words nor a text; give WhisperX or faster-whisper JSON")
    return Cue.of_text(text, start_s, end_s)


def _stamped(word: Any, where: str) -> Stamped:
    field = word.get if isinstance(word, Mapping) else lambda name: getattr(word, name, None)
    if not isinstance(text := field("word"), str):
        raise DataError(f"{where} has a word without a text; give WhisperX or faster-whisper JSON")
    return Stamped(text, field("start"), field("end"))


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
        raise DataError(f"{path}:{error.lineno} is not JSON ({error.msg}); write the file again") from error
    except (RecursionError, ValueError) as error:
        raise DataError(f"{path} is JSON that no recogniser writes; write the file again") from error


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
    if (num_lost := text.count("-->") - len(captions)) > 0:
        log.warning("%s: %d of its cues are empty or cannot be read, and are passed over", path, num_lost)
    has_inline_stamps = any(_INLINE_STAMP.search(caption.raw_text) for caption in captions)
    # Captions made while somebody speaks stamp the words of the new line and repeat the line before as it stands.
    read = _karaoke_words if has_inline_stamps else _whole_text
    return [cue for caption in captions for cue in read(caption)]


def _whole_text(caption: webvtt.Caption) -> Iterator[Cue]:
    yield Cue.of_text(_plain(caption.raw_text), *_span_s(caption))


def _karaoke_words(caption: webvtt.Caption) -> Iterator[Cue]:
    start_s, end_s = _span_s(caption)
    for line in caption.lines:
        first, *rest = _INLINE_STAMP.split(line)
        if not rest:
            continue
        times_s = [start_s, *map(_seconds, rest[::2]), end_s]
        texts = map(_plain, [first, *rest[1::2]])
        words = (Stamped(text, *span) for text, span in zip(texts, pairwise(times_s), strict=True) if text.strip())
        yield Cue(tuple(words), start_s, end_s)


def _span_s(caption: webvtt.Caption) -> tuple[float, float]:
    return _seconds(caption.start), _seconds(caption.end)


def _seconds(stamp: str) -> float:
    total = 0.0
    for part in stamp.split(":"):
        total = total * 60 + float(part)
    return total


def _plain(text: str) -> str:
    """Without tags of either format, entities read."""
    return html.unescape(_TAG.sub("", text))
