"""A scan of the sources before any expensive work: it finds duplicate entries, unusable videos, and the text size."""

import logging
import math
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial
from hashlib import blake2b
from pathlib import Path
from typing import TYPE_CHECKING

from streamingvlm.config import TIME_SLACK_S
from streamingvlm.data.parallel import map_in_threads
from streamingvlm.data.sources import DroppedEntry, Entry, RecordingSource, read_entries
from streamingvlm.errors import DataError, VideoError

if TYPE_CHECKING:
    from streamingvlm.video.probe import VideoProbe

log = logging.getLogger(__name__)

TEXT_BYTES_PER_S = 200
"""A generous estimate of the transcript text per second of video."""


@dataclass(frozen=True)
class RecordingSpan:
    """The span of a video that a recording covers, in whole turns."""

    start_s: float
    num_turns: int
    turn_s: float

    @property
    def end_s(self) -> float:
        """End of the last turn."""
        return self.start_s + self.num_turns * self.turn_s


@dataclass
class SourceScan:
    """Contents of the sources.

    probes: the usable videos. unusable: the reason for each other video.
    num_recordings: entries per video.
    dropped: entries that cannot be used, even if their video can.
    num_text_bytes: an estimate of the disk space that the text will need.
    """

    sources: Sequence[RecordingSource]
    probes: dict[Path, "VideoProbe"] = field(default_factory=dict)
    unusable: dict[Path, str] = field(default_factory=dict)
    num_recordings: Counter[Path] = field(default_factory=Counter)
    dropped: list[DroppedEntry] = field(default_factory=list)
    num_text_bytes: int = 0

    def entries(self) -> Iterator[tuple[Entry, "VideoProbe"]]:
        """Yield the distinct entries with a usable video."""
        for entry in distinct_entries(self.sources):
            if isinstance(entry, Entry) and entry.video in self.probes:
                yield entry, self.probes[entry.video]

    @property
    def missing_s(self) -> dict[Path, float]:
        """Seconds missing from each truncated video; the rest of the video is used."""
        return {video: probe.missing_s for video, probe in self.probes.items() if probe.missing_s}


def scan_sources(
    sources: Sequence[RecordingSource], *, fps: float, turn_s: float, min_video_s: float, num_workers: int
) -> SourceScan:
    """List all entries, and decode the start and the end of every video in them."""
    scan = SourceScan(sources)
    for source in sources:
        scan.num_text_bytes += source.path.stat().st_size if source.is_list else 0
    for entry in distinct_entries(sources):
        if isinstance(entry, DroppedEntry):
            scan.dropped.append(entry)
            continue
        scan.num_recordings[entry.video] += 1
        if entry.transcript and entry.transcript.is_file():
            scan.num_text_bytes += entry.transcript.stat().st_size
    probe = partial(_probe_or_reason, fps=fps, turn_s=turn_s, min_video_s=min_video_s)
    videos = list(scan.num_recordings)
    for video, probed in zip(videos, map_in_threads(probe, videos, num_workers), strict=True):
        if isinstance(probed, str):
            scan.unusable[video] = probed
        else:
            scan.probes[video] = probed
            scan.num_text_bytes += round(probed.num_turns * turn_s * TEXT_BYTES_PER_S)
    log.info("checked %d videos; %d cannot be used", len(scan.num_recordings), len(scan.unusable))
    return scan


def distinct_entries(sources: Iterable[RecordingSource]) -> Iterator[Entry | DroppedEntry]:
    """Yield the entries of all sources; a repeated span of a video becomes a DroppedEntry."""
    seen: set[int] = set()
    for entry in (entry for source in sources for entry in read_entries(source)):
        if isinstance(entry, DroppedEntry):
            yield entry
            continue
        key = _fingerprint(entry)
        if key in seen:
            yield DroppedEntry(entry.origin, f"repeats a span of {entry.conversation.video} from an earlier entry")
        else:
            seen.add(key)
            yield entry


def span_of(entry: Entry, probe: "VideoProbe", *, turn_s: float) -> RecordingSpan:
    """Return the span of the video that an entry covers. Raises DataError if it is shorter than a turn."""
    video_s = probe.num_turns * turn_s
    start_s, end_s = entry.conversation.start_s, entry.conversation.end_s
    stop_s = video_s if end_s is None else min(end_s, video_s)
    num_turns = math.floor((stop_s - start_s) / turn_s + TIME_SLACK_S)
    if num_turns < 1:
        end_s = stop_s if end_s is None else end_s
        raise DataError(f"covers {start_s:g} to {end_s:g} s of a video of {video_s:g} s: less than one turn")
    return RecordingSpan(start_s, num_turns, turn_s)


def _fingerprint(entry: Entry) -> int:
    """Hash an entry to 8 bytes, since a set may have to hold millions of them."""
    key = f"{entry.video}\0{entry.conversation.start_s!r}\0{entry.conversation.end_s!r}"
    return int.from_bytes(blake2b(key.encode("utf-8", "surrogateescape"), digest_size=8).digest(), "big")


def _probe_or_reason(video: Path, *, fps: float, turn_s: float, min_video_s: float) -> "VideoProbe | str":
    """Probe a video; return the reason instead if it cannot be used."""
    from streamingvlm.video.probe import probe_video  # imports torch, which a check of the settings does not need

    try:
        probe = probe_video(video, fps=fps, turn_s=turn_s)
    except VideoError as error:
        return str(error)
    duration_s = probe.num_turns * turn_s
    if duration_s < min_video_s:
        return f"lasts {duration_s:g} s, less than min_video_s={min_video_s:g}"
    return probe
