"""WebVTT and SubRip captions as cues: inline times, highlighted words, and captions that repeat the one before."""

import html
import io
import logging
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import groupby, pairwise
from pathlib import Path

import regex
import webvtt
from webvtt.errors import MalformedCaptionError, MalformedFileError

from streamingvlm.data.transcript import Cue, TimedText, seconds
from streamingvlm.data.units import split_units, starts_unspaced
from streamingvlm.errors import DataError

log = logging.getLogger(__name__)

MAX_ROLL_GAP_S = 0.1
"""A caption that rolls appears when the one before it disappears."""

_INLINE_TIME = regex.compile(r"<((?:\d+:)?\d{2}:\d{2}\.\d{3})>")
_BREAK = regex.compile(r"<br\s*/?>", regex.IGNORECASE)
_VOICE = regex.compile(r"<v[.\s][^<>]*>")
_RUBY = regex.compile(r"<rt>.*?(?:</rt>|$)")
_TAG = regex.compile(r"</?[A-Za-z][^<>]*>|</>|<[\d:.]+>|\{\\[^}]*\}")
_MARK = regex.compile(r"<(u|b|i|font|c)\b[^<>]*>(.+?)</\1>")


@dataclass(frozen=True)
class _Caption:
    start_s: float
    end_s: float
    raw_lines: tuple[str, ...]

    @cached_property
    def lines(self) -> tuple[str, ...]:
        """The lines as they are shown."""
        return tuple(" ".join(_plain(line).split()) for line in self.raw_lines)

    @property
    def marked(self) -> tuple[int, int] | None:
        """The start and end of the only highlighted part, if there is one, in the shown text."""
        raw = "\n".join(self.raw_lines)
        if len(found := _MARK.findall(raw)) != 1 or not (text := _plain(found[0][1]).strip()):
            return None
        start = len(_shown(_plain(raw[: _MARK.search(raw).start()]) + "x")) - 1
        return start, start + len(text)


def caption_cues(text: str, kind: str, path: str | Path) -> list[Cue]:
    """Read captions of a kind, ``vtt`` or ``srt``. Raises DataError for a damaged file."""
    try:
        parsed = webvtt.from_buffer(io.StringIO(text), format=kind).captions
    except (MalformedFileError, MalformedCaptionError) as error:
        raise DataError(f"{path} is damaged ({error}); write the file again") from error
    if (num_skipped := text.count("-->") - len(parsed)) > 0:
        log.warning("%s: skipped %d cues that are empty or cannot be parsed", path, num_skipped)
    return list(_cues([_caption(caption) for caption in parsed]))


def _caption(caption: webvtt.Caption) -> _Caption:
    raw = _VOICE.sub("\n>> ", _BREAK.sub("\n", caption.raw_text))
    lines = tuple(line for line in raw.split("\n") if _plain(line).strip())
    return _Caption(seconds(caption.start), seconds(caption.end), lines)


def _cues(captions: Sequence[_Caption]) -> Iterator[Cue]:
    rolls, grows = _rolls(captions), _grows(captions)
    before = _Caption(0.0, -1.0, ())
    for _, same in groupby(captions, lambda caption: caption.lines):
        run = list(same)
        if len({caption.marked for caption in run} - {None}) > 1:
            yield _highlighted(run)
        else:
            for caption in run:
                yield _new_text(caption, before, rolls, grows)
                before = caption
        before = run[-1]


def _new_text(caption: _Caption, before: _Caption, rolls: bool, grows: bool) -> Cue:
    """Return what a caption shows that the one before it did not."""
    num_lines = _num_repeated_lines(before, caption)
    if num_lines == len(caption.lines) and not rolls:
        num_lines = 0
    if grows and _grown(before, caption):
        repeated = " ".join(before.lines)
        rest = _shown("\n".join(caption.lines))[len(_shown("\n".join(before.lines))) :]
        return Cue((TimedText(rest, caption.start_s, caption.end_s),), caption.start_s, caption.end_s,
                   len(split_units(repeated)))  # fmt: skip
    repeated = " ".join(caption.lines[:num_lines])
    first, *rest = _INLINE_TIME.split("\n".join(caption.raw_lines[num_lines:]))
    times_s = [caption.start_s, *map(seconds, rest[::2]), caption.end_s]
    texts = map(_shown, map(_plain, [first, *rest[1::2]]))
    words = tuple(TimedText(text, *span_s) for text, span_s in zip(texts, pairwise(times_s), strict=True) if text)
    return Cue(words, caption.start_s, caption.end_s, len(split_units(repeated)))


def _num_repeated_lines(before: _Caption, caption: _Caption) -> int:
    """Return how many lines at the start of a caption repeat the last lines of the one it replaces."""
    if caption.start_s - before.end_s > MAX_ROLL_GAP_S:
        return 0
    most = min(len(before.lines), len(caption.lines))
    return next((num for num in range(most, 0, -1) if before.lines[-num:] == caption.lines[:num]), 0)


def _rolls(captions: Sequence[_Caption]) -> bool:
    """Return True if any caption shows new lines below those of the one before it."""
    return any(0 < _num_repeated_lines(*pair) < len(pair[1].lines) for pair in pairwise(captions))


def _grows(captions: Sequence[_Caption]) -> bool:
    """Return True if most captions that replace another add words to it."""
    return 2 * sum(_grown(*pair) for pair in pairwise(captions)) >= max(4, len(captions) - 1)


def _grown(before: _Caption, caption: _Caption) -> bool:
    old, new = (" ".join(c.lines) for c in (before, caption))
    is_next = caption.start_s - before.end_s <= MAX_ROLL_GAP_S and not _num_repeated_lines(before, caption)
    return is_next and bool(old) and len(new) > len(old) and new.startswith(old)


def _highlighted(run: Sequence[_Caption]) -> Cue:
    """Return the words of one text that is shown several times, with another word marked each time."""
    text = _shown("\n".join(run[0].lines))
    spans_s = {caption.marked: (caption.start_s, caption.end_s) for caption in run if caption.marked}
    starts_s = {start: span_s for (start, _), span_s in spans_s.items()}
    cuts = {match.start() for match in regex.finditer(r"\s+", text)}
    cuts |= {cut for span in spans_s for cut in span if not text[cut - 1 : cut].isspace()}
    words = []
    for start, stop in pairwise(sorted({0, len(text), *cuts})):
        piece = text[start:stop]
        words.append(TimedText(piece, *starts_s.get(stop - len(piece.lstrip()), (None, None))))
    return Cue(tuple(words), run[0].start_s, run[-1].end_s)


def _plain(text: str) -> str:
    """Remove the tags of both formats and decode HTML entities."""
    return html.unescape(_TAG.sub("", _RUBY.sub("", text)))


def _shown(text: str) -> str:
    """Join the lines of a text; between characters of a script without blanks, a line break is no blank."""
    first, *rest = text.split("\n")
    for line in rest:
        before = split_units(first)
        is_joined = before and starts_unspaced(before[-1][0]) and starts_unspaced(line.lstrip())
        first = first.rstrip() + line.lstrip() if is_joined else f"{first}\n{line}"
    return first
