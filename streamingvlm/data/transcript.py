"""The timed words of a recording, with contradictory timestamps repaired.

A reader returns `Cue`s: words with their own times, or a span of text with one time for all of it. `repair` turns them
into one `Transcript` by the rules in `RULES` and counts what each rule did.
"""

import math
import re
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence, Set
from dataclasses import dataclass, replace
from itertools import accumulate, pairwise
from numbers import Real

from streamingvlm.config import TIME_SLACK_S
from streamingvlm.data.non_speech import NON_SPEECH, recurring_labels, without_non_speech
from streamingvlm.data.units import is_one_unit, split_units, starts_unspaced

RULES = {
    **NON_SPEECH,
    "repeated": "dropped: it repeats the caption before it",
    "empty": "dropped: it has no text",
    "reversed": "ended before it started: its start moved to its end, which decides its turn",
    "untimed": "had no usable times: interpolated between its neighbours, in proportion to its length",
    "unplaced": "dropped: it has no times, and no neighbour has any",
    "unordered": "started before the word that precedes it: sorted by start time",
    "overlapping": "overlapped the next word: ends where that one starts",
    "early": "dropped: it ends before the used span of the video",
    "late": "dropped: it ends after the used span of the video",
}
"""The meaning of each count in the manifest."""

# Zero-width and soft break points, byte-order marks, and marks of direction; joiners stay, which shape letters.
_NOT_SHOWN = re.compile("[\u00ad\u200b\u200e\u200f\u202a-\u202e\u2060\u2066-\u2069\ufeff]")
_CLOCK = re.compile(r"\s*(?:(?:(\d+):)?(\d+):)?(\d+(?:[.,]\d+)?)\s*s?\s*", re.ASCII)


@dataclass(frozen=True, slots=True)
class Word:
    """One word, or one character of a script without blanks, with its start and end in seconds of stream time.

    continues: no blank separates it from the word before it.
    """

    start_s: float
    end_s: float
    text: str
    continues: bool = False


@dataclass(frozen=True, slots=True)
class TimedText:
    """Text with the times a file gives it: a word, a part of one, or several words that share a time.

    The times are unchecked: None, or any other value that is not a time, where one is missing.
    continues: as in `Word`, for the first word of the text.
    """

    text: str
    start_s: float | None = None
    end_s: float | None = None
    continues: bool = False


@dataclass(frozen=True, slots=True)
class Cue:
    """Words that a file groups together, with the time of the group where it has one.

    words: their texts include blanks; one without a leading blank continues the text before it.
    num_repeated: words of the caption before this one that the file repeats here; ``words`` has none of them.
    """

    words: tuple[TimedText, ...]
    start_s: float | None = None
    end_s: float | None = None
    num_repeated: int = 0

    @classmethod
    def from_text(cls, text: str, start_s: float | None, end_s: float | None) -> "Cue":
        """Build a cue whose words have no times of their own."""
        return cls((TimedText(text, start_s, end_s),), start_s, end_s)


@dataclass(frozen=True)
class Transcript:
    """Words in spoken order; none starts before the previous one has ended."""

    words: tuple[Word, ...] = ()

    def lines(self, *, start_s: float, num_turns: int, turn_s: float = 1.0) -> list[str]:
        """Return the text of each turn, "" for a silent one; a word belongs to the turn in which it ends."""
        spoken: list[list[Word]] = [[] for _ in range(num_turns)]
        for word in self.words:
            turn = turn_of(word.end_s, start_s=start_s, turn_s=turn_s)
            if turn < num_turns:
                spoken[turn].append(word)
        return [join(words) for words in spoken]


def join(words: Iterable[Word]) -> str:
    """Return the text of the words, with a blank before each that does not continue the one before it."""
    return "".join(word.text if word.continues else f" {word.text}" for word in words).strip()


def turn_of(end_s: float, *, start_s: float, turn_s: float) -> int:
    """Return the turn in which a word ends. Turn i ends at ``start_s + (i + 1) * turn_s``, that moment included."""
    return max(0, math.ceil((end_s - start_s - TIME_SLACK_S) / turn_s) - 1)


