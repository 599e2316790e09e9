"""``streamingvlm stream``: stream a source and write the commentary to the terminal and to files."""

import math
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import streamingvlm
from streamingvlm import StreamingSession, load_model
from streamingvlm.cli.terminal import LiveView, PlainView, open_view
from streamingvlm.config import LiveConfig, resolve
from streamingvlm.errors import ConfigError
from streamingvlm.inference.alert import Alert
from streamingvlm.inference.snapshot_folder import has_snapshot
from streamingvlm.inference.writers import MultiWriter, open_writers
from streamingvlm.video.address import Address, parse_address
from streamingvlm.video.live import LiveReader
from streamingvlm.video.reader import VideoReader, open_video

EMBEDDED_MATCH = Path(streamingvlm.__file__).parent / "assets" / "pitch" / "match.mp4"


def stream(options: dict[str, Any]):
    """Check the options before the model loads, then stream."""
    resolve(LiveConfig, options["live"], {})
    address = parse_address(os.path.expanduser(options["source"] or str(EMBEDDED_MATCH)))
    duration_s = video_duration_s(address, options["video"]["decoder"])
    limit_s = options["duration_s"] or math.inf
    check_snapshot_options(options)
    with open_output(address, options) as output:
        session = open_session(options)
        alert = open_alert(session, options)
        view = open_view(duration_s and min(duration_s, limit_s))
        run_session(session, address, options["live"], limit_s, view, output, alert)


def video_duration_s(address: Address, decoder: str) -> float | None:
    """Return the duration of a file; None for a live source.

    A file that cannot be decoded fails here, before the model loads. A live source is opened once, after the model has
    loaded: pipes and some cameras cannot be opened twice.
    """
    if address.kind != "file":
        return None
    with open_video(address.target, decoder=decoder) as reader:
        return reader.info.duration_s


def open_output(address: Address, options: dict[str, Any]) -> MultiWriter:
    """Open the output files: next to a video file, and in the working directory for a live source.

    The embedded match gets no files unless ``output.path`` is set, as they would be written into the installation.
    """
    output = options["output"]
    if not (options["source"] or output["path"]):
        output = {**output, "formats": []}
    # Writers replace the suffix of the path, and the last dot of an address does not start one.
    return open_writers(address.target if address.kind == "file" else f"{address.name}.live", **output)


def open_session(options: dict[str, Any]) -> StreamingSession:
    """Open a new session, or resume the one in the snapshot."""
    if options["resume"] and has_snapshot(options["autosave"]):
        return resume_session(options)
    return StreamingSession.from_pretrained(
        **options["model"],
        cache=options["cache"],
        video=options["video"],
        sampling=options["sampling"],
        query=options["query"] or "",
        previous_text=previous_text(options),
        autosave=options["autosave"],
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


def resume_session(options: dict[str, Any]) -> StreamingSession:
    """Load the session of the snapshot. A new query replaces the old one.

    Raises ConfigError for an option that differs from the settings of the snapshot.
    """
    path = options["autosave"]
    model = load_model(**options["model"])
    session = StreamingSession.load(path, model=model, autosave=path)
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
    live: dict[str, Any],
    limit_s: float,
    view: LiveView | PlainView,
    output: MultiWriter,
    alert: Alert | None,
):
    """Stream to the terminal and to files, from the session's current time; print a summary even after an error."""
    reader = None
    try:
        with view:
            # A resumed session may already be at the limit.
            step = alert and alert.step
            lines = session.stream(address.source, start_s=session.end_s, live=live, step=step)
            for line in lines if session.end_s < limit_s else ():
                reader = session.reader or reader
                output.write(line)
                view.show(line, session)
                if line.end_s >= limit_s:
                    break
    finally:
        for note in closing_notes(session, reader, output, alert):
            view.note(note)


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
