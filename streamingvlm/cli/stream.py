"""``streamingvlm stream``: stream sources and write the commentary to the terminal and to files."""

import math
import os
from collections import Counter
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import streamingvlm
from streamingvlm import StreamingSession, load_model
from streamingvlm.cli.terminal import LiveView, PlainView, open_view, spinner
from streamingvlm.config import LiveConfig, resolve
from streamingvlm.errors import ConfigError
from streamingvlm.inference.alert import Alert
from streamingvlm.inference.output_files import MultiWriter, OutputJournal, is_one_file, open_writers, reopen_writers
from streamingvlm.inference.snapshot import SnapshotWriter
from streamingvlm.inference.snapshot_folder import has_snapshot, read_manifest
from streamingvlm.model.checkpoint import weights_bytes
from streamingvlm.model.loading import StreamingModel
from streamingvlm.pitch.recognition import unknown_scene
from streamingvlm.provenance import CAPTIONED_SUFFIX, Provenance
from streamingvlm.video.address import VIDEO_SUFFIXES, Address, parse_address
from streamingvlm.video.live import LiveReader
from streamingvlm.video.reader import VideoReader, open_video

EMBEDDED_MATCH = Path(streamingvlm.__file__).parent / "assets" / "pitch" / "match.mp4"


@dataclass(frozen=True)
class Progress:
    """How far a stopped stream had come, as `OutputJournal.record` wrote it."""

    num_turns: int
    sizes: dict[str, int]
    caption: str
    start_s: float
    end_s: float
    is_finished: bool


@dataclass(frozen=True)
class Watched:
    """A source that was checked. duration_s: of a file; warning: what the user should know before it is watched."""

    address: Address
    duration_s: float | None
    warning: str | None


def stream(options: dict[str, Any]):
    """Check the options before the model loads, then stream each source."""
    resolve(LiveConfig, options["live"], {})
    for name, group in (("device", "model"), ("fps", "video")):
        if options[name] is not None:
            options[group][name] = options[name]
    addresses = addresses_of(options["source"])
    check_sources(addresses, options)
    check_snapshot_options(options)
    watched = [watch(address, options) for address in addresses]
    model = None
    for source in watched:
        model = stream_one(source, options, model, has_title=len(watched) > 1)


def addresses_of(source: str | list[str] | None) -> list[Address]:
    """Return what the user named; a folder stands for the videos in it, except those that this command wrote."""
    names = [source] if isinstance(source, str) else source or [str(EMBEDDED_MATCH)]
    addresses = []
    for address in (parse_address(os.path.expanduser(name)) for name in names):
        if address.kind != "file" or not Path(address.target).is_dir():
            addresses.append(address)
            continue
        videos = [path for path in sorted(Path(address.target).iterdir()) if _is_video(path)]
        if not videos:
            raise ConfigError(f"{address.shown} is a folder without videos; name a video or a folder that holds some")
        addresses += map(parse_address, videos)
    return addresses


def _is_video(path: Path) -> bool:
    return path.suffix.lower() in VIDEO_SUFFIXES and path.is_file() and not path.name.endswith(CAPTIONED_SUFFIX)


def check_sources(addresses: list[Address], options: dict[str, Any]):
    """Raise ConfigError for options that these sources do not have, or that several do not share."""
    output, live = options["output"], [address for address in addresses if address.kind != "file"]
    path, num = output["path"], len(addresses)
    writes_video = "mp4" in output["formats"] or str(path).endswith(".mp4")
    if live and num > 1:
        raise ConfigError(f"{live[0].shown} is live and the only source of a stream; give it alone, or files alone")
    if live and options["start_s"]:
        raise ConfigError(f"start_s={options['start_s']}, but {live[0].shown} is live; leave start_s out")
    if live and writes_video:
        raise ConfigError(f"output has mp4, but {live[0].shown} is live; a captioned video is made from a file")
    if num > 1 and path and is_one_file(path):
        raise ConfigError(f"output.path={path} is one file, but {num} videos are given; name a folder")
    if num > 1 and options["autosave"]:
        raise ConfigError(f"autosave={options['autosave']} holds one stream, but {num} videos are given; give one")
    stems = Counter((path or Path(address.target).parent, Path(address.target).stem) for address in addresses)
    (_, stem), most = stems.most_common(1)[0]
    if most > 1 and output["overwrite"]:
        raise ConfigError(
            f"{most} videos are called {stem}, and with output.overwrite=true one's files would replace the other's; "
            "leave it out, or give the videos one by one"
        )