def repair(cues: Iterable[Cue], *, start_s: float = 0.0, end_s: float = math.inf) -> tuple[Transcript, Counter[str]]:
    """Build a transcript of the cues from ``start_s`` to ``end_s``; count how often each of the `RULES` applied."""
    cues, counts = list(cues), Counter[str]()
    labels = recurring_labels([text.text for text in cue.words] for cue in cues)
    timed = [text for cue in cues for text in _timed(cue, counts, labels)]
    ordered = _without_overlap(_in_order(timed, counts), counts)
    words = [word for text in ordered for word in _words(text)]
    kept = [word for word in words if not _is_outside(word, start_s, end_s, counts)]
    return Transcript(tuple(kept)), counts


def spread(text: str, start_s: float, end_s: float, *, continues: bool = False) -> list[Word]:
    """Split a text into words and divide its time among them in proportion to their lengths.

    continues: whether the first word continues what precedes the text.
    """
    units = split_units(clean_text(text))
    spans_s = _shares([len(unit) for unit, _ in units], start_s, end_s)
    return [
        Word(*span_s, unit, is_joined or (continues and number == 0))
        for number, ((unit, is_joined), span_s) in enumerate(zip(units, spans_s, strict=True))
    ]


def _words(text: TimedText) -> list[Word]:
    return spread(text.text, text.start_s, text.end_s, continues=text.continues)


def _shares(lengths: Sequence[int], start_s: float, end_s: float) -> list[tuple[float, float]]:
    """Divide the time from ``start_s`` to ``end_s`` in proportion to the lengths."""
    total, stops = sum(lengths), accumulate(lengths)
    bounds = [start_s + (end_s - start_s) * (stop / total) if stop < total else end_s for stop in stops]
    return list(pairwise([start_s, *bounds]))


def clean_text(text: str) -> str:
    """Replace lone surrogates, which JSON can encode and UTF-8 cannot, and drop marks that are not shown."""
    return _NOT_SHOWN.sub("", text.encode("utf-8", "replace").decode("utf-8"))


def _timed(cue: Cue, counts: Counter[str], labels: Set[str]) -> Iterator[TimedText]:
    """Yield the non-empty texts of a cue, each with both times and its start not after its end."""
    counts["repeated"] += cue.num_repeated
    counts["empty"] += sum(not text.text.strip() for text in cue.words)
    speech = without_non_speech([text.text for text in cue.words], counts, labels)
    pieces = (replace(text, text=said) for text, said in zip(cue.words, speech, strict=True))
    texts = _whole_words([_checked(piece, counts) for piece in pieces])
    bounds = _checked(TimedText("", cue.start_s, cue.end_s), Counter())
    left_s, index = bounds.start_s, 0
    while index < len(texts):
        if texts[index].end_s is not None:
            yield texts[index]
            left_s, index = texts[index].end_s, index + 1
            continue
        stop = next((i for i in range(index, len(texts)) if texts[i].end_s is not None), len(texts))
        right_s = texts[stop].start_s if stop < len(texts) else bounds.end_s
        yield from _interpolated(texts[index:stop], left_s, right_s, counts)
        index = stop


def _whole_words(pieces: Sequence[TimedText]) -> list[TimedText]:
    """Join the pieces of a cue that split a word, and drop those without text."""
    texts: list[TimedText] = []
    has_blank = not (pieces and starts_unspaced(pieces[0].text))
    for piece in pieces:
        if not piece.text.strip():
            has_blank |= bool(piece.text)
            continue
        continues = not (has_blank or piece.text[0].isspace())
        has_blank = piece.text[-1].isspace()
        first, *rest = _parts(replace(piece, continues=continues)) if texts and continues else [piece]
        last = _parts(texts[-1])[-1] if texts and continues else None
        if last and is_one_unit(last.text + first.text):
            texts[-1:] = [*_parts(texts[-1])[:-1], _one_word(last, first), *rest]
        else:
            texts.append(replace(piece, continues=continues))
    return texts


