"""Transcript files: WhisperX and faster-whisper JSON, WebVTT and SubRip, recognised by their content.

Every reader returns `Cue`s with the times of the file; `streamingvlm.data.transcript.repair` makes them consistent.
"""

import codecs
import json
import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from streamingvlm.data.captions import caption_cues
from streamingvlm.data.transcript import Cue, TimedText
from streamingvlm.data.units import with_blanks
from streamingvlm.errors import DataError
from streamingvlm.provenance import is_generated_text

TRANSCRIPT_SUFFIXES = (".json", ".vtt", ".srt")
"""Suffixes of a transcript beside its video, in order of preference: JSON has times for each word."""

_SUBRIP_TIMING = re.compile(r"^\s*\d+:\d{1,2}:\d{1,2}[,.]\d+\s*-->", re.MULTILINE)
_ENCODINGS = {
    codecs.BOM_UTF32_LE: "utf-32",
    codecs.BOM_UTF32_BE: "utf-32",
    codecs.BOM_UTF16_LE: "utf-16",
    codecs.BOM_UTF16_BE: "utf-16",
}


# The first line of an .ass, .ssa or .lrc file.
_BRACKETED_LINE = re.compile(r"\s*\[(?:[A-Z][\w+ ]*|\w+:[^\]\n]*|\d+:\d+[.:]\d+)\]")


def read_cues(path: str | Path) -> list[Cue]:
    """Read a transcript of any of these formats. Raises DataError with the file and the fault."""
    text = _read_text(Path(path))
    if is_generated_text(text):
        raise DataError(
            f"{path} was written by a model, not by people (it bears the mark of streamingvlm); delete or move it, or "
            "give another transcript"
        )
    start = text.lstrip()[:1]
    if start and start in "{[" and not _BRACKETED_LINE.match(text):
        return _whisper_cues(_json(text, path), path)
    if text.startswith("WEBVTT"):
        return caption_cues(text, "vtt", path)
    if _SUBRIP_TIMING.search(text):
        return caption_cues(text, "srt", path)
    raise DataError(
        f"{path} is not a transcript; give WhisperX or faster-whisper JSON, WebVTT or SubRip (ffmpeg -i FILE NEW.srt "
        "converts other captions)"
    )


def segment_cue(segment: Any, where: str) -> Cue:
    """Return a speech recogniser's segment as a cue.

    segment: a dict from JSON, or an object with the same fields. where: names the segment in a DataError.
    """
    field = _fields(segment)
    words, text = field("words"), field("text")
    start_s, end_s = field("start"), field("end")
    if isinstance(words, Sequence) and not isinstance(words, str) and words:
        return _cue_of_words(words, text, start_s, end_s, where)
    if not isinstance(text, str):
        raise DataError(f"{where} has neither words nor text; give WhisperX or faster-whisper JSON")
    return Cue.from_text(text, start_s, end_s)


def _cue_of_words(words: Sequence[Any], text: Any, start_s: Any, end_s: Any, where: str) -> Cue:
    fields = [_fields(word) for word in words]
    texts = [field("word") for field in fields]
    if not all(isinstance(word, str) for word in texts):
        raise DataError(f"{where} has a word without text; give WhisperX or faster-whisper JSON")
    pieces = with_blanks(texts, text if isinstance(text, str) else None)
    timed = (TimedText(piece, field("start"), field("end")) for piece, field in zip(pieces, fields, strict=True))
    return Cue(tuple(timed), start_s, end_s)


def _fields(item: Any) -> Callable[[str], Any]:
    """Return a function from the name of a field to its value, None if it is missing."""
    return item.get if isinstance(item, Mapping) else lambda name: getattr(item, name, None)


def _read_text(path: Path) -> str:
    try:
        data = path.read_bytes()
        return data.decode(_encoding(data))
    except UnicodeDecodeError as error:
        raise DataError(
            f"{path} is not UTF-8 text; convert it from its encoding, such as CP1252 (Western), CP1251 (Cyrillic), "
            "GB18030 (Chinese) or SHIFT_JIS (Japanese): iconv -f ENCODING -t UTF-8 FILE > NEW"
        ) from error
    except OSError as error:
        raise DataError(f"{path} cannot be read ({error.strerror}); check the path to the transcript") from error


def _encoding(data: bytes) -> str:
    """Return the encoding that the first bytes show: Windows writes UTF-16, with a mark or without."""
    if found := next((name for mark, name in _ENCODINGS.items() if data.startswith(mark)), None):
        return found
    zeros = data[:2].find(0)
    return "utf-8-sig" if zeros < 0 else ("utf-16-be", "utf-16-le")[zeros]


def _json(text: str, path: str | Path) -> Any:
    try:
        return json.loads(text)
    except json.JSONDecodeError as error:
        raise DataError(f"{path}:{error.lineno} is not valid JSON ({error.msg}); write the file again") from error
    except (RecursionError, ValueError) as error:
        raise DataError(f"{path} is JSON that cannot be parsed; write the file again") from error


def _whisper_cues(document: Any, path: str | Path) -> list[Cue]:
    segments, text, words = document, None, None
    if isinstance(document, dict):
        segments, text, words = (document.get(name) for name in ("segments", "text", "words"))
    has_segments = isinstance(segments, list) and all(isinstance(segment, dict) for segment in segments)
    if isinstance(words, list) and words and not (has_segments and any(s.get("words") for s in segments)):
        # OpenAI's verbose_json: words beside the segments. WhisperX repeats those of the segments there.
        whole = text or "".join(str(s.get("text") or "") for s in (segments if has_segments else []))
        return [_cue_of_words(words, whole, None, None, str(path))]
    if not isinstance(segments, list):
        raise DataError(f"{path} has no list of segments; give WhisperX or faster-whisper JSON")
    return [segment_cue(segment, f"{path}: segment {number}") for number, segment in enumerate(segments)]
