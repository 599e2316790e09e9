"""From sources to a folder of prepared data: `prepare` is what ``scripts/prepare_data.py`` calls."""

import logging
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, field
from itertools import tee
from pathlib import Path
from typing import Any, Literal

from streamingvlm.config import above, at_least, one_of
from streamingvlm.data.asr import SpeechRecogniser
from streamingvlm.data.cleaning import Cleaner
from streamingvlm.data.conversations import Conversation
from streamingvlm.data.formats import read_cues
from streamingvlm.data.selection import SelectionConfig, num_words, select, split_of
from streamingvlm.data.sources import Entry, Refusal, common_root, open_sources
from streamingvlm.data.survey import Part, Survey, part_of, survey_sources
from streamingvlm.data.tables import PreparedFolder, check_target
from streamingvlm.data.transcript import RULES, Cue, Transcript, clean_text, mend, turn_of
from streamingvlm.endpoint import CostEstimate
from streamingvlm.errors import ConfigError, DataError, VideoError
from streamingvlm.video.probe import VideoProbe

log = logging.getLogger(__name__)

MAX_LISTED = 1000
"""Entries that the manifest names one by one; all are counted. Videos are always named."""

SPARE_BYTES = 16_000_000
"""What the disk must have left beside the text itself."""


@dataclass(frozen=True)
class PrepareConfig:
    """What a recording is, whatever is selected from it.

    turn_s, fps: seconds a turn and frames a second, as the model will be run.
    min_video_s: shorter videos are left out.
    query: asked in recordings that bring none of their own.
    questions: ``keep`` what is asked in mid-stream, in a column of its own, or ``drop`` it; the lines are the same.
    held_out_fraction, seed: which videos are held out; a hash of the seed and the video's path decides.
    num_workers: videos checked at a time.
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
        above("turn_s", self.turn_s, 0, "seconds a turn")
        above("fps", self.fps, 0, "frames a second")
        at_least("min_video_s", self.min_video_s, 0, "0 takes every video")
        at_least("held_out_fraction", self.held_out_fraction, 0, "0 holds nothing out")
        at_least("num_workers", self.num_workers, 1, "videos checked at a time")
        if self.held_out_fraction > 1:
            raise ConfigError(f"held_out_fraction={self.held_out_fraction} is above 1; the usual one is 0.02")


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

    sources: folders of videos, videos, JSONL files; the paths in a JSONL file are relative to ``video_root``, or to its
        own folder.
    recogniser: makes the transcripts that are missing. cleaner: cleans all.
    on_estimate: is told what cleaning will cost before it begins; may raise to stop it.

    Raises DataError where the target holds something already, where nothing can be used, or where the disk is full;
    nothing is left then but the answers and transcripts that were paid for.
    """
    target = Path(target)
    check_target(target, num_bytes=0)
    named, refusals = open_sources(sources, video_root)
    survey = survey_sources(
        named,
        fps=config.fps,
        turn_s=config.turn_s,
        min_video_s=config.min_video_s,
        num_workers=config.num_workers,
    )
    check_target(target, num_bytes=survey.num_text_bytes + SPARE_BYTES)
    preparation = _Preparation(config, selection, survey, common_root(named, video_root), recogniser, cleaner)
    preparation.refusals += [*refusals, *survey.refusals]
    if cleaner:
        on_estimate(cleaner.estimate(preparation.transcripts()))
    with PreparedFolder(target) as folder:
        for row, chunks in preparation.rows():
            folder.add(row, chunks)
        if not preparation.counts["recordings"]:
            raise preparation.nothing_left()
        manifest = preparation.manifest()
        folder.finish(manifest)
    return manifest


@dataclass(frozen=True)
class _Heard:
    """A recording whose words are known."""

    entry: Entry
    probe: VideoProbe
    part: Part
    transcript: Transcript
    mended: Counter[str]


