"""Selection of the chunks of a recording that are worth training on, and the train / held-out split."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from hashlib import blake2b
from itertools import pairwise
from typing import Literal

from streamingvlm.config import TIME_SLACK_S, at_least, one_of
from streamingvlm.data.chunks import plan_chunks
from streamingvlm.data.transcript import Word, turn_of
from streamingvlm.data.units import count_units


@dataclass(frozen=True)
class SelectionConfig:
    """Rules by which a recording is cut into chunks, and by which chunks are kept, as in the paper.

    kind: ``training`` cuts chunks of equal length and keeps those with enough words; ``annealing`` finds spans of
        continuous speech.
    chunk_turns, overlap_turns, min_words_per_s: for training chunks.
    min_characters_per_s: the same for text counted in characters: scripts without blanks (Chinese, Japanese, Thai, Lao,
        Khmer, ...) and Hangul. A chunk with both has to fill its time with the two together.
    min_turns, max_turns, max_silence_s: for annealing chunks.
    """

    kind: Literal["training", "annealing"] = "training"
    chunk_turns: int = 24
    overlap_turns: int = 12
    min_words_per_s: float = 2.0
    min_characters_per_s: float = 3.0
    min_turns: int = 16
    max_turns: int = 64
    max_silence_s: float = 3.0

    def __post_init__(self):
        one_of("selection.kind", self.kind, ("training", "annealing"))
        for name in ("chunk_turns", "min_turns"):
            at_least(f"selection.{name}", getattr(self, name), 1, "turns per chunk")
        at_least("selection.max_turns", self.max_turns, self.min_turns, "not below selection.min_turns")
        for name in ("min_words_per_s", "min_characters_per_s"):
            at_least(f"selection.{name}", getattr(self, name), 0, "0 keeps silent chunks")
        at_least("selection.max_silence_s", self.max_silence_s, 0, "seconds")
        plan_chunks(1, chunk_turns=self.chunk_turns, overlap_turns=self.overlap_turns)


def select(
    words: Sequence[Word], lines: Sequence[str], config: SelectionConfig, *, start_s: float, turn_s: float
) -> tuple[list[range], str, int]:
    """Return the turns of the kept chunks, the reason for dropping the others, and how many were dropped."""
    if config.kind == "annealing":
        return _annealing(words, len(lines), config, start_s=start_s, turn_s=turn_s)
    planned = plan_chunks(len(lines), chunk_turns=config.chunk_turns, overlap_turns=config.overlap_turns)
    kept = [turns for turns in planned if is_dense(lines, turns, config, turn_s=turn_s)]
    reason = f"fewer than {config.min_words_per_s:g} words or {config.min_characters_per_s:g} characters a second"
    return kept, reason, len(planned) - len(kept)


def is_dense(lines: Sequence[str], turns: range, config: SelectionConfig, *, turn_s: float) -> bool:
    """Return True if the text, said at the slowest pace that is allowed, fills the time of the turns."""
    if 0 in (config.min_words_per_s, config.min_characters_per_s):
        return True
    num_words, num_characters = count_units(" ".join(lines[turns.start : turns.stop]))
    filled_s = num_words / config.min_words_per_s + num_characters / config.min_characters_per_s
    return filled_s >= len(turns) * turn_s - TIME_SLACK_S


def runs_without_silence(words: Sequence[Word], max_silence_s: float) -> Iterator[Sequence[Word]]:
    """Yield the maximal runs of words in which no gap exceeds ``max_silence_s``."""
    first = 0
    for index, (before, after) in enumerate(pairwise(words), 1):
        if after.start_s - before.end_s > max_silence_s + TIME_SLACK_S:
            yield words[first:index]
            first = index
    if words:
        yield words[first:]


def split_evenly(turns: range, max_turns: int) -> list[range]:
    """Split into the fewest pieces of at most ``max_turns``; their lengths differ by at most one."""
    num_pieces = -(-len(turns) // max_turns)
    bounds = [turns.start + len(turns) * piece // num_pieces for piece in range(num_pieces + 1)]
    return [range(*bound) for bound in pairwise(bounds)]


def _annealing(
    words: Sequence[Word], num_turns: int, config: SelectionConfig, *, start_s: float, turn_s: float
) -> tuple[list[range], str, int]:
    pieces = []
    for run in runs_without_silence(words, config.max_silence_s):
        first = max(0, int((run[0].start_s - start_s) / turn_s + TIME_SLACK_S))
        last = turn_of(run[-1].end_s, start_s=start_s, turn_s=turn_s)
        pieces += split_evenly(range(first, min(last + 1, num_turns)), config.max_turns)
    kept = [turns for turns in pieces if len(turns) >= config.min_turns]
    return kept, f"fewer than {config.min_turns} turns without a silence", len(pieces) - len(kept)


def split_of(video: str, *, held_out_fraction: float, seed: int) -> str:
    """Return "held_out" for about this fraction of the videos, "train" for the others.

    A hash of the seed and the path decides. A video therefore stays in its split when others are added or removed, and
    two recordings of one video, which may overlap, are always in the same split.
    """
    digest = blake2b(f"{seed}:{video}".encode("utf-8", "surrogateescape"), digest_size=8).digest()
    return "held_out" if int.from_bytes(digest, "big") < held_out_fraction * 2**64 else "train"
