"""Units of text: words, and the characters of scripts that are written without blanks.

A recogniser's pieces keep their blanks: a piece without a leading blank continues the text before it.
"""

from collections.abc import Sequence
from itertools import pairwise

import regex

_SCRIPTS = ("Han", "Hiragana", "Katakana", "Bopomofo", "Thai", "Lao", "Khmer", "Myanmar", "Tibetan")
_UNSPACED = r"[ー々" + "".join(rf"\p{{{script}}}" for script in _SCRIPTS) + "]"
_BLANK = r"\s\x1c-\x1f"  # as str.isspace
_OPENING = r"[\p{Ps}\p{Pi}]*"
# A character with its marks: Thai and Lao write some vowels first, Khmer and Myanmar stack consonants.
_CHARACTER = rf"(?={_UNSPACED}|[เ-ไເ-ໄ])[เ-ไເ-ໄ]?(?:\X(?<=[\u17D2\u1039]))*\X"
_CLOSING = rf"(?:(?!{_UNSPACED})[^{_BLANK}\p{{L}}\p{{N}}\p{{Ps}}\p{{Pi}}])*"
_UNIT = regex.compile(rf"{_OPENING}{_CHARACTER}{_CLOSING}|(?:(?!{_OPENING}{_UNSPACED})[^{_BLANK}])+")
_UNSPACED_START = regex.compile(_OPENING + _UNSPACED)
_COUNTED_BY_CHARACTER = regex.compile(rf"{_OPENING}(?:{_CHARACTER}|\p{{Hangul}}){_CLOSING}")


def split_units(text: str) -> list[tuple[str, bool]]:
    """Split a text; with each unit comes whether it continues the one before it, with no blank between them."""
    return [(match[0], match.start() > 0 and not text[match.start() - 1].isspace()) for match in _UNIT.finditer(text)]


def starts_unspaced(text: str) -> bool:
    """Return True if the text starts with a character of a script without blanks, after any opening bracket."""
    return _UNSPACED_START.match(text) is not None


def is_one_unit(text: str) -> bool:
    """Return True for a text without blanks that has no boundary between two units."""
    return _UNIT.fullmatch(text) is not None


def count_units(text: str) -> tuple[int, int]:
    """Return the number of words and of characters: those of scripts without blanks, and Hangul."""
    words, num_characters = _COUNTED_BY_CHARACTER.subn(" ", text)
    return len(words.split()), num_characters


def with_blanks(words: Sequence[str], text: str | None) -> list[str]:
    """Return the words as pieces of the text, blanks and punctuation included; joined they give the text.

    Without a text that contains the words in this order, they are separated by blanks, unless most of them have their
    own or their script has none.
    """
    if text and "".join(words).split() == text.split():
        return list(words)
    if text and (cuts := _cuts(words, text)):
        return [text[start:stop] for start, stop in zip(cuts, [*cuts[1:], len(text)], strict=True)]
    num_blanks = sum(word[:1].isspace() or before[-1:].isspace() for before, word in pairwise(["", *words]))
    return list(words) if 2 * num_blanks >= len(words) else _separated(words)


def _cuts(words: Sequence[str], text: str) -> list[int]:
    """Return where each word's piece of the text starts; [] if the text has other words."""
    cuts, end = [], 0
    for word in map(str.strip, words):
        start = text.find(word, end)
        gap = text[end:start]
        if start < 0 or any(map(str.isalnum, gap)):
            return []
        last_blank = max((i for i, character in enumerate(gap) if character.isspace()), default=len(gap))
        cuts.append(end + last_blank)
        end = start + len(word)
    return [0, *cuts[1:]]


def _separated(words: Sequence[str]) -> list[str]:
    pieces, was_unspaced = [], True
    for word in words:
        is_joined = was_unspaced or starts_unspaced(word)
        pieces.append(word if is_joined else f" {word}")
        units = split_units(word)
        was_unspaced = starts_unspaced(units[-1][0]) if units else was_unspaced
    return pieces
