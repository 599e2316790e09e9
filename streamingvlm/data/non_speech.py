"""What transcripts contain beside speech: sounds in brackets, speaker labels, and the signs of music."""

from collections import Counter
from collections.abc import Sequence
from itertools import accumulate, pairwise

import regex

NON_SPEECH = {
    "sound": "dropped: a sound or a name in brackets, such as [Music] or (applause)",
    "speaker": "dropped: the mark or the label of a speaker, such as >> or ANNA:",
    "note": "dropped: the sign of music",
}
"""The meaning of each count in the manifest."""

_LABEL = r"(?:(?:SPEAKER|Speaker)[ _]?\w{1,3}|\p{Lu}[\p{Lu} .'’-]{1,30}):(?=[^\n]*\p{Ll})"
_PATTERNS = {
    "sound": regex.compile(r"\[[^\[\]]{0,80}\]:?|【[^【】]{0,80}】|[(（](?=[^()（）]*\p{L})[^()（）\d]{1,80}[)）]:?"),
    "speaker": regex.compile(rf"(?m)^\s*(?:(?:>>+|[-–—](?=\s*\p{{L}}))\s*(?:{_LABEL})?|{_LABEL})"),
    "note": regex.compile(r"[♪♫♩♬🎵🎶]+"),
}


def without_non_speech(texts: Sequence[str], counts: Counter[str]) -> list[str]:
    """Replace non-speech in the texts of a cue by blanks; it may extend over several, and each one found is counted."""
    kept = "".join(texts)
    for name, pattern in _PATTERNS.items():
        # A blank for each character keeps the rest in its place.
        kept, num_found = pattern.subn(lambda match: " " * len(match[0]), kept)
        counts[name] += num_found
    bounds = pairwise(accumulate(map(len, texts), initial=0))
    return [kept[start:stop] for start, stop in bounds]
