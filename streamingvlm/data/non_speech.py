"""What transcripts contain beside speech: sounds in brackets, speaker labels, and the signs of music.

``Word:`` at the start of a line may be a speaker's name or speech ("GOAL: the red team"). It is a label if a mark of a
new speaker precedes it, if it is SPEAKER with a number, or if it recurs and labels open a tenth of the cues or more.
"""

from collections import Counter
from collections.abc import Iterable, Sequence, Set
from itertools import accumulate, pairwise

import regex

NON_SPEECH = {
    "sound": "dropped: a sound or a name in brackets, such as [Music] or (applause)",
    "speaker": "dropped: the mark or the label of a speaker, such as >>, or names that recur as ANNA:",
    "note": "dropped: the sign of music",
}
"""The meaning of each count in the manifest."""

_MIN_LABELLED = 0.1
_NAME = r"\p{Lu}[\p{L}.'’-]*(?: \p{Lu}[\p{L}.'’-]*){0,2}"
_LABEL = rf"(?:(?:SPEAKER|Speaker)[ _]?\w{{1,3}}|(?P<name>{_NAME})):(?=\s|$)"
_SPEAKER = regex.compile(rf"(?m)^\s*(?:(?P<mark>>>+|[-–—](?=\s*\p{{L}}))\s*(?:{_LABEL})?|{_LABEL})")
_SOUND = regex.compile(r"\[[^\[\]]{0,80}\]:?|【[^【】]{0,80}】|[(（](?=[^()（）]*\p{L})[^()（）\d]{1,80}[)）]:?")
_NOTE = regex.compile(r"[♪♫♩♬🎵🎶]+")


def recurring_labels(cues: Iterable[Sequence[str]]) -> frozenset[str]:
    """Return the names that open several cues of a transcript as ``Name:``; ``cues``: the texts of each cue.

    Returns none if they open less than a tenth of the cues: "GOAL:" now and then is speech.
    """
    found = [_SPEAKER.match("".join(texts)) for texts in cues]
    names = Counter(match["name"] for match in found if match and match["name"])
    recurring = {name: num_cues for name, num_cues in names.items() if num_cues > 1}
    return frozenset(recurring if sum(recurring.values()) >= _MIN_LABELLED * len(found) else ())


def without_non_speech(texts: Sequence[str], counts: Counter[str], labels: Set[str] = frozenset()) -> list[str]:
    """Replace non-speech in the texts of a cue by blanks; it may extend over several, and each one found is counted.

    labels: names that are labels without a mark before them, as `recurring_labels` returns them.
    """

    def blank(match: regex.Match) -> str:
        return " " * len(match[0])  # keeps the rest in its place

    def blank_label(match: regex.Match) -> str:
        if match["name"] and not match["mark"] and match["name"] not in labels:
            return match[0]
        counts["speaker"] += 1
        return blank(match)

    kept, num_sounds = _SOUND.subn(blank, "".join(texts))
    kept, num_notes = _NOTE.subn(blank, _SPEAKER.sub(blank_label, kept))
    counts.update(sound=num_sounds, note=num_notes)
    bounds = pairwise(accumulate(map(len, texts), initial=0))
    return [kept[start:stop] for start, stop in bounds]
