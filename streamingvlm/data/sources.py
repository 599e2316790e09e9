"""Sources of recordings: a folder of videos with transcripts beside them, one video, or a JSONL file.

Paths in a JSONL file are not trusted: they are relative to a root that the user sets, and must stay below it. Only the
JSONL files themselves, and the first lines of transcripts beside a video, are opened here. What a model wrote is no
source: captioned videos in a folder are passed over, and other transcripts are preferred.
"""

import glob
import os
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from streamingvlm.data.conversations import Conversation, is_conversation_file, read_conversations
from streamingvlm.data.transcript_files import TRANSCRIPT_SUFFIXES
from streamingvlm.errors import DataError
from streamingvlm.provenance import CAPTIONED_SUFFIX, is_generated_file
from streamingvlm.video.address import VIDEO_SUFFIXES

_LANGUAGE = r"[a-z]{2,3}(?:-[A-Za-z0-9]{2,8})*"  # as BCP 47 writes it


@dataclass(frozen=True)
class RecordingSource:
    """A folder, video or JSONL file given by the user, and the folder that its paths are relative to."""

    path: Path
    root: Path

    @property
    def is_list(self) -> bool:
        """True for a JSONL file, False for a folder or a video."""
        return not (self.path.is_dir() or _is_video(self.path))


@dataclass(frozen=True)
class Entry:
    """One recording that a source lists.

    origin: the source and line, for messages.
    transcript: the file with its words if ``conversation.cues`` is None; None if there is no such file.
    """

    origin: str
    video: Path
    conversation: Conversation
    transcript: Path | None = None


@dataclass(frozen=True)
class DroppedEntry:
    """An entry that cannot be used, with the reason."""

    origin: str
    reason: str


def resolve_sources(
    paths: Sequence[str | Path], video_root: str | Path | None
) -> tuple[list[RecordingSource], list[DroppedEntry]]:
    """Check the paths given by the user; duplicates are dropped. Raises DataError if a path cannot be a source."""
    sources: dict[Path, RecordingSource] = {}
    dropped = []
    for path in map(_absolute, paths):
        if path.resolve() in sources:
            dropped.append(DroppedEntry(str(path), "is given twice"))
            continue
        sources[path.resolve()] = _source(path, video_root)
    if not sources:
        raise DataError("no source is given; give a folder of videos, a video, or a JSONL file of conversations")
    return list(sources.values()), dropped


def read_entries(source: RecordingSource) -> Iterator[Entry | DroppedEntry]:
    """Yield the entries of a source in the order of the file, or of the names in a folder."""
    if source.path.is_dir():
        videos = (path for path in source.path.rglob("*") if _is_video(path))
        yield from map(_video_entry, sorted(path for path in videos if not path.name.endswith(CAPTIONED_SUFFIX)))
    elif source.is_list:
        yield from _listed_entries(source)
    else:
        yield _video_entry(source.path)


def common_root(sources: Sequence[RecordingSource], video_root: str | Path | None) -> Path:
    """Return the folder that the prepared video paths are relative to: ``video_root`` if it contains every source."""
    common = Path(os.path.commonpath([source.root for source in sources]))
    return _absolute(video_root) if video_root and common.is_relative_to(_absolute(video_root)) else common


def resolve_inside(root: Path, name: str) -> Path:
    """Resolve an untrusted path against ``root``. Raises DataError if the result lies outside ``root``.

    Symbolic links below ``root`` are trusted and followed.
    """
    path = Path(os.path.normpath(root / name.removeprefix("file://")))
    if "\0" in name or not path.is_relative_to(root):
        raise DataError(f"{name!r} leads out of {root}; only paths below it are read")
    return path


def _absolute(path: str | Path) -> Path:
    return Path(os.path.abspath(os.path.expanduser(path)))


def _source(path: Path, video_root: str | Path | None) -> RecordingSource:
    if not path.exists():
        raise DataError(f"{path} does not exist; give a folder of videos, a video, or a JSONL file of conversations")
    if not os.access(path, os.R_OK):
        raise DataError(f"{path} is not readable by this user; change its permissions")
    source = RecordingSource(path, path if path.is_dir() else path.parent)
    if not source.is_list:
        return source
    if is_generated_file(path):
        raise DataError(f"{path} was written by a model, not by people; give a JSONL file of conversations")
    if not is_conversation_file(path):
        raise DataError(f"{path} is not a list of recordings; give a folder of videos, a video, or a JSONL file")
    return RecordingSource(path, _absolute(video_root)) if video_root else source


def _is_video(path: Path) -> bool:
    return path.suffix.lower() in VIDEO_SUFFIXES and path.is_file()


def _video_entry(video: Path) -> Entry:
    return Entry(str(video), video, Conversation(video=video.name, title=video.stem), _transcript_beside(video))


def _transcript_beside(video: Path) -> Path | None:
    """Return ``match.json`` or ``match.mp4.json`` beside ``match.mp4``, or the same with ``.vtt`` or ``.srt``.

    Otherwise the first with a language, such as ``match.en.vtt``.
    """
    names = (name for suffix in TRANSCRIPT_SUFFIXES for name in (video.stem + suffix, video.name + suffix))
    found = [path for path in map(video.with_name, names) if path.is_file()] or _with_language(video)
    return next((path for path in found if not _is_generated(path)), found[0] if found else None)


def _with_language(video: Path) -> list[Path]:
    pattern = re.compile(rf"{re.escape(video.stem)}\.{_LANGUAGE}")
    found = (path for path in video.parent.glob(f"{glob.escape(video.stem)}.*") if path.suffix in TRANSCRIPT_SUFFIXES)
    named = [path for path in found if pattern.fullmatch(path.stem)]
    return sorted(named, key=lambda path: (TRANSCRIPT_SUFFIXES.index(path.suffix), path.name))


def _is_generated(path: Path) -> bool:
    try:
        return is_generated_file(path)
    except OSError:  # reported when it is read
        return False


def _listed_entries(source: RecordingSource) -> Iterator[Entry | DroppedEntry]:
    for number, conversation in read_conversations(source.path):
        origin = f"{source.path}:{number}"
        if isinstance(conversation, DataError):
            yield DroppedEntry(origin, str(conversation))
            continue
        try:
            yield _listed_entry(source, origin, conversation)
        except DataError as error:
            yield DroppedEntry(origin, str(error))


def _listed_entry(source: RecordingSource, origin: str, conversation: Conversation) -> Entry:
    video = resolve_inside(source.root, conversation.video)
    if conversation.cues is not None:
        return Entry(origin, video, conversation)
    listed = conversation.transcript and resolve_inside(source.path.parent, conversation.transcript)
    return Entry(origin, video, conversation, listed or _transcript_beside(video))
