"""LiveSports-3K-CC: short sports events, judged against the commentary on air.

Reads the published table, parquet or JSONL, with the fields video, video_id, event_id, begin, end, event_title,
preasr_text and event_asr_text, and predictions in the published shape.
"""

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
from pyarrow import parquet

from streamingvlm.atomic import write_text
from streamingvlm.data.sources import resolve_inside
from streamingvlm.errors import DataError
from streamingvlm.evaluation.candidates.video_clip import Clip
from streamingvlm.evaluation.llm_judge.commentary_files import CommentedClip, json_lines
from streamingvlm.evaluation.llm_judge.generation import CommentaryTask
from streamingvlm.evaluation.llm_judge.judging import Comparison

INSTRUCTIONS = """\
You compare two commentaries on the same event of a sports broadcast with the reference, which is what was said of it on
air. Better is the one that agrees with the reference in meaning: what happens, who does it, how it ends. Only where
both agree with it alike, prefer the one whose way of speaking is nearer to the reference. Neither the order in which
the two are shown nor their length is a merit. Answer with the letter of the better one, A or B, and with nothing
else."""


@dataclass(frozen=True)
class SportsEvent:
    """A row of the table.

    video: the file; begin_s, end_s: the event in it; previous_text: the recognised commentary before it; reference: the
    commentary on it.
    """

    video_id: str
    event_id: str
    video: Path
    begin_s: float
    end_s: float
    title: str
    previous_text: str
    reference: str

    @property
    def name(self) -> str:
        """Unique among events."""
        return f"{self.video_id}:{self.event_id}"

    def task(self, query: str) -> CommentaryTask:
        """Return the event as a task; ``{title}`` in the query is replaced by its title."""
        clip = Clip(self.video, self.begin_s, self.end_s, query.replace("{title}", self.title), self.previous_text)
        return CommentaryTask(self.name, (clip,))


def read_events(path: Path, video_root: Path, *, num_events: int | None = None) -> list[SportsEvent]:
    """Read the table, at most the first ``num_events`` rows. Raises DataError for another layout."""
    rows = _parquet_rows(path) if path.suffix == ".parquet" else json_lines(path)
    events = []
    for where, row in rows:
        if num_events is not None and len(events) == num_events:
            break
        events.append(_event(row, where, video_root))
    if not events:
        raise DataError(f"{path} has no event; give the table of LiveSports_3K_CC, split test")
    if len({event.name for event in events}) < len(events):
        raise DataError(f"{path} has an event twice; give the table of LiveSports_3K_CC, split test, alone")
    return events


def predictions(events: Sequence[SportsEvent], by_event: Mapping[str, Sequence[CommentedClip]]) -> dict[str, str]:
    """Join the commentary of each event into one text, by the event's name."""
    return {
        event.name: " ".join(utterance.text for clip in by_event[event.name] for utterance in clip.utterances)
        for event in events
    }


def write_predictions(path: Path, events: Sequence[SportsEvent], texts: Mapping[str, str]):
    """Write predictions in the published layout, atomically. Raises DataError."""
    lines = (
        {
            "video_id": event.video_id,
            "event_id": event.event_id,
            "begin": event.begin_s,
            "end": event.end_s,
            "pred": texts[event.name],
        }
        for event in events
    )
    try:
        write_text(path, "".join(json.dumps(line, ensure_ascii=False) + "\n" for line in lines))
    except OSError as error:
        raise DataError(
            f"{path} cannot be written ({error.strerror}); free some space or name another folder"
        ) from error


def read_predictions(path: Path, events: Sequence[SportsEvent]) -> dict[str, str]:
    """Read predictions in the published layout, by the event's name. Raises DataError if an event has none."""
    texts = {}
    for where, line in json_lines(path):
        try:
            texts[f"{line['video_id']}:{line['event_id']}"] = line["pred"].strip()
        except (TypeError, KeyError, AttributeError) as error:
            raise DataError(f"{where} is no prediction; expected video_id, event_id, begin, end and pred") from error
    absent = [event.name for event in events if event.name not in texts]
    if absent:
        raise DataError(
            f"{path} has no prediction for {len(absent)} of {len(events)} events, first {absent[0]}; add them"
        )
    return texts


def comparisons(
    events: Sequence[SportsEvent], ours: Mapping[str, str], theirs: Mapping[str, str]
) -> Iterator[Comparison]:
    """Yield a comparison per event."""
    for event in events:
        yield Comparison(event.name, event.video_id, event.reference, ours[event.name], theirs[event.name])


def _parquet_rows(path: Path) -> Iterator[tuple[str, Any]]:
    try:
        rows = parquet.read_table(path).to_pylist()
    except (OSError, pa.ArrowException) as error:
        raise DataError(f"{path} cannot be read as parquet ({' '.join(str(error).split())[:200]})") from error
    for number, row in enumerate(rows):
        yield f"{path}: row {number}", row


def _event(row: Mapping[str, Any], where: str, video_root: Path) -> SportsEvent:
    try:
        event = SportsEvent(
            video_id=str(row["video_id"]),
            event_id=str(row["event_id"]),
            video=resolve_inside(video_root, row["video"]),
            begin_s=float(row["begin"]),
            end_s=float(row["end"]),
            title=row["event_title"] or "",
            previous_text=row["preasr_text"] or "",
            reference=row["event_asr_text"].strip(),
        )
    except (TypeError, KeyError, ValueError, AttributeError) as error:
        raise DataError(
            f"{where} is no event of LiveSports-3K-CC; expected video, video_id, event_id, begin, end, event_title, "
            "preasr_text and event_asr_text"
        ) from error
    if not 0 <= event.begin_s < event.end_s:
        raise DataError(f"{where} lasts from {event.begin_s:g} s to {event.end_s:g} s; correct its times")
    return event