def _parts(text: TimedText) -> list[TimedText]:
    """Split a text into its words; their times are unknown if its own are."""
    if text.end_s is None:
        return [TimedText(unit, continues=is_joined) for unit, is_joined in split_units(text.text)]
    return [TimedText(word.text, word.start_s, word.end_s, word.continues) for word in _words(text)]


def _one_word(head: TimedText, tail: TimedText) -> TimedText:
    end_s = head.end_s if tail.end_s is None else tail.end_s
    start_s = tail.start_s if head.start_s is None else head.start_s
    return TimedText(head.text + tail.text, start_s and min(start_s, end_s), end_s, head.continues)


def _checked(text: TimedText, counts: Counter[str]) -> TimedText:
    """Return the text with both times or neither; if only one is usable, it serves as start and end."""
    start_s, end_s = _valid_time(text.start_s), _valid_time(text.end_s)
    if start_s is None or end_s is None:
        counts["untimed"] += (start_s is None) != (end_s is None)
        known_s = end_s if start_s is None else start_s
        return TimedText(text.text, known_s, known_s)
    if end_s < start_s:
        counts["reversed"] += 1
        start_s = end_s
    return TimedText(text.text, start_s, end_s)


def _valid_time(value: object) -> float | None:
    """Return a time in seconds, or None for null, other text, NaN, infinity and negative numbers."""
    if isinstance(value, str):
        value = seconds(value)
    if isinstance(value, bool) or not isinstance(value, Real):
        return None
    try:
        time_s = float(value)
    except OverflowError:  # JSON integers are unbounded.
        return None
    return time_s if math.isfinite(time_s) and time_s >= 0 else None


def seconds(text: str) -> float | None:
    """Return the seconds of ``1.5``, ``1.5s``, ``01:02.5`` or ``00:01:02,500``; None for other texts."""
    if not (match := _CLOCK.fullmatch(text)):
        return None
    hours, minutes, rest = (float((part or "0").replace(",", ".")) for part in match.groups())
    return hours * 3600 + minutes * 60 + rest


def _interpolated(
    texts: Sequence[TimedText], left_s: float | None, right_s: float | None, counts: Counter[str]
) -> list[TimedText]:
    """Place texts without times between two moments, either of which may be unknown."""
    left_s, right_s = (right_s if left_s is None else left_s), (left_s if right_s is None else right_s)
    if left_s is None:
        counts["unplaced"] += len(texts)
        return []
    counts["untimed"] += len(texts)
    spans_s = _shares([len("".join(text.text.split())) for text in texts], left_s, max(left_s, right_s))
    return [replace(text, start_s=a_s, end_s=b_s) for text, (a_s, b_s) in zip(texts, spans_s, strict=True)]


def _in_order(texts: list[TimedText], counts: Counter[str]) -> list[TimedText]:
    counts["unordered"] += sum(after.start_s < before.start_s for before, after in pairwise(texts))
    return sorted(texts, key=lambda text: text.start_s)


def _without_overlap(texts: list[TimedText], counts: Counter[str]) -> list[TimedText]:
    """Shorten the earlier of two overlapping texts, so that one far too long word cannot delay all that follow."""
    limits_s = [*(text.start_s for text in texts[1:]), math.inf]
    pairs = list(zip(texts, limits_s, strict=False))  # Without texts there is still one limit.
    counts["overlapping"] += sum(text.end_s > limit_s + TIME_SLACK_S for text, limit_s in pairs)
    return [replace(text, end_s=min(text.end_s, limit_s)) for text, limit_s in pairs]


def _is_outside(word: Word, start_s: float, end_s: float, counts: Counter[str]) -> bool:
    """Return True if the word ends outside the span.

    A word that ends at the very start of a video is kept: no earlier turn exists for it.
    """
    is_early = start_s > 0 and word.end_s <= start_s + TIME_SLACK_S
    is_late = word.end_s > end_s + TIME_SLACK_S
    counts["early"] += is_early
    counts["late"] += is_late
    return is_early or is_late