def watch(address: Address, options: dict[str, Any]) -> Watched:
    """Read the beginning of a file, so that one that cannot be decoded fails before the model loads.

    A live source is opened once, after the model has loaded: pipes and some cameras cannot be opened twice.
    """
    name = options["model"]["name"]
    if address.kind != "file":
        return Watched(address, None, unknown_scene(name, None))
    with open_video(address.target, decoder=options["video"]["decoder"], start_s=options["start_s"]) as reader:
        return Watched(address, reader.info.duration_s, unknown_scene(name, next(reader).frames))


def stream_one(
    source: Watched, options: dict[str, Any], model: StreamingModel | None, *, has_title: bool
) -> StreamingModel | None:
    """Stream one source, from its start or from where it was stopped. Return the model, loaded if it was not."""
    limit_s = options["start_s"] + (options["duration_s"] or math.inf)
    ends_s = [time_s for time_s in (source.duration_s, limit_s) if time_s and time_s < math.inf]
    view = open_view(min(ends_s, default=None))
    if has_title:
        view.note(f"{source.address.name}:")
    progress = read_progress(options)
    if progress and (progress.is_finished or progress.end_s >= limit_s):
        view.note(f"{source.address.shown} is finished: it was streamed to {progress.end_s:g} s")
        return model
    with open_output(source.address, options, progress) as output:
        is_new = model is None
        model = model or load(options)
        with open_session(options, model) as session:
            if is_new:
                view.note(description(model))
            if source.warning:
                view.note(source.warning)
            output.origin = provenance(session, source.address, options)
            run_session(session, source.address, options, limit_s, view, output)
    return model


def load(options: dict[str, Any]) -> StreamingModel:
    """Load the model, with a spinner that names it and the size of its weights."""
    name = options["model"]["name"]
    size = weights_bytes(name)
    with spinner(f"loading {name}" + (f" ({size / 1e6:,.0f} MB)" if size else " from the hub")):
        return load_model(**options["model"])


def description(model: StreamingModel) -> str:
    """Return the model, its device and its precision in one line."""
    num = sum(parameter.numel() for parameter in model.hf.parameters())
    return f"model {model.name} ({num / 1e6:,.1f} M parameters) on {model.device}, {str(model.dtype)[6:]}"


def provenance(session: StreamingSession, address: Address, options: dict[str, Any]) -> Provenance:
    """Return what the files say of their origin."""
    model = session.model
    settings = {**options["model"], "device": str(model.device), "dtype": str(model.dtype)[6:]}
    settings |= {name: asdict(getattr(session, f"{name}_config")) for name in ("cache", "video", "sampling")}
    settings |= {"previous_text": session.previous_text, "alert": options["alert"]}
    source = address.target if address.kind == "file" else address.shown
    return Provenance(model.name, source, session.query, settings)


def read_progress(options: dict[str, Any]) -> Progress | None:
    """Return how far the stream to resume had come; None for a new one, or if nothing was recorded."""
    folder = options["autosave"]
    if not options["resume"]:
        return None
    num_turns = read_manifest(folder)["stream"]["num_turns"] if has_snapshot(folder) else 0
    recorded = OutputJournal(folder).read(num_turns)
    if recorded is None:
        return None
    progress = Progress(**recorded)
    if progress.start_s != options["start_s"]:
        raise ConfigError(
            f"start_s={options['start_s']:g}, but the stream in {folder} began at {progress.start_s:g}; repeat it"
        )
    return progress


def open_output(address: Address, options: dict[str, Any], progress: Progress | None) -> MultiWriter:
    """Open the output files: next to a video file, and in the working directory for a live source.

    Files of a stream that was stopped are continued. The embedded match gets no files unless ``output.path`` is set, as
    they would be written into the installation.
    """
    output, start_s = options["output"], options["start_s"]
    if progress:
        captions = output["captions"]
        return reopen_writers(
            progress.sizes, address.target, captions=captions, start_s=start_s, caption=progress.caption
        )
    if not (options["source"] or output["path"]):
        output = {**output, "formats": []}
    # Writers replace the suffix of the path, and the last dot of an address does not start one.
    source = address.target if address.kind == "file" else f"{address.name}.live"
    return open_writers(source, start_s=start_s, **output)


