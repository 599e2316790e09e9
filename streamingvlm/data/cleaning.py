"""Cleaning of transcripts by a language model, sentence by sentence: kept, edited or deleted.

As in the paper, the sentences of 120 s go to the model at a time. Words keep their times; an edited sentence's
time is spread over its new words. What the model does not answer properly stays as it is, and is counted.
"""

import json
import re
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import chain, tee

from streamingvlm.config import above
from streamingvlm.data.parallel import map_in_threads
from streamingvlm.data.transcript import Transcript, Word, spread
from streamingvlm.endpoint import CHARACTERS_PER_TOKEN, ChatEndpoint, ChatRequest, CostEstimate, Usage

MAX_SENTENCE_WORDS = 40
MAX_SENTENCE_GAP_S = 2.0
"""A longer pause ends a sentence that has no full stop; so does its length."""

INSTRUCTIONS = """\
You clean the transcript of a spoken live commentary, made by a speech recogniser. For each numbered sentence decide:
"keep" it as it is; "edit" it where words were misheard, names misspelt, or punctuation is missing; "delete" it where it
is advertising, small talk that has nothing to do with what is to be seen, or noise. An edited sentence says what the
speaker said: add nothing, and keep the language. Answer with JSON alone, one entry a sentence:
{"sentences": [{"number": 1, "action": "keep"}, {"number": 2, "action": "edit", "text": "..."},
{"number": 3, "action": "delete"}]}"""

_END = re.compile(r"""[.!?…。！？]["'”’)\]]*$""")
_TOKENS_A_VERDICT = 12
_EDITED_SHARE = 0.4
"""For estimates: the paper's model edited 37.89 % of the sentences."""

KEEP, EDIT, DELETE = "keep", "edit", "delete"


@dataclass(frozen=True)
class CleaningConfig:
    """segment_s: how much speech goes to the model at a time; instructions: what it is told, null for our own."""

    segment_s: float = 120.0
    instructions: str | None = None

    def __post_init__(self):
        above("cleaning.segment_s", self.segment_s, 0, "seconds; the usual length is 120")


Sentence = Sequence[Word]


class Cleaner:
    """Cleans transcripts through an endpoint.

    counts: sentences kept, edited and deleted; segments whose answers could not be read, left as they were.
    """

    def __init__(self, endpoint: ChatEndpoint, config: CleaningConfig):
        self._endpoint = endpoint
        self._config = config
        self.counts: Counter[str] = Counter()

    @property
    def usage(self) -> Usage:
        """What the endpoint was asked."""
        return self._endpoint.usage

    def clean(self, transcripts: Iterable[Transcript]) -> Iterator[Transcript]:
        """Yield what is left of each transcript, in order; the segments of several are asked about at a time.

        Raises EndpointError; what was answered until then is kept on disk.
        """
        ours, theirs = tee(self._segments(transcript) for transcript in transcripts)
        verdicts = map_in_threads(self._verdicts, chain.from_iterable(theirs), self._endpoint.config.num_parallel)
        for segments_ in ours:
            pairs = [(segment, next(verdicts)) for segment in segments_]
            yield Transcript(tuple(word for segment, verdict in pairs for word in self._applied(segment, verdict)))

    def estimate(self, transcripts: Iterable[Transcript]) -> CostEstimate:
        """Count what `clean` will ask of these transcripts."""
        segments_ = (segment for transcript in transcripts for segment in self._segments(transcript))
        return self._endpoint.estimate("cleaning", ((self._request(s), _answer_tokens(s)) for s in segments_))

    def _segments(self, transcript: Transcript) -> list[list[Sentence]]:
        return segments(sentences(transcript.words), self._config.segment_s)

    def _request(self, segment: Sequence[Sentence]) -> ChatRequest:
        numbered = "\n".join(f"{number}. {_text(sentence)}" for number, sentence in enumerate(segment, 1))
        instructions = self._config.instructions or INSTRUCTIONS
        # An edited segment is about as long as it was; the markup of the verdicts comes on top.
        max_tokens = 256 + 2 * len(numbered) // CHARACTERS_PER_TOKEN + 2 * _TOKENS_A_VERDICT * len(segment)
        return self._endpoint.request([("system", instructions), ("user", numbered)], max_tokens=max_tokens)

    def _verdicts(self, segment: Sequence[Sentence]) -> list[tuple[str, str]] | None:
        return self._endpoint.ask(self._request(segment), read_verdicts(len(segment)))

    def _applied(self, segment: Sequence[Sentence], verdicts: list[tuple[str, str]] | None) -> Iterator[Word]:
        if verdicts is None:
            self.counts["segments_left_as_they_were"] += 1
            verdicts = [(KEEP, "")] * len(segment)
        for sentence, (action, text) in zip(segment, verdicts, strict=True):
            self.counts[f"sentences_{action}"] += 1
            if action == KEEP:
                yield from sentence
            elif action == EDIT:
                yield from spread(text, sentence[0].start_s, sentence[-1].end_s)


def sentences(words: Sequence[Word]) -> Iterator[Sentence]:
    """Cut words into sentences: at a full stop, at a pause, or where one grows too long."""
    first = 0
    for index, word in enumerate(words):
        after = words[index + 1] if index + 1 < len(words) else None
        is_last = after is None or _END.search(word.text) or index + 1 - first >= MAX_SENTENCE_WORDS
        if is_last or after.start_s - word.end_s > MAX_SENTENCE_GAP_S:
            yield words[first : index + 1]
            first = index + 1


def segments(of: Iterator[Sentence], segment_s: float) -> list[list[Sentence]]:
    """Group sentences by the stretch of ``segment_s`` in which they begin; stretches without any are left out."""
    found: dict[int, list[Sentence]] = {}
    for sentence in of:
        found.setdefault(int(sentence[0].start_s // segment_s), []).append(sentence)
    return list(found.values())


def read_verdicts(num_sentences: int) -> Callable[[str], list[tuple[str, str]]]:
    """Return a reader of answers: an action and a text for each sentence; ValueError for any other answer."""

    def read(answer: str) -> list[tuple[str, str]]:
        start, stop = answer.find("{"), answer.rfind("}")  # some models cannot but say more than JSON
        try:
            document = json.loads(answer[start : stop + 1])
        except RecursionError as error:
            raise ValueError("brackets in brackets in brackets") from error
        entries = document.get("sentences") if isinstance(document, dict) else None
        if not isinstance(entries, list) or len(entries) != num_sentences:
            raise ValueError(f"not {num_sentences} sentences")
        return [_verdict(entry, number) for number, entry in enumerate(entries, 1)]

    return read


def _verdict(entry: object, number: int) -> tuple[str, str]:
    if not isinstance(entry, dict) or entry.get("number") != number:
        raise ValueError(f"no sentence {number}")
    action, text = entry.get("action"), entry.get("text")
    if action in (KEEP, DELETE):
        return action, ""
    if action != EDIT or not isinstance(text, str) or not text.split():
        raise ValueError(f"no verdict on sentence {number}")
    return EDIT, text


def _answer_tokens(segment: Sequence[Sentence]) -> int:
    """About so many tokens are the verdicts on a segment."""
    num_edited = _EDITED_SHARE * sum(len(_text(sentence)) for sentence in segment) / CHARACTERS_PER_TOKEN
    return round(len(segment) * _TOKENS_A_VERDICT + num_edited)


def _text(sentence: Sentence) -> str:
    return " ".join(word.text for word in sentence)
