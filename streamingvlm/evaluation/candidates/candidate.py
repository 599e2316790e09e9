"""The interface of a system under evaluation."""

from collections.abc import Iterator
from typing import Protocol

from streamingvlm.evaluation.candidates.video_clip import Clip
from streamingvlm.inference.commentary import Commentary


class Candidate(Protocol):
    """A system that comments on clips and answers questions about them.

    All candidates read the same clips in the file's own times. No line depends on a frame after the end of its turn.

    name: shown in tables. path: how it computes its replies, such as "streaming cache" or "remote endpoint".
    num_parallel: clips that it may process at a time.
    """

    name: str
    path: str
    num_parallel: int

    def comment(self, clip: Clip) -> Iterator[Commentary]:
        """Yield the commentary of the clip, in order and in the file's own times."""

    def answer(self, clip: Clip, question: str) -> str:
        """Return the answer to a question that is asked at the end of the clip."""