def open_session(options: dict[str, Any], model: StreamingModel) -> StreamingSession:
    """Open a new session, or resume the one in the snapshot."""
    if options["resume"] and has_snapshot(options["autosave"]):
        return resume_session(options, model)
    return StreamingSession(
        model,
        cache=options["cache"],
        video=options["video"],
        sampling=options["sampling"],
        query=options["query"] or "",
        previous_text=previous_text(options),
    )


def check_snapshot_options(options: dict[str, Any]):
    """Raise ConfigError for ``resume`` without a folder, and for a snapshot that would be overwritten."""
    path = options["autosave"]
    if options["resume"] and not path:
        raise ConfigError("resume=true needs the folder of the snapshot; add autosave=FOLDER")
    if path and has_snapshot(path) and not options["resume"]:
        raise ConfigError(
            f"autosave={path} holds the snapshot of a stream; add resume=true to continue it, or name another folder"
        )


def resume_session(options: dict[str, Any], model: StreamingModel) -> StreamingSession:
    """Load the session of the snapshot. A new query replaces the old one.

    Raises ConfigError for an option that differs from the settings of the snapshot.
    """
    path = options["autosave"]
    session = StreamingSession.load(path, model=model)
    for group in ("cache", "video", "sampling"):
        running = getattr(session, f"{group}_config")
        for name, value in options[group].items():
            if value is not None and value != getattr(running, name):
                raise ConfigError(
                    f"{group}.{name}={value}, but the stream in {path} runs with {getattr(running, name)}; repeat the "
                    "options that it was started with"
                )
    session.query = options["query"] or session.query
    return session


def open_alert(session: StreamingSession, options: dict[str, Any]) -> Alert | None:
    """Return the alert of the options; None if they have none."""
    if not options["alert"]:
        return None
    return Alert(session, options["alert"], threshold=options["alert_threshold"])


def previous_text(options: dict[str, Any]) -> str:
    """Return the text before the stream; for the embedded match, its introduction of the teams."""
    if options["previous_text"] is None and not options["source"]:
        return EMBEDDED_MATCH.with_suffix(".txt").read_text("utf-8").strip()
    return options["previous_text"] or ""


def run_session(
    session: StreamingSession,
    address: Address,
    options: dict[str, Any],
    limit_s: float,
    view: LiveView | PlainView,
    output: MultiWriter,
):
    """Stream to the terminal and to files, from the session's current time; print a summary even after an error."""
    reader, alert = None, open_alert(session, options)
    keep = Keeper(options, address, session, output) if options["autosave"] else None
    # A stream that is saved runs turn by turn: nothing of the next turn may be in what is saved.
    step = alert.step if alert else session.step if keep else None
    start_s = max(session.end_s, options["start_s"])
    try:
        with view:
            # A resumed session may already be at the limit.
            lines = session.stream(address.source, start_s=start_s, live=options["live"], step=step)
            for line in lines if start_s < limit_s else ():
                reader = session.reader or reader
                output.write(line)
                view.show(line, session)
                if keep:
                    keep.save()
                if line.end_s >= limit_s:
                    break
            else:
                if keep:
                    keep.finish()
    finally:
        for note in closing_notes(session, reader, output, alert):
            view.note(note)


class Keeper:
    """Saves a stream after each turn, once its lines are in the files."""

    def __init__(self, options: dict[str, Any], address: Address, session: StreamingSession, output: MultiWriter):
        self._session, self._output, self._start_s = session, output, options["start_s"]
        self._is_file = address.kind == "file"
        self._journal, self._snapshot = OutputJournal(options["autosave"]), SnapshotWriter(options["autosave"])
        self._record()

    def save(self):
        """Save the stream between two turns."""
        self._record()
        self._session.run_between_turns(self._snapshot.save)

    def finish(self):
        """Record that a file was watched to its end; a live source may go on later."""
        self._record(is_finished=self._is_file)

    def _record(self, *, is_finished: bool = False):
        num_turns, end_s = self._session.num_turns, self._session.end_s
        self._journal.record(num_turns, self._output, start_s=self._start_s, end_s=end_s, is_finished=is_finished)


def closing_notes(
    session: StreamingSession, reader: VideoReader | LiveReader | None, output: MultiWriter, alert: Alert | None
) -> Iterator[str]:
    """Yield the summary of the session, of the alert and of skipped video, and the paths of the output files."""
    if session.stats.num_turns:
        yield session.stats.summary()
    if alert and alert.num_turns:
        yield alert.summary()
    if reader and (skipped := reader.skipped.describe()):
        yield skipped
    if output.paths:
        yield f"wrote {', '.join(map(str, output.paths))}"
