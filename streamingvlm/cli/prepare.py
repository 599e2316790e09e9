"""``streamingvlm prepare``: prepare training chunks from videos and transcripts."""

import logging
from dataclasses import fields
from pathlib import Path
from typing import Any

from streamingvlm.cli.checks import source_paths
from streamingvlm.cli.cost import check_cost


def prepare_sources(options: dict[str, Any]):
    """Prepare the sources and print a summary."""
    from streamingvlm.data.prepare import PrepareConfig, prepare, summary
    from streamingvlm.data.selection import SelectionConfig

    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s", datefmt="%H:%M:%S")
    logging.getLogger("httpx").setLevel(logging.WARNING)
    manifest = prepare(
        source_paths(options),
        options["target"],
        PrepareConfig(**{field.name: options[field.name] for field in fields(PrepareConfig)}),
        SelectionConfig(**options["selection"]),
        video_root=options["video_root"],
        recogniser=recogniser_from(options),
        cleaner=cleaner_from(options),
        on_estimate=lambda estimate: check_cost(estimate, options["cleaning"], "cleaning"),
    )
    print(summary(manifest))
    print(f"wrote {options['target']}; {options['target']}/manifest.json lists what was dropped or repaired, and why")


def work_folder(options: dict[str, Any]) -> Path:
    """Return the cache folder of transcripts and answers. It is not in the target, which exists only at the end."""
    return Path(options["work_folder"] or f"{options['target']}.work")


def recogniser_from(options: dict[str, Any]):
    """Return the speech recogniser, or None if it is not enabled."""
    from streamingvlm.data.asr import AsrConfig, SpeechRecogniser

    settings = {**options["asr"]}
    if not settings.pop("enabled"):
        return None
    return SpeechRecogniser(AsrConfig(**settings), work_folder(options) / "transcripts")


def cleaner_from(options: dict[str, Any]):
    """Return the cleaner with its endpoint, or None if it is not enabled."""
    from streamingvlm.data.cleaning import Cleaner, CleaningConfig
    from streamingvlm.endpoint import ChatEndpoint, EndpointConfig

    settings = options["cleaning"]
    if not settings["enabled"]:
        return None
    endpoint = ChatEndpoint(EndpointConfig(**options["endpoint"]), work_folder(options) / "answers")
    return Cleaner(endpoint, CleaningConfig(settings["segment_s"], settings["instructions"]))
