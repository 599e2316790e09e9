"""Looks at paths before torch is imported, so that a wrong one is reported at once."""

import math
import os
from pathlib import Path
from typing import Any

from streamingvlm.cli.configurations import choices
from streamingvlm.config import above
from streamingvlm.data.manifest import read_manifest
from streamingvlm.data.sources import resolve_sources
from streamingvlm.errors import CheckpointError, ConfigError
from streamingvlm.model.checkpoint import find_local_checkpoint
from streamingvlm.training.checkpoints import check_run_folder
from streamingvlm.training.settings import FitSettings
from streamingvlm.video.address import check_video_file, parse_address

_QUESTIONS = ("transcripts", "segments", "events", "questions")


def check_stream(options: dict[str, Any]):
    """Check the sources, the part of them and the model."""
    if not 0 <= options["start_s"] < math.inf:
        raise ConfigError(f"start_s={options['start_s']}, expected seconds from the start of the file, such as 60")
    if options["duration_s"] is not None:
        above("duration_s", options["duration_s"], 0, "seconds to watch; null is all")
    source = [] if options["source"] is None else options["source"]
    for name in [source] if isinstance(source, str) else source:
        if not name.strip():
            raise ConfigError("the source is empty; give a video, or nothing to watch the embedded match")
        address = parse_address(os.path.expanduser(name))
        if address.kind == "file" and not Path(address.target).is_dir():
            check_video_file(address.target)
    check_model(options)


def check_model(options: dict[str, Any]):
    """Check that the model is a folder or can be a name on the hub."""
    find_local_checkpoint(options["model"]["name"])


def check_train(options: dict[str, Any]):
    """Check the model, and for fine-tuning the data, the folder and the ranges of the settings."""
    check_model(options)
    if options["recipe"] or options["restyling"]:
        return
    data, every_steps = options["data"], options["held_out_stream"]["every_steps"]
    counts = read_manifest(data)["counts"]
    FitSettings(**options["fit"])
    if not counts.get("chunks_train"):
        raise ConfigError(f"all chunks of data={data} are held out; prepare it with held_out_fraction=0")
    if every_steps and not counts.get("chunks_held_out"):
        raise ConfigError(
            f"held_out_stream.every_steps={every_steps}, but data={data} has no held-out chunk; give "
            "held_out_stream.every_steps=0, or prepare the data with held_out_fraction above 0"
        )
    check_run_folder(options["folder"], resume=options["resume"])


def check_prepare(options: dict[str, Any]):
    """Check the sources."""
    resolve_sources(source_paths(options), options["video_root"])


def source_paths(options: dict[str, Any]) -> list[str]:
    """Return the sources of the options."""
    return [path for path in (options["source"], *options["more_sources"]) if path]


def check_merge(options: dict[str, Any]):
    """Check that the adapter is a folder."""
    if options["adapter"] is None:
        raise ConfigError("no adapter given; run: streamingvlm merge ADAPTER_FOLDER target=FOLDER")
    if not Path(options["adapter"]).is_dir():
        raise CheckpointError(f"adapter={options['adapter']} is no folder; give the folder that training wrote")


def check_evaluate(options: dict[str, Any]):
    """Check the files of the benchmark, and the model unless each side has its own."""
    if "candidate" not in options:
        check_model(options)
    for name in _QUESTIONS:
        if name in options:
            existing_file(options[name], name)


def existing_file(path: str | None, option: str) -> Path:
    """Return the file that an option names. Raises ConfigError if it names none, or one that does not exist."""
    if path is None:
        raise ConfigError(f"{option} is not given; name a file: {option}=PATH")
    if not Path(path).expanduser().is_file():
        raise ConfigError(f"{option}={path} is no file; check the path")
    return Path(path).expanduser()


def check_bench(options: dict[str, Any]):
    """Check the model and the footage."""
    if not options.get("architecture"):
        check_model(options)
    if options["footage"]["source"] not in ("match", "noise"):
        check_video_file(options["footage"]["source"])


def check_info(options: dict[str, Any]):
    """Check that the model is an architecture, a folder, or can be a name on the hub."""
    if options["model"]["name"] not in choices("architecture"):
        check_model(options)
