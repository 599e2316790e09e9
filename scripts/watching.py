"""What ``stream.py`` does once its command line is understood: watch a source, to the terminal and into files."""

import math
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from terminal import LiveView, PlainView, open_view

import streamingvlm
from streamingvlm import StreamingSession, load_model
from streamingvlm.config import LiveConfig, resolve
from streamingvlm.errors import ConfigError
from streamingvlm.inference.alert import Alert
from streamingvlm.inference.snapshot_folder import has_snapshot
from streamingvlm.inference.writers import MultiWriter, open_writers
from streamingvlm.video.address import Address, parse_address
from streamingvlm.video.live import LiveReader
from streamingvlm.video.reader import VideoReader, open_video

BUNDLED_MATCH = Path(streamingvlm.__file__).parent / "assets" / "pitch" / "match.mp4"


def watch(options: dict[str, Any]):
    """Check what was given before the model loads, then watch."""
    resolve(LiveConfig, options["live"], {})
    address = parse_address(os.path.expanduser(options["source"] or str(BUNDLED_MATCH)))
    duration_s = video_duration_s(address, options["video"]["decoder"])
    limit_s = options["duration_s"] or math.inf
    check_autosave(options)
    with open_output(address, options) as output:
        session = open_session(options)
        alert = open_alert(session, options)
        view = open_view(duration_s and min(duration_s, limit_s))
        follow(session, address, options["live"], limit_s, view, output, alert)


def video_duration_s(address: Address, decoder: str) -> float | None:
    """Open a file and close it: what is wrong with it shows now, not after minutes of loading weights.

    What is live is connected to once, when the model is ready: a pipe cannot be opened twice, nor can some cameras.
    """
    if address.kind != "file":
        return None
    with open_video(address.target, decoder=decoder) as reader:
        return reader.info.duration_s


def open_output(address: Address, options: dict[str, Any]) -> MultiWriter:
    """The files to write: beside a video, and for what is live in the folder where the command was given.

    The bundled match gets none unless a path is named: they would land in the installation.
    """
    output = options["output"]
    if not (options["source"] or output["path"]):
        output = {**output, "formats": []}
    # A suffix of its own, as what follows the last point of an address is none.
    return open_writers(address.target if address.kind == "file" else f"{address.name}.live", **output)


def open_session(options: dict[str, Any]) -> StreamingSession:
    """The session that the options describe, or that a snapshot holds."""
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


def check_autosave(options: dict[str, Any]):
    """Raise ConfigError where a snapshot would be lost that nobody said to go on from, or there is none to keep."""
    path = options["autosave"]
    if options["resume"] and not path:
        raise ConfigError("resume=true needs the folder of the snapshot; name it by autosave=FOLDER")
    if path and has_snapshot(path) and not options["resume"]:
        raise ConfigError(
            f"autosave={path} holds the snapshot of a stream; go on from it by resume=true, or name another folder"
        )


def resume_session(options: dict[str, Any]) -> StreamingSession:
    """The session of the snapshot. Raises ConfigError for an option that contradicts it; a new query is told live."""
    path = options["autosave"]
    model = load_model(**options["model"])
    session = StreamingSession.load(path, model=model, autosave=path)
    for group in ("cache", "video", "sampling"):
        running = getattr(session, f"{group}_config")
        for name, value in options[group].items():
            if value is not None and value != getattr(running, name):
                raise ConfigError(
                    f"{group}.{name}={value}, but the stream in {path} runs with {getattr(running, name)}; give the "
                    "options that it began with"
                )
    session.query = options["query"] or session.query
    return session


def open_alert(session: StreamingSession, options: dict[str, Any]) -> Alert | None:
    """The watch for a condition, where one is given."""
    if not options["alert"]:
        return None
    return Alert(session, options["alert"], threshold=options["alert_threshold"])


def previous_text(options: dict[str, Any]) -> str:
    """What was said before the stream; of the bundled match, who plays in which colour."""
    if options["previous_text"] is None and not options["source"]:
        return BUNDLED_MATCH.with_suffix(".txt").read_text("utf-8").strip()
    return options["previous_text"] or ""


def follow(
    session: StreamingSession,
    address: Address,
    live: dict[str, Any],
    limit_s: float,
    view: LiveView | PlainView,
    output: MultiWriter,
    alert: Alert | None,
):
    """Stream to the terminal and the files, from where the session stands, and sum up however it ends."""
    reader = None
    try:
        with view:
            # A stream that is resumed may have seen it all.
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
    """How it went, what of the video could not be shown, where the commentary is; nothing where no second was seen."""
    if session.stats.num_turns:
        yield session.stats.summary()
    if alert and alert.num_turns:
        yield alert.summary()
    if reader and (skipped := reader.skipped.describe()):
        yield skipped
    if output.paths:
        yield f"wrote {', '.join(map(str, output.paths))}"
