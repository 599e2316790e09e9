"""The words of a recording with their times, mended where the stamps of a recogniser contradict each other.

A format gives `Cue`s: words with times of their own, or a stretch of text with the time of the whole. `mend` makes one
`Transcript` of them by the rules in `RULES` and counts what it did.
"""

import math
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise

from streamingvlm.config import TIME_SLACK_S

RULES = {
    "empty": "dropped: no letter in it",
    "reversed": "ended before it began: it begins where it ends, for the end decides the turn",
    "untimed": "had no usable times: spread between its neighbours, by length",
    "unplaced": "dropped: no times, and no neighbour that has any",
    "unordered": "began before the word that stands before it: sorted by its beginning",
    "overlapping": "reached into its successor: ends where that one begins",
    "early": "dropped: ends before the part of the video that is used",
    "late": "dropped: ends after the video, or the part of it that is used",
}
"""What a count in the manifest stands for."""


@dataclass(frozen=True, slots=True)
class Word:
    """One word, without spaces, and when it was said, in seconds of stream time."""

    start_s: float
    end_s: float
    text: str


@dataclass(frozen=True, slots=True)
class Stamped:
    """Text as a file stamps it: a word, or several that share their time; no number where a time is missing."""

    text: str
    start_s: float | None = None
    end_s: float | None = None


@dataclass(frozen=True, slots=True)
class Cue:
    """Words that a file gives together, and the time of the whole where it has one."""

    words: tuple[Stamped, ...]
    start_s: float | None = None
    end_s: float | None = None

    @classmethod
    def of_text(cls, text: str, start_s: float | None, end_s: float | None) -> "Cue":
        """A cue whose words have no times of their own."""
        return cls((Stamped(text, start_s, end_s),), start_s, end_s)


@dataclass(frozen=True)
class Transcript:
    """Words in the order in which they are said; none begins before its predecessor has ended."""

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
    """Return the turn that a moment ends: turn i lasts until ``start_s + (i + 1) * turn_s``, that moment included."""
    return max(0, math.ceil((end_s - start_s - TIME_SLACK_S) / turn_s) - 1)


def mend(cues: Iterable[Cue], *, start_s: float = 0.0, end_s: float = math.inf) -> tuple[Transcript, Counter[str]]:
    """Make a transcript of the cues, from ``start_s`` to ``end_s``, and count what each of the `RULES` did."""
    counts: Counter[str] = Counter()
    timed = [item for cue in cues for item in _timed(cue, counts)]
    pieces = _without_overlap(_in_order(timed, counts), counts)
    words = [word for piece in pieces for word in spread(piece.text, piece.start_s, piece.end_s)]
    kept = [word for word in words if not _is_outside(word, start_s, end_s, counts)]
    return Transcript(tuple(kept)), counts


def spread(text: str, start_s: float, end_s: float) -> list[Word]:
    """Give each word of a text a share of its time, in proportion to its letters."""
    texts = clean_text(text).split()
    total = sum(map(len, texts))
    words, said, begin_s = [], 0, start_s
    for word in texts:
        said += len(word)
        finish_s = end_s if said == total else start_s + (end_s - start_s) * (said / total)
        words.append(Word(begin_s, finish_s, word))
        begin_s = finish_s
    return words


def clean_text(text: str) -> str:
    """Replace what no file can hold: halves of characters, which JSON can spell and UTF-8 cannot."""
    return text.encode("utf-8", "replace").decode("utf-8")


def _timed(cue: Cue, counts: Counter[str]) -> Iterator[Stamped]:
    """Yield the pieces of a cue that have text, each with both times, its start never after its end."""
    pieces = [_checked(piece, counts) for piece in cue.words if piece.text.strip()]
    counts["empty"] += len(cue.words) - len(pieces)
    bounds = _checked(Stamped("", cue.start_s, cue.end_s), Counter())
    left_s, index = bounds.start_s, 0
    while index < len(pieces):
        if pieces[index].end_s is not None:
            yield pieces[index]
            left_s, index = pieces[index].end_s, index + 1
            continue
        stop = next((i for i in range(index, len(pieces)) if pieces[i].end_s is not None), len(pieces))
        right_s = pieces[stop].start_s if stop < len(pieces) else bounds.end_s
        yield from _placed(pieces[index:stop], left_s, right_s, counts)
        index = stop


def _checked(piece: Stamped, counts: Counter[str]) -> Stamped:
    """Both times or none; a single one stands for the other too."""
    start_s, end_s = _moment(piece.start_s), _moment(piece.end_s)
    if start_s is None or end_s is None:
        counts["untimed"] += (start_s is None) != (end_s is None)
        known_s = end_s if start_s is None else start_s
        return Stamped(piece.text, known_s, known_s)
    if end_s < start_s:
        counts["reversed"] += 1
        start_s = end_s
    return Stamped(piece.text, start_s, end_s)


def _moment(value: object) -> float | None:
    """A time, or None for whatever is none: null, text, NaN, a time before the beginning of time."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        return None
    try:
        time_s = float(value)
    except OverflowError:  # JSON has integers of any length
        return None
    return time_s if math.isfinite(time_s) and time_s >= 0 else None


def _placed(
    pieces: Sequence[Stamped], left_s: float | None, right_s: float | None, counts: Counter[str]
) -> list[Stamped]:
    """Pieces without times between two moments, either of which may be unknown."""
    left_s, right_s = (right_s if left_s is None else left_s), (left_s if right_s is None else right_s)
    if left_s is None:
        counts["unplaced"] += len(pieces)
        return []
    counts["untimed"] += len(pieces)
    text = " ".join(piece.text for piece in pieces)
    return [Stamped(word.text, word.start_s, word.end_s) for word in spread(text, left_s, max(left_s, right_s))]


def _in_order(pieces: list[Stamped], counts: Counter[str]) -> list[Stamped]:
    counts["unordered"] += sum(after.start_s < before.start_s for before, after in pairwise(pieces))
    return sorted(pieces, key=lambda piece: piece.start_s)


def _without_overlap(pieces: list[Stamped], counts: Counter[str]) -> list[Stamped]:
    """The earlier one gives way, so that one word stamped far too long cannot push all others behind it."""
    limits_s = [*(piece.start_s for piece in pieces[1:]), math.inf]
    pairs = list(zip(pieces, limits_s, strict=False))  # of nothing there is nothing
    counts["overlapping"] += sum(piece.end_s > limit_s + TIME_SLACK_S for piece, limit_s in pairs)
    return [Stamped(piece.text, piece.start_s, min(piece.end_s, limit_s)) for piece, limit_s in pairs]


def _is_outside(word: Word, start_s: float, end_s: float, counts: Counter[str]) -> bool:
    """A word at the very beginning of a video has no earlier turn that it could belong to."""
    is_early = start_s > 0 and word.end_s <= start_s + TIME_SLACK_S
    is_late = word.end_s > end_s + TIME_SLACK_S
    counts["early"] += is_early
    counts["late"] += is_late
    return is_early or is_late
