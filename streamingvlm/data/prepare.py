"""`prepare`, which turns sources into a folder of prepared data; ``streamingvlm prepare`` calls it."""

import logging
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, field
from functools import cached_property
from itertools import tee
from pathlib import Path
from statistics import median
from typing import TYPE_CHECKING, Any, Literal

from streamingvlm.config import above, at_least, one_of
from streamingvlm.data.asr import SpeechRecogniser
from streamingvlm.data.cleaning import Cleaner
from streamingvlm.data.conversations import Conversation
from streamingvlm.data.prepared_tables import PreparedDataWriter, check_target
from streamingvlm.data.scan import RecordingSpan, SourceScan, scan_sources, span_of
from streamingvlm.data.selection import SelectionConfig, select, split_of
from streamingvlm.data.sources import DroppedEntry, Entry, common_root, resolve_sources
from streamingvlm.data.transcript import RULES, Cue, Transcript, clean_text, repair, turn_of
from streamingvlm.data.transcript_files import read_cues
from streamingvlm.data.units import count_units
from streamingvlm.endpoint import CostEstimate
from streamingvlm.errors import ConfigError, DataError, VideoError

if TYPE_CHECKING:
    from streamingvlm.video.probe import VideoProbe

log = logging.getLogger(__name__)

MAX_LISTED = 1000
"""Dropped entries that the manifest lists; all are counted. Videos are always listed."""

MAX_TIMES_LONGER = 50
"""A transcript whose median time is this many times the video's length is not in seconds."""

SPARE_BYTES = 16_000_000
"""Free disk space required beyond the estimated size of the text."""


@dataclass(frozen=True)
class PrepareConfig:
    """Settings of the recordings; `SelectionConfig` has those of the chunks.

    turn_s, fps: seconds per turn and frames per second, as the model will run.
    min_video_s: shorter videos are not used.
    query: for recordings without a query of their own.
    questions: ``keep`` the user's questions during the stream in a column of their own, or ``drop`` them. The lines
        are the same either way.
    held_out_fraction, seed: a hash of the seed and a video's path decides if the video is held out.
    num_workers: videos probed in parallel.
    """

    turn_s: float = 1.0
    fps: float = 2.0
    min_video_s: float = 16.0
    query: str = ""
    questions: Literal["keep", "drop"] = "drop"
    held_out_fraction: float = 0.02
    seed: int = 0
    num_workers: int = 2

    def __post_init__(self):
        one_of("questions", self.questions, ("keep", "drop"))
        above("turn_s", self.turn_s, 0, "seconds per turn")
        above("fps", self.fps, 0, "frames per second")
        at_least("min_video_s", self.min_video_s, 0, "0 uses every video")
        at_least("held_out_fraction", self.held_out_fraction, 0, "0 holds nothing out")
        at_least("num_workers", self.num_workers, 1, "videos probed in parallel")
        if self.held_out_fraction > 1:
            raise ConfigError(f"held_out_fraction={self.held_out_fraction} is above 1; give a fraction, usually 0.02")


def prepare(
    sources: Sequence[str | Path],
    target: str | Path,
    config: PrepareConfig,
    selection: SelectionConfig,
    *,
    video_root: str | Path | None = None,
    recogniser: SpeechRecogniser | None = None,
    cleaner: Cleaner | None = None,
    on_estimate: Callable[[CostEstimate], None] = log.info,
) -> dict[str, Any]:
    """Write recordings, chunks and a manifest to ``target``, and return the manifest.

    sources: folders of videos, videos, or JSONL files. Paths in a JSONL file are relative to ``video_root``, or to the
        folder of the file if that is None.
    recogniser: makes missing transcripts. cleaner: cleans all transcripts.
    on_estimate: called with the cost of cleaning before it starts; it may raise to stop.

    Raises DataError if the target is not empty, if no recording can be used, or if the disk is full. Nothing is written
    then, except cached transcripts and answers.
    """
    target = Path(target)
    check_target(target, num_bytes=0)
    resolved, dropped = resolve_sources(sources, video_root)
    scan = scan_sources(
        resolved,
        fps=config.fps,
        turn_s=config.turn_s,
        min_video_s=config.min_video_s,
        num_workers=config.num_workers,
    )
    check_target(target, num_bytes=scan.num_text_bytes + SPARE_BYTES)
    preparation = _Preparation(config, selection, scan, common_root(resolved, video_root), recogniser, cleaner)
    preparation.dropped += [*dropped, *scan.dropped]
    if cleaner:
        on_estimate(cleaner.estimate(preparation.transcripts()))
    with PreparedDataWriter(target) as writer:
        for row, chunks in preparation.rows():
            writer.add(row, chunks)
        preparation.check_not_empty()
        manifest = preparation.manifest()
        writer.finish(manifest)
    return manifest


