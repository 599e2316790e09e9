"""The settings that a checkpoint carries: how video was shown to it in training, so that streams show it the same way.

They are a flat object under one key of config.json. Training writes it, loading reads it, and a stream warns about
settings that differ from it. Keys that are not settings (a record of the training, for example) are left alone.
"""

from collections.abc import Iterable, Mapping
from dataclasses import fields
from difflib import get_close_matches
from pathlib import Path
from typing import Any

from streamingvlm.config import RENAMED_SETTINGS, TURN_FORMATS, CacheConfig, SamplingConfig, VideoConfig, resolve
from streamingvlm.errors import CheckpointError, ConfigError

SETTINGS_KEY = "streamingvlm"
_CONFIGS: tuple[type, ...] = (CacheConfig, VideoConfig, SamplingConfig)

# These determine the tokens of a turn, so streams should keep them. Windows and sampling are a stream's own choice.
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
    """Return the settings to store under ``streamingvlm`` in a trained checkpoint's config.

    turn_format: the name of the TurnFormat of the training.
    sampling: the recommended sampling, if known.
    """
    settings = _select(video, _TURN_SETTINGS) | _select(cache, _WINDOW_SETTINGS) | {"turn_format": turn_format}
    return settings if sampling is None else settings | _select(sampling, _SAMPLING_SETTINGS)


def read_stream_settings(config_json: Mapping[str, Any], folder: Path) -> dict[str, Any]:
    """Return the settings in a checkpoint's config.json, {} if it has none. Raises CheckpointError for bad settings."""
    settings = config_json.get(SETTINGS_KEY, {})
    if not isinstance(settings, dict):
        raise CheckpointError(
            f"the key {SETTINGS_KEY} of {folder / 'config.json'} is {settings!r}, expected an object of settings; "
            "give one, or remove the key"
        )
    _refuse_old_names(settings, folder)
    name = settings.get("turn_format")
    if name is not None and name not in TURN_FORMATS:
        raise CheckpointError(
            f"{folder} was trained with the turn format {name!r}, expected one of {', '.join(TURN_FORMATS)}; "
            "use the version of streamingvlm that trained it"
        )
    check_settings(settings, f"the key {SETTINGS_KEY} of {folder / 'config.json'}")
    return settings


def check_settings(settings: Mapping[str, Any], where: str):
    """Raise CheckpointError for a misspelt setting or an impossible value; ``where`` it was found."""
    known = {field.name for kind in _CONFIGS for field in fields(kind)}
    for key in settings.keys() - known:
        if near := get_close_matches(key, known, 1, cutoff=0.8):
            raise CheckpointError(f"{where} has {key!r}, which is unknown; {near[0]} is meant, or remove it")
    for kind in _CONFIGS:
        try:
            resolve(kind, None, settings)
        except ConfigError as error:
            raise CheckpointError(f"{where} cannot be used: {error}") from error


def contradictions(video: VideoConfig, settings: Mapping[str, Any]) -> list[str]:
    """Describe each setting of ``video`` that gives other turns than those of a checkpoint's training."""
    requested = {name: value for name, value in _select(video, _TURN_SETTINGS).items() if value is not None}
    return [
        f"video.{name}={value} (trained with {settings[name]})"
        for name, value in requested.items()
        if settings.get(name) not in (None, value)
    ]


def _refuse_old_names(settings: Iterable[str], folder: Path):
    for section in ("cache", "video", "sampling"):
        for old_name, new_name in RENAMED_SETTINGS.get(section, {}).items():
            if old_name in settings:
                raise CheckpointError(
                    f"{SETTINGS_KEY}.{old_name} in {folder / 'config.json'} was renamed to {SETTINGS_KEY}.{new_name}; "
                    "rename it there"
                )


def _select(config: CacheConfig | VideoConfig | SamplingConfig, names: tuple[str, ...]) -> dict[str, Any]:
    return {name: getattr(config, name) for name in names}
