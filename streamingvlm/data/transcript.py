"""The timed words of a recording, with contradictory timestamps repaired.

A reader returns `Cue`s: words with their own times, or a span of text with one time for all of it. `repair` turns them
into one `Transcript` by the rules in `RULES` and counts what each rule did.
"""

import math
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise

from streamingvlm.config import TIME_SLACK_S

RULES = {
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


@dataclass(frozen=True, slots=True)
class Word:
    """One word without spaces, with its start and end in seconds of stream time."""

    start_s: float
    end_s: float
    text: str


@dataclass(frozen=True, slots=True)
class TimedText:
    """Text with the times a file gives it: one word, or several that share a time.

    The times are unchecked: None, or any other value that is not a time, where one is missing.
    """

    text: str
    start_s: float | None = None
    end_s: float | None = None


@dataclass(frozen=True, slots=True)
class Cue:
    """Words that a file groups together, with the time of the group where it has one."""

    words: tuple[TimedText, ...]
    start_s: float | None = None
    end_s: float | None = None

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
        spoken: list[list[str]] = [[] for _ in range(num_turns)]
        for word in self.words:
            turn = turn_of(word.end_s, start_s=start_s, turn_s=turn_s)
            if turn < num_turns:
                spoken[turn].append(word.text)
        return [" ".join(words) for words in spoken]


def turn_of(end_s: float, *, start_s: float, turn_s: float) -> int:
    """Return the turn in which a word ends. Turn i ends at ``start_s + (i + 1) * turn_s``, that moment included."""
    return max(0, math.ceil((end_s - start_s - TIME_SLACK_S) / turn_s) - 1)


def repair(cues: Iterable[Cue], *, start_s: float = 0.0, end_s: float = math.inf) -> tuple[Transcript, Counter[str]]:
    """Build a transcript of the cues from ``start_s`` to ``end_s``; count how often each of the `RULES` applied."""
    counts: Counter[str] = Counter()
    timed = [text for cue in cues for text in _timed(cue, counts)]
    ordered = _without_overlap(_in_order(timed, counts), counts)
    words = [word for text in ordered for word in spread(text.text, text.start_s, text.end_s)]
    kept = [word for word in words if not _is_outside(word, start_s, end_s, counts)]
    return Transcript(tuple(kept)), counts


def spread(text: str, start_s: float, end_s: float) -> list[Word]:
    """Split a text into words and divide its time among them in proportion to their lengths."""
    texts = clean_text(text).split()
    total = sum(map(len, texts))
    words, num_characters, word_start_s = [], 0, start_s
    for word in texts:
        num_characters += len(word)
        word_end_s = end_s if num_characters == total else start_s + (end_s - start_s) * (num_characters / total)
        words.append(Word(word_start_s, word_end_s, word))
        word_start_s = word_end_s
    return words


def clean_text(text: str) -> str:
    """Replace lone surrogates, which JSON can encode and UTF-8 cannot."""
    return text.encode("utf-8", "replace").decode("utf-8")


def _timed(cue: Cue, counts: Counter[str]) -> Iterator[TimedText]:
    """Yield the non-empty texts of a cue, each with both times and its start not after its end."""
    texts = [_checked(text, counts) for text in cue.words if text.text.strip()]
    counts["empty"] += len(cue.words) - len(texts)
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
    """Return a time in seconds, or None for null, text, NaN, infinity and negative numbers."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        return None
    try:
        time_s = float(value)
    except OverflowError:  # JSON integers are unbounded.
        return None
    return time_s if math.isfinite(time_s) and time_s >= 0 else None


def _interpolated(
    texts: Sequence[TimedText], left_s: float | None, right_s: float | None, counts: Counter[str]
) -> list[TimedText]:
    """Place texts without times between two moments, either of which may be unknown."""
    left_s, right_s = (right_s if left_s is None else left_s), (left_s if right_s is None else right_s)
    if left_s is None:
        counts["unplaced"] += len(texts)
        return []
    counts["untimed"] += len(texts)
    joined = " ".join(text.text for text in texts)
    return [TimedText(word.text, word.start_s, word.end_s) for word in spread(joined, left_s, max(left_s, right_s))]


def _in_order(texts: list[TimedText], counts: Counter[str]) -> list[TimedText]:
    counts["unordered"] += sum(after.start_s < before.start_s for before, after in pairwise(texts))
    return sorted(texts, key=lambda text: text.start_s)


def _without_overlap(texts: list[TimedText], counts: Counter[str]) -> list[TimedText]:
    """Shorten the earlier of two overlapping texts, so that one far too long word cannot delay all that follow."""
    limits_s = [*(text.start_s for text in texts[1:]), math.inf]
    pairs = list(zip(texts, limits_s, strict=False))  # Without texts there is still one limit.
    counts["overlapping"] += sum(text.end_s > limit_s + TIME_SLACK_S for text, limit_s in pairs)
    return [TimedText(text.text, text.start_s, min(text.end_s, limit_s)) for text, limit_s in pairs]


def _is_outside(word: Word, start_s: float, end_s: float, counts: Counter[str]) -> bool:
    """Return True if the word ends outside the span.

    A word that ends at the very start of a video is kept: no earlier turn exists for it.
    """
    is_early = start_s > 0 and word.end_s <= start_s + TIME_SLACK_S
    is_late = word.end_s > end_s + TIME_SLACK_S
    counts["early"] += is_early
    counts["late"] += is_late
    return is_early or is_late