@dataclass(frozen=True)
class _Recording:
    """A recording with its transcript."""

    entry: Entry
    probe: "VideoProbe"
    span: RecordingSpan
    transcript: Transcript
    repaired: Counter[str]


@dataclass
class _Preparation:
    """One run of `prepare`: its inputs and its counts so far."""

    config: PrepareConfig
    selection: SelectionConfig
    scan: SourceScan
    root: Path
    recogniser: SpeechRecogniser | None
    cleaner: Cleaner | None
    dropped: list[DroppedEntry] = field(default_factory=list)
    counts: Counter[str] = field(default_factory=Counter)
    repaired: Counter[str] = field(default_factory=Counter)
    questions: Counter[str] = field(default_factory=Counter)
    dropped_chunks: Counter[str] = field(default_factory=Counter)
    hours: Counter[str] = field(default_factory=Counter)

    def transcripts(self) -> Iterator[Transcript]:
        """Yield the transcript of each usable recording, before cleaning."""
        for entry, probe in self.scan.entries():
            try:
                yield self._transcribe(entry, probe).transcript
            except (DataError, VideoError) as error:
                log.debug("%s: %s", entry.origin, error)  # `rows` adds it to the manifest.

    def rows(self) -> Iterator[tuple[dict[str, Any], list[dict[str, Any]]]]:
        """Yield each recording that has a chunk, with its chunks; everything dropped is counted."""
        recordings, to_clean = tee(self._recordings())
        transcripts = (recording.transcript for recording in to_clean)
        cleaned = self.cleaner.clean(transcripts) if self.cleaner else transcripts
        for recording, transcript in zip(recordings, cleaned, strict=True):
            self.repaired += recording.repaired
            row = self._row(recording, transcript)
            chunks = self._chunks(row, recording.span, transcript)
            if chunks:
                self._count(row, chunks)
                yield row, chunks
            else:
                self.counts["recordings_without_a_chunk"] += 1

    def check_not_empty(self):
        """Raise DataError if nothing is left to train on, unless everything was to be held out."""
        if not self.counts["recordings"]:
            raise self._no_data_error()
        if not self.counts["chunks_train"] and self.config.held_out_fraction < 1:
            raise DataError(
                f"all {self.counts['recordings']} recordings are held out, so nothing is left to train on; give "
                "held_out_fraction=0 to hold none out, or another seed"
            )

    def _no_data_error(self) -> DataError:
        """Return an error with the first reason why no recording can be used."""
        reasons = [f"{entry.origin}: {entry.reason}" for entry in self.dropped]
        reasons += self.scan.unusable.values()
        reasons += [f"chunks with {reason} were dropped" for reason in self.dropped_chunks]
        first = reasons[0] if reasons else "the sources are empty"
        return DataError(f"no training data is left ({max(1, len(reasons))} reasons, the first: {first})")

    def manifest(self) -> dict[str, Any]:
        """Return the settings, sources and counts, ready for JSON."""
        scan = self.scan
        return {
            "turn_s": self.config.turn_s,
            "fps": self.config.fps,
            "video_root": str(self.root),
            "settings": {"prepare": asdict(self.config), "selection": asdict(self.selection)},
            "sources": [{"path": str(source.path), "root": str(source.root)} for source in scan.sources],
            "counts": dict(self.counts),
            "hours": {name: round(value, 4) for name, value in self.hours.items()},
            "words_repaired": {name: {"num": num, "rule": RULES[name]} for name, num in self.repaired.items()},
            "questions": dict(self.questions),
            "chunks_dropped": dict(self.dropped_chunks),
            "cleaning": self._cleaning(),
            "videos_unusable": [
                {"video": str(video), "reason": reason, "num_recordings": scan.num_recordings[video]}
                for video, reason in scan.unusable.items()
            ],
            "videos_truncated": [
                {"video": str(video), "missing_s": round(s, 1)} for video, s in scan.missing_s.items()
            ],
            "entries_dropped": {
                "num": len(self.dropped),
                "first": [asdict(entry) for entry in self.dropped[:MAX_LISTED]],
            },
        }

    def _recordings(self) -> Iterator[_Recording]:
        for entry, probe in self.scan.entries():
            try:
                yield self._transcribe(entry, probe)
            except (DataError, VideoError) as error:
                self.dropped.append(DroppedEntry(entry.origin, str(error)))

    def _transcribe(self, entry: Entry, probe: "VideoProbe") -> _Recording:
        """Get the transcript of an entry. Raises DataError or VideoError if there is none or it is empty."""
        span = span_of(entry, probe, turn_s=self.config.turn_s)
        cues = self._cues(entry)
        transcript, repaired = repair(cues, start_s=span.start_s, end_s=span.end_s)
        _check_unit(cues, probe.num_turns * self.config.turn_s)
        if not transcript.words:
            raise DataError(_why_empty(repaired, span))
        return _Recording(entry, probe, span, transcript, repaired)

    def _cues(self, entry: Entry) -> Sequence[Cue]:
        if entry.conversation.cues is not None:
            return entry.conversation.cues
        if entry.transcript is not None:
            return read_cues(entry.transcript)
        if self.recogniser is None:
            raise DataError("has no transcript; put one beside the video, or transcribe the audio: asr.enabled=true")
        return self.recogniser.transcribe(entry.video)

    def _row(self, recording: _Recording, transcript: Transcript) -> dict[str, Any]:
        conversation, span = recording.entry.conversation, recording.span
        video = str(recording.entry.video.relative_to(self.root))
        is_whole_video = conversation.start_s == 0 and conversation.end_s is None
        texts = {
            "id": video if is_whole_video else f"{video}@{conversation.start_s!r}-{conversation.end_s!r}",
            "video": video,
            "previous_text": conversation.previous_text,
            "query": conversation.query or self.config.query,
            "title": conversation.title,
            "category": conversation.category,
            "source": recording.entry.origin,
        }
        lines = transcript.lines(start_s=span.start_s, num_turns=span.num_turns, turn_s=span.turn_s)
        return {
            **{name: clean_text(text) for name, text in texts.items()},
            "start_s": span.start_s,
            "end_s": span.end_s,
            "num_turns": span.num_turns,
            "lines": lines,
            "width": recording.probe.width,
            "height": recording.probe.height,
            "questions": self._questions(conversation, span),
        }

    def _questions(self, conversation: Conversation, span: RecordingSpan) -> list[dict[str, Any]]:
        questions = conversation.questions
        self.questions["unreadable"] += conversation.num_bad_questions
        if self.config.questions == "drop":
            self.questions["dropped"] += len(questions)
            return []
        inside = [question for question in questions if span.start_s <= question.ask_s <= span.end_s]
        self.questions["kept"] += len(inside)
        self.questions["outside_the_recording"] += len(questions) - len(inside)
        return [
            {
                "turn": turn_of(question.ask_s, start_s=span.start_s, turn_s=span.turn_s),
                "question": clean_text(question.question),
                "answer": clean_text(question.answer),
            }
            for question in inside
        ]

    def _chunks(self, row: dict[str, Any], span: RecordingSpan, transcript: Transcript) -> list[dict[str, Any]]:
        lines = row["lines"]
        kept, reason, num_dropped = select(
            transcript.words, lines, self.selection, start_s=span.start_s, turn_s=span.turn_s
        )
        self.dropped_chunks[reason] += num_dropped
        split = self._split(row["video"])
        counts = [count_units(" ".join(lines[turns.start : turns.stop])) for turns in kept]
        return [
            {
                "recording": row["id"],
                "first_turn": turns.start,
                "num_turns": len(turns),
                "num_words": num_words,
                "num_characters": num_characters,
                "split": split,
            }
            for turns, (num_words, num_characters) in zip(kept, counts, strict=True)
        ]

    def _split(self, video: str) -> str:
        return "train" if self._holds_all_out else self._planned_split(video)

    def _planned_split(self, video: str) -> str:
        return split_of(video, held_out_fraction=self.config.held_out_fraction, seed=self.config.seed)

    @cached_property
    def _holds_all_out(self) -> bool:
        """True if the hash of a small set holds every video out, although only a fraction was to be held out."""
        videos = [str(video.relative_to(self.root)) for video in self.scan.probes]
        holds_all_out = self.config.held_out_fraction < 1 and {"held_out"} == set(map(self._planned_split, videos))
        if holds_all_out:
            log.warning("the set has %d videos, too few to hold out a part: none is held out", len(videos))
        return holds_all_out

    def _count(self, row: dict[str, Any], chunks: Sequence[dict[str, Any]]):
        split = chunks[0]["split"]
        chunks_s = sum(chunk["num_turns"] for chunk in chunks) * self.config.turn_s
        num_words, num_characters = count_units(" ".join(row["lines"]))
        self.counts.update(
            recordings=1,
            chunks=len(chunks),
            words=num_words,
            characters=num_characters,
            **{f"chunks_{split}": len(chunks)},
        )
        self.hours["recordings"] += row["num_turns"] * self.config.turn_s / 3600
        self.hours[f"chunks_{split}"] += chunks_s / 3600

    def _cleaning(self) -> dict[str, int]:
        if self.cleaner is None:
            return {}
        return {**self.cleaner.counts, **asdict(self.cleaner.usage)}


