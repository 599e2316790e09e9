"""The settings that travel with a checkpoint: how it was shown video in training, so that inference shows it the same.

They lie under one key of config.json as a flat object. Training writes them, loading reads them, and a session says
where its user asks for something else. Keys that are not listed here (a record of the training, say) are left alone.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from streamingvlm.config import TURN_FORMATS, CacheConfig, SamplingConfig, VideoConfig
from streamingvlm.errors import CheckpointError

SETTINGS_KEY = "streamingvlm"

# What decides the tokens of a turn. Windows and sampling may differ from training: they are a stream's own.
_TURN_SETTINGS = ("turn_format", "fps", "turn_s", "min_pixels", "max_pixels", "resize")
_WINDOW_SETTINGS = (
    "text_sink_tokens",
    "text_window_tokens",
    "text_step_tokens",
    "vision_window_s",
    "turn_window_s",
    "recompute_text",
)
_SAMPLING_SETTINGS = ("temperature", "top_p", "repetition_penalty", "max_new_tokens")


def stream_settings(
    cache: CacheConfig, video: VideoConfig, sampling: SamplingConfig | None = None, *, turn_format: str
) -> dict[str, Any]:
    """Return what a checkpoint says of its training, to be set as ``streamingvlm`` of its config.

    turn_format: the name of the TurnFormat that it was trained with.
    sampling: how it is best sampled, if that is known.
    """
    settings = _chosen(video, _TURN_SETTINGS) | _chosen(cache, _WINDOW_SETTINGS) | {"turn_format": turn_format}
    return settings if sampling is None else settings | _chosen(sampling, _SAMPLING_SETTINGS)


def read_stream_settings(config_json: Mapping[str, Any], folder: Path) -> dict[str, Any]:
    """Return the settings of a checkpoint, if it has any. Raises CheckpointError for what is not understood."""
    settings = config_json.get(SETTINGS_KEY, {})
    if not isinstance(settings, dict):
        raise CheckpointError(
            f"the key {SETTINGS_KEY} of {folder / 'config.json'} is {settings!r}, expected an object of settings; "
            "give one, or take the key out"
        )
    name = settings.get("turn_format")
    if name is not None and name not in TURN_FORMATS:
        raise CheckpointError(
            f"{folder} was trained with the turn format {name!r}, expected one of {', '.join(TURN_FORMATS)}; "
            "use the version of streamingvlm that trained it"
        )
    return settings


def contradictions(video: VideoConfig, settings: Mapping[str, Any]) -> list[str]:
    """Say, setting by setting, where turns under ``video`` are unlike those that a checkpoint was trained on."""
    asked = {name: value for name, value in _chosen(video, _TURN_SETTINGS).items() if value is not None}
    return [
        f"video.{name}={value} (trained with {settings[name]})"
        for name, value in asked.items()
        if settings.get(name) not in (None, value)
    ]


def _chosen(config: CacheConfig | VideoConfig | SamplingConfig, names: tuple[str, ...]) -> dict[str, Any]:
    return {name: getattr(config, name) for name in names}