@dataclass
class _Preparation:
    """One run: what it works with, and what it has counted so far."""

    config: PrepareConfig
    selection: SelectionConfig
    survey: Survey
    root: Path
    recogniser: SpeechRecogniser | None
    cleaner: Cleaner | None
    refusals: list[Refusal] = field(default_factory=list)
    counts: Counter[str] = field(default_factory=Counter)
    mended: Counter[str] = field(default_factory=Counter)
    questions: Counter[str] = field(default_factory=Counter)
    dropped_chunks: Counter[str] = field(default_factory=Counter)
    hours: Counter[str] = field(default_factory=Counter)

    def transcripts(self) -> Iterator[Transcript]:
        """Yield what is said in each recording, before cleaning; what cannot be used is passed over."""
        for entry, probe in self.survey.entries():
            try:
                yield self._hear(entry, probe).transcript
            except (DataError, VideoError) as error:
                log.debug("%s: %s", entry.origin, error)  # told when the rows are made

    def rows(self) -> Iterator[tuple[dict[str, Any], list[dict[str, Any]]]]:
        """Yield each recording of which something is kept, with its chunks; whatever is left out is counted."""
        heard, to_be_cleaned = tee(self._heard())
        transcripts = (recording.transcript for recording in to_be_cleaned)
        cleaned = self.cleaner.clean(transcripts) if self.cleaner else transcripts
        for recording, transcript in zip(heard, cleaned, strict=True):
            self.mended += recording.mended
            row = self._row(recording, transcript)
            chunks = self._chunks(row, recording.part, transcript)
            if chunks:
                self._count(row, chunks)
                yield row, chunks
            else:
                self.counts["recordings_without_a_chunk"] += 1

    def nothing_left(self) -> DataError:
        """Say why there is nothing to be written."""
        reasons = [f"{refusal.origin}: {refusal.reason}" for refusal in self.refusals]
        reasons += self.survey.unusable.values()
        reasons += [f"chunks with {reason} were left out" for reason in self.dropped_chunks]
        first = reasons[0] if reasons else "the sources are empty"
        return DataError(f"nothing is left to be trained on ({max(1, len(reasons))} reasons, the first: {first})")

    def manifest(self) -> dict[str, Any]:
        """All that a person wants to know of the folder, as JSON."""
        survey = self.survey
        return {
            "turn_s": self.config.turn_s,
            "fps": self.config.fps,
            "video_root": str(self.root),
            "settings": {"prepare": asdict(self.config), "selection": asdict(self.selection)},
            "sources": [{"path": str(source.path), "root": str(source.root)} for source in survey.sources],
            "counts": dict(self.counts),
            "hours": {name: round(value, 4) for name, value in self.hours.items()},
            "words_mended": {name: {"num": num, "rule": RULES[name]} for name, num in self.mended.items()},
            "questions": dict(self.questions),
            "chunks_dropped": dict(self.dropped_chunks),
            "cleaning": self._cleaning(),
            "videos_unusable": [
                {"video": str(video), "reason": reason, "num_recordings": survey.num_recordings[video]}
                for video, reason in survey.unusable.items()
            ],
            "videos_cut_off": [{"video": str(video), "missing_s": round(s, 1)} for video, s in survey.cut.items()],
            "entries_dropped": {
                "num": len(self.refusals),
                "first": [asdict(refusal) for refusal in self.refusals[:MAX_LISTED]],
            },
        }

    def _heard(self) -> Iterator["_Heard"]:
        for entry, probe in self.survey.entries():
            try:
                yield self._hear(entry, probe)
            except (DataError, VideoError) as error:
                self.refusals.append(Refusal(entry.origin, str(error)))

    def _hear(self, entry: Entry, probe: VideoProbe) -> "_Heard":
        """Find out what is said. Raises DataError or VideoError where that is nothing, or cannot be known."""
        part = part_of(entry, probe, turn_s=self.config.turn_s)
        transcript, mended = mend(self._cues(entry), start_s=part.start_s, end_s=part.end_s)
        if not transcript.words:
            raise DataError("nothing is said in it")
        return _Heard(entry, probe, part, transcript, mended)

    def _cues(self, entry: Entry) -> Sequence[Cue]:
        if entry.said.cues is not None:
            return entry.said.cues
        if entry.transcript is not None:
            return read_cues(entry.transcript)
        if self.recogniser is None:
            raise DataError("has no transcript; put one beside the video, or recognise its speech: asr.enabled=true")
        return self.recogniser.cues(entry.video)

    def _row(self, heard: "_Heard", transcript: Transcript) -> dict[str, Any]:
        said, part = heard.entry.said, heard.part
        video = str(heard.entry.video.relative_to(self.root))
        is_whole = said.start_s == 0 and said.end_s is None
        texts = {
            "id": video if is_whole else f"{video}@{said.start_s!r}-{said.end_s!r}",
            "video": video,
            "previous_text": said.previous_text,
            "query": said.query or self.config.query,
            "title": said.title,
            "category": said.category,
            "source": heard.entry.origin,
        }
        lines = transcript.lines(start_s=part.start_s, num_turns=part.num_turns, turn_s=part.turn_s)
        return {
            **{name: clean_text(text) for name, text in texts.items()},
            "start_s": part.start_s,
            "end_s": part.end_s,
            "num_turns": part.num_turns,
            "lines": lines,
            "width": heard.probe.width,
            "height": heard.probe.height,
            "questions": self._questions(said, part),
        }

    def _questions(self, said: Conversation, part: Part) -> list[dict[str, Any]]:
        self.questions["unreadable"] += said.num_bad_questions
        if self.config.questions == "drop":
            self.questions["dropped"] += len(said.questions)
            return []
        inside = [asked for asked in said.questions if part.start_s <= asked.ask_s <= part.end_s]
        self.questions["kept"] += len(inside)
        self.questions["outside_the_recording"] += len(said.questions) - len(inside)
        return [
            {
                "turn": turn_of(asked.ask_s, start_s=part.start_s, turn_s=part.turn_s),
                "question": clean_text(asked.question),
                "answer": clean_text(asked.answer),
            }
            for asked in inside
        ]

    def _chunks(self, recording: dict[str, Any], part: Part, transcript: Transcript) -> list[dict[str, Any]]:
        lines = recording["lines"]
        kept, reason, num_dropped = select(
            transcript.words, lines, self.selection, start_s=part.start_s, turn_s=part.turn_s
        )
        self.dropped_chunks[reason] += num_dropped
        split = split_of(recording["video"], held_out_fraction=self.config.held_out_fraction, seed=self.config.seed)
        return [
            {
                "recording": recording["id"],
                "first_turn": turns.start,
                "num_turns": len(turns),
                "num_words": num_words(lines, turns),
                "split": split,
            }
            for turns in kept
        ]

    def _count(self, recording: dict[str, Any], chunks: Sequence[dict[str, Any]]):
        split = chunks[0]["split"]
        num_seconds = sum(chunk["num_turns"] for chunk in chunks) * self.config.turn_s
        self.counts.update(
            recordings=1,
            chunks=len(chunks),
            words=sum(len(line.split()) for line in recording["lines"]),
            **{f"chunks_{split}": len(chunks)},
        )
        self.hours["recordings"] += recording["num_turns"] * self.config.turn_s / 3600
        self.hours[f"chunks_{split}"] += num_seconds / 3600

    def _cleaning(self) -> dict[str, int]:
        if self.cleaner is None:
            return {}
        return {**self.cleaner.counts, **asdict(self.cleaner.usage)}


def summary(manifest: dict[str, Any]) -> str:
    """One line for what was prepared and what was not."""
    counts, hours = manifest["counts"], manifest["hours"]
    text = (
        f"{counts['recordings']:,} recordings, {hours['recordings']:.2f} h: "
        f"{counts.get('chunks_train', 0):,} chunks to train on, {counts.get('chunks_held_out', 0):,} held out"
    )
    left_out = [
        (len(manifest["videos_unusable"]), "videos that cannot be used"),
        (len(manifest["videos_cut_off"]), "videos cut off"),
        (manifest["entries_dropped"]["num"], "entries left out"),
        (sum(manifest["chunks_dropped"].values()), "chunks left out"),
        (sum(mend["num"] for mend in manifest["words_mended"].values()), "stamps mended or dropped"),
    ]
    return "; ".join([text, *(f"{num:,} {what}" for num, what in left_out if num)])