def _check_unit(cues: Sequence[Cue], video_s: float):
    """Raise DataError if the times of a transcript are milliseconds; some of them may lie inside the video."""
    words, _ = repair(cues)
    ends_s = [word.end_s for word in words.words]
    if ends_s and median(ends_s) > MAX_TIMES_LONGER * video_s:
        raise DataError(
            f"has a transcript with times up to {max(ends_s):,.0f} for a video of {video_s:g} s, "
            "probably milliseconds; write its times in seconds"
        )


def _why_empty(repaired: Counter[str], span: RecordingSpan) -> str:
    """Return the reason why nothing of a transcript is left."""
    lost = [(num, RULES[name]) for name, num in repaired.items() if num and RULES[name].startswith("dropped: ")]
    if not lost:
        return "has a transcript without words"
    listed = "; ".join(f"{num} {rule.removeprefix('dropped: ')}" for num, rule in lost)
    return (
        f"has no words from {span.start_s:g} to {span.end_s:g} s of the video ({listed}); give the transcript of this "
        "video, with times in seconds"
    )


def summary(manifest: dict[str, Any]) -> str:
    """Return one line that says what was prepared and what was dropped."""
    counts, hours = manifest["counts"], manifest["hours"]
    text = (
        f"{counts['recordings']:,} recordings, {hours['recordings']:.2f} h: "
        f"{counts.get('chunks_train', 0):,} chunks to train on, {counts.get('chunks_held_out', 0):,} held out"
    )
    losses = [
        (len(manifest["videos_unusable"]), "videos unusable"),
        (len(manifest["videos_truncated"]), "videos truncated"),
        (manifest["entries_dropped"]["num"], "entries dropped"),
        (sum(manifest["chunks_dropped"].values()), "chunks dropped"),
        (sum(rule["num"] for rule in manifest["words_repaired"].values()), "words repaired or dropped"),
    ]
    return "; ".join([text, *(f"{num:,} {what}" for num, what in losses if num)])
