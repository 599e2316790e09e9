"""Where recordings come from: a folder of videos with their transcripts beside them, one video, or a JSONL file.

What a file of data says about paths is not trusted: a path is relative to a root that the user gives, and must stay in
it. Nothing is opened here but the lists themselves.
"""

import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from streamingvlm.data.conversations import Conversation, is_conversation_file, read_conversations
from streamingvlm.data.formats import TRANSCRIPT_SUFFIXES
from streamingvlm.errors import DataError

VIDEO_SUFFIXES = frozenset({".avi", ".flv", ".m4v", ".mkv", ".mov", ".mp4", ".mpeg", ".mpg", ".ts", ".webm", ".wmv"})


@dataclass(frozen=True)
class Source:
    """One thing that the user named, and the folder that paths in it are relative to."""

    path: Path
    root: Path

    @property
    def is_list(self) -> bool:
        """Whether it is a file of entries, neither a folder nor a video."""
        return not (self.path.is_dir() or _is_video(self.path))


@dataclass(frozen=True)
class Entry:
    """A recording as a source names it.

    origin: where it is named, for people.
    transcript: the file that holds its words, where ``said.cues`` is None; None where there is none either.
    """

    origin: str
    video: Path
    said: Conversation
    transcript: Path | None = None


@dataclass(frozen=True)
class Refusal:
    """What a source names and cannot be used, and why."""

    origin: str
    reason: str


def open_sources(paths: Sequence[str | Path], video_root: str | Path | None) -> tuple[list[Source], list[Refusal]]:
    """Check what the user named, once each; a second mention is refused. Raises DataError for what is no source."""
    sources: dict[Path, Source] = {}
    refusals = []
    for path in map(_absolute, paths):
        if path.resolve() in sources:
            refusals.append(Refusal(str(path), "named twice"))
            continue
        sources[path.resolve()] = _source(path, video_root)
    if not sources:
        raise DataError("no source is named; name a folder of videos, a video, or a JSONL file of conversations")
    return list(sources.values()), refusals


def read_entries(source: Source) -> Iterator[Entry | Refusal]:
    """Yield what a source names, in its order; a folder's videos by name."""
    if source.path.is_dir():
        yield from map(_video_entry, sorted(path for path in source.path.rglob("*") if _is_video(path)))
    elif source.is_list:
        yield from _listed_entries(source)
    else:
        yield _video_entry(source.path)


def common_root(sources: Sequence[Source], video_root: str | Path | None) -> Path:
    """The folder that all videos are written relative to: the one that the user named, where it holds them all."""
    common = Path(os.path.commonpath([source.root for source in sources]))
    return _absolute(video_root) if video_root and common.is_relative_to(_absolute(video_root)) else common


def inside(root: Path, name: str) -> Path:
    """Resolve a path that a file of data names; DataError where it leads out of ``root``.

    Links below ``root`` are the user's own and are followed.
    """
    path = Path(os.path.normpath(root / name.removeprefix("file://")))
    if "\0" in name or not path.is_relative_to(root):
        raise DataError(f"{name!r} leads out of {root}")
    return path


def _absolute(path: str | Path) -> Path:
    return Path(os.path.abspath(os.path.expanduser(path)))


def _source(path: Path, video_root: str | Path | None) -> Source:
    if not path.exists():
        raise DataError(f"{path} does not exist; name a folder of videos, a video, or a JSONL file of conversations")
    if not os.access(path, os.R_OK):
        raise DataError(f"{path} may not be read by this user; change its permissions")
    source = Source(path, path if path.is_dir() else path.parent)
    if not source.is_list:
        return source
    if not is_conversation_file(path):
        raise DataError(f"{path} is no list of recordings; name a folder of videos, a video, or a JSONL file")
    return Source(path, _absolute(video_root)) if video_root else source


def _is_video(path: Path) -> bool:
    return path.suffix.lower() in VIDEO_SUFFIXES and path.is_file()


def _video_entry(video: Path) -> Entry:
    return Entry(str(video), video, Conversation(video=video.name, title=video.stem), _transcript_beside(video))


def _transcript_beside(video: Path) -> Path | None:
    """``match.json`` or ``match.mp4.json`` beside ``match.mp4``, likewise ``.vtt`` and ``.srt``."""
    names = (name for suffix in TRANSCRIPT_SUFFIXES for name in (video.stem + suffix, video.name + suffix))
    return next((path for path in map(video.with_name, names) if path.is_file()), None)


def _listed_entries(source: Source) -> Iterator[Entry | Refusal]:
    for number, said in read_conversations(source.path):
        origin = f"{source.path}:{number}"
        if isinstance(said, DataError):
            yield Refusal(origin, str(said))
            continue
        try:
            yield _listed_entry(source, origin, said)
        except DataError as error:
            yield Refusal(origin, str(error))


def _listed_entry(source: Source, origin: str, said: Conversation) -> Entry:
    video = inside(source.root, said.video)
    if said.cues is not None:
        return Entry(origin, video, said)
    named = said.transcript and inside(source.path.parent, said.transcript)
    return Entry(origin, video, said, named or _transcript_beside(video))
