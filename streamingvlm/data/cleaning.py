"""Transcript cleaning by a language model, which keeps, edits or deletes each sentence.

As in the paper, one request covers the sentences of 120 s. Kept words keep their times; the time of an edited sentence
is divided among its new words. A segment whose answer cannot be parsed stays unchanged and is counted.
"""

import json
import re
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import chain, tee

from streamingvlm.config import above
from streamingvlm.data.parallel import map_in_threads
from streamingvlm.data.transcript import Transcript, Word, join, spread
from streamingvlm.endpoint import CHARACTERS_PER_TOKEN, ChatEndpoint, CostEstimate, EndpointRequest, Usage

MAX_SENTENCE_WORDS = 40
MAX_SENTENCE_GAP_S = 2.0
"""A sentence without a full stop ends at a longer pause, or at this many words."""

INSTRUCTIONS = """\
You clean the transcript of a spoken live commentary, made by a speech recogniser. For each numbered sentence decide:
"keep" it as it is; "edit" it where words were misheard, names misspelt, or punctuation is missing; "delete" it where it
is advertising, small talk that has nothing to do with what is to be seen, or noise. An edited sentence says what the
speaker said: add nothing, and keep the language. Answer with JSON alone, one entry a sentence:
{"sentences": [{"number": 1, "action": "keep"}, {"number": 2, "action": "edit", "text": "..."},
{"number": 3, "action": "delete"}]}"""

_END = re.compile(r"""[.!?…。！？]["'”’)\]]*$""")
_TOKENS_PER_VERDICT = 12
_EDITED_SHARE = 0.4
"""For cost estimates; in the paper 37.89 % of the sentences were edited."""

KEEP, EDIT, DELETE = "keep", "edit", "delete"


@dataclass(frozen=True)
class CleaningConfig:
    """Settings of the cleaning.

    segment_s: seconds of speech per request. instructions: the system prompt; None uses `INSTRUCTIONS`.
    """

    segment_s: float = 120.0
    instructions: str | None = None

    def __post_init__(self):
        above("cleaning.segment_s", self.segment_s, 0, "seconds of speech per request, usually 120")


Sentence = Sequence[Word]


class Cleaner:
    """Cleans transcripts with the model behind an endpoint.

    counts: the sentences kept, edited and deleted, and the segments left unchanged because no answer could be parsed.
    """

    def __init__(self, endpoint: ChatEndpoint, config: CleaningConfig):
        self._endpoint = endpoint
        self._config = config
        self.counts: Counter[str] = Counter()

    @property
    def usage(self) -> Usage:
        """Requests and tokens so far."""
        return self._endpoint.usage

    def clean(self, transcripts: Iterable[Transcript]) -> Iterator[Transcript]:
        """Yield the cleaned transcripts in order; requests for several transcripts run in parallel.

        Raises EndpointError; answers received before that are cached on disk.
        """
        segmented, to_submit = tee(self._segments(transcript) for transcript in transcripts)
        verdicts = map_in_threads(self._verdicts, chain.from_iterable(to_submit), self._endpoint.config.num_parallel)
        for segments in segmented:
            pairs = [(segment, next(verdicts)) for segment in segments]
            yield Transcript(tuple(word for segment, verdict in pairs for word in self._applied(segment, verdict)))

    def estimate(self, transcripts: Iterable[Transcript]) -> CostEstimate:
        """Estimate the requests, tokens and cost of `clean` for these transcripts."""
        segments = (segment for transcript in transcripts for segment in self._segments(transcript))
        return self._endpoint.estimate("cleaning", ((self._request(s), _answer_tokens(s)) for s in segments))

    def _segments(self, transcript: Transcript) -> list[list[Sentence]]:
        return group_sentences(split_sentences(transcript.words), self._config.segment_s)

    def _request(self, segment: Sequence[Sentence]) -> EndpointRequest:
        numbered = "\n".join(f"{number}. {join(sentence)}" for number, sentence in enumerate(segment, 1))
        # Edited text is about as long as the original; the JSON of the verdicts comes on top.
        max_tokens = 256 + 2 * len(numbered) // CHARACTERS_PER_TOKEN + 2 * _TOKENS_PER_VERDICT * len(segment)
        return self._endpoint.request(
            [("system", self._config.instructions or INSTRUCTIONS), ("user", numbered)], max_tokens=max_tokens
        )

    def _verdicts(self, segment: Sequence[Sentence]) -> list[tuple[str, str]] | None:
        return self._endpoint.ask(self._request(segment), read_verdicts(len(segment)))

    def _applied(self, segment: Sequence[Sentence], verdicts: list[tuple[str, str]] | None) -> Iterator[Word]:
        if verdicts is None:
            self.counts["segments_unchanged"] += 1
            verdicts = [(KEEP, "")] * len(segment)
        for sentence, (action, text) in zip(segment, verdicts, strict=True):
            self.counts[f"sentences_{action}"] += 1
            if action == KEEP:
                yield from sentence
            elif action == EDIT:
                yield from spread(text, sentence[0].start_s, sentence[-1].end_s, continues=sentence[0].continues)


def split_sentences(words: Sequence[Word]) -> Iterator[Sentence]:
    """Split words into sentences: at a full stop, at a pause, or at the maximum length."""
    first = 0
    for index, word in enumerate(words):
        after = words[index + 1] if index + 1 < len(words) else None
        is_last = after is None or _END.search(word.text) or index + 1 - first >= MAX_SENTENCE_WORDS
        if is_last or after.start_s - word.end_s > MAX_SENTENCE_GAP_S:
            yield words[first : index + 1]
            first = index + 1


def group_sentences(sentences: Iterable[Sentence], segment_s: float) -> list[list[Sentence]]:
    """Group sentences into segments of ``segment_s`` by their start time; empty segments are omitted."""
    segments: dict[int, list[Sentence]] = {}
    for sentence in sentences:
        segments.setdefault(int(sentence[0].start_s // segment_s), []).append(sentence)
    return list(segments.values())


def read_verdicts(num_sentences: int) -> Callable[[str], list[tuple[str, str]]]:
    """Return a parser of answers: an action and a text for each sentence. It raises ValueError for any other answer."""

    def read(answer: str) -> list[tuple[str, str]]:
        start, stop = answer.find("{"), answer.rfind("}")  # Some models add text around the JSON.
        try:
            document = json.loads(answer[start : stop + 1])
        except RecursionError as error:
            raise ValueError("JSON is nested too deeply") from error
        entries = document.get("sentences") if isinstance(document, dict) else None
        if not isinstance(entries, list) or len(entries) != num_sentences:
            raise ValueError(f"expected {num_sentences} sentences")
        return [_verdict(entry, number) for number, entry in enumerate(entries, 1)]

    return read


def _verdict(entry: object, number: int) -> tuple[str, str]:
    if not isinstance(entry, dict) or entry.get("number") != number:
        raise ValueError(f"expected sentence {number}")
    action, text = entry.get("action"), entry.get("text")
    if action in (KEEP, DELETE):
        return action, ""
    if action != EDIT or not isinstance(text, str) or not text.split():
        raise ValueError(f"sentence {number} has no valid action")
    return EDIT, text


def _answer_tokens(segment: Sequence[Sentence]) -> int:
    """Estimate the number of tokens in the answer for a segment."""
    num_edited = _EDITED_SHARE * sum(len(join(sentence)) for sentence in segment) / CHARACTERS_PER_TOKEN
    return round(len(segment) * _TOKENS_PER_VERDICT + num_edited)
