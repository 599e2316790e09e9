"""What the sources hold, found out before anything costs time: entries without a meaning, duplicates, bad videos."""

import logging
import math
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial
from hashlib import blake2b
from pathlib import Path

from streamingvlm.config import TIME_SLACK_S
from streamingvlm.data.parallel import map_in_threads
from streamingvlm.data.sources import Entry, Refusal, Source, read_entries
from streamingvlm.errors import DataError, VideoError
from streamingvlm.video.probe import VideoProbe, probe_video

log = logging.getLogger(__name__)

BYTES_A_SPOKEN_SECOND = 200
"""Of text that is yet to be recognised; generously."""


@dataclass(frozen=True)
class Part:
    """The part of a video that a recording is: whole turns of it."""

    start_s: float
    num_turns: int
    turn_s: float

    @property
    def end_s(self) -> float:
        """Where the last turn ends."""
        return self.start_s + self.num_turns * self.turn_s


@dataclass
class Survey:
    """What is there.

    probes: of the videos that can be used. unusable: the others, and why. cut: videos that end before their announced
        end, and how many seconds are missing; what is there is used.
    num_recordings: how often each video is named. refusals: entries that cannot be used, whatever their video.
    num_text_bytes: what the words to come may take on disk.
    """

    sources: Sequence[Source]
    probes: dict[Path, VideoProbe] = field(default_factory=dict)
    unusable: dict[Path, str] = field(default_factory=dict)
    num_recordings: Counter[Path] = field(default_factory=Counter)
    refusals: list[Refusal] = field(default_factory=list)
    num_text_bytes: int = 0

    def entries(self) -> Iterator[tuple[Entry, VideoProbe]]:
        """Yield the entries whose video can be used, each once."""
        for entry in distinct_entries(self.sources):
            if isinstance(entry, Entry) and entry.video in self.probes:
                yield entry, self.probes[entry.video]

    @property
    def cut(self) -> dict[Path, float]:
        """Videos that are used as far as they go."""
        return {video: probe.missing_s for video, probe in self.probes.items() if probe.missing_s}


def survey_sources(
    sources: Sequence[Source], *, fps: float, turn_s: float, min_video_s: float, num_workers: int
) -> Survey:
    """List all entries and decode the beginning and the end of every video that they name."""
    found = Survey(sources)
    for source in sources:
        found.num_text_bytes += source.path.stat().st_size if source.is_list else 0
    for entry in distinct_entries(sources):
        if isinstance(entry, Refusal):
            found.refusals.append(entry)
            continue
        found.num_recordings[entry.video] += 1
        if entry.transcript and entry.transcript.is_file():
            found.num_text_bytes += entry.transcript.stat().st_size
    probe = partial(_probed, fps=fps, turn_s=turn_s, min_video_s=min_video_s)
    videos = list(found.num_recordings)
    for video, probed in zip(videos, map_in_threads(probe, videos, num_workers), strict=True):
        if isinstance(probed, str):
            found.unusable[video] = probed
        else:
            found.probes[video] = probed
            found.num_text_bytes += round(probed.num_turns * turn_s * BYTES_A_SPOKEN_SECOND)
    log.info("%d videos checked, %d of them cannot be used", len(found.num_recordings), len(found.unusable))
    return found


def distinct_entries(sources: Iterable[Source]) -> Iterator[Entry | Refusal]:
    """Yield what the sources name; the same part of the same video a second time is a refusal."""
    seen: set[int] = set()
    for entry in (entry for source in sources for entry in read_entries(source)):
        if isinstance(entry, Refusal):
            yield entry
            continue
        key = _fingerprint(entry)
        if key in seen:
            yield Refusal(entry.origin, f"names the same part of {entry.said.video} as an entry before it")
        else:
            seen.add(key)
            yield entry


def part_of(entry: Entry, probe: VideoProbe, *, turn_s: float) -> Part:
    """Return the part of its video that an entry means; DataError where that is less than a turn."""
    there_s = probe.num_turns * turn_s
    start_s, end_s = entry.said.start_s, entry.said.end_s
    until_s = there_s if end_s is None else min(end_s, there_s)
    num_turns = math.floor((until_s - start_s) / turn_s + TIME_SLACK_S)
    if num_turns < 1:
        raise DataError(
            f"means {start_s:g} to {until_s if end_s is None else end_s:g} s of a video of {there_s:g} s: not one turn"
        )
    return Part(start_s, num_turns, turn_s)


def _fingerprint(entry: Entry) -> int:
    """Eight bytes stand for an entry: millions of them are to be remembered."""
    key = f"{entry.video}\0{entry.said.start_s!r}\0{entry.said.end_s!r}"
    return int.from_bytes(blake2b(key.encode("utf-8", "surrogateescape"), digest_size=8).digest(), "big")


def _probed(video: Path, *, fps: float, turn_s: float, min_video_s: float) -> VideoProbe | str:
    """What a video holds, or why it cannot be used."""
    try:
        probe = probe_video(video, fps=fps, turn_s=turn_s)
    except VideoError as error:
        return str(error)
    duration_s = probe.num_turns * turn_s
    if duration_s < min_video_s:
        return f"lasts {duration_s:g} s, less than min_video_s={min_video_s:g}"
    return probe
