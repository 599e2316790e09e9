"""The processor files beside a checkpoint: how transformers would show it video, and sample its replies.

They stand between the family's defaults and the key ``streamingvlm`` of config.json. transformers reads one of three
files for video: ``video_processor`` in processor_config.json, video_preprocessor_config.json, preprocessor_config.json.

Normalisation and interpolation always count. Limits of pixels and sampling count where they are not those with which
Qwen publishes its checkpoints: these are limits of a single picture or of a whole clip (up to 16384 tokens), and almost
every fine-tune carries them unchanged. The defaults of a stream are the paper's.
"""

import json
import logging
import shutil
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

from streamingvlm.config import VideoConfig, resolve
from streamingvlm.errors import CheckpointError
from streamingvlm.model.family import Family

_LOG = logging.getLogger(__name__)

GENERATION_FILE = "generation_config.json"
_NESTED_FILE = "processor_config.json"
_VIDEO_FILES = ("video_preprocessor_config.json", "preprocessor_config.json")
_CARRIED_FILES = (_NESTED_FILE, *_VIDEO_FILES, "chat_template.json", "chat_template.jinja")

# Least and most pixels: of the released checkpoints (two for Qwen3-VL), then the defaults of transformers' classes.
_STOCK_LIMITS = {
    (3136, 12845056),
    (65536, 16777216),
    (4096, 25165824),
    (56 * 56, 1280 * 28 * 28),
    (128 * 28 * 28, 768 * 28 * 28),
    (128 * 32 * 32, 768 * 32 * 32),
}
_STOCK_MAXIMA = {12845056, 16777216, 25165824}
_DEFAULT_LIMITS_TOKENS = (128, 768)  # of transformers' video processors

_SAMPLING = ("temperature", "top_p", "top_k", "repetition_penalty")
# Qwen2-VL; Qwen2.5-VL, early and later; Qwen3-VL, instruct and thinking.
_STOCK_SAMPLING = (
    {"temperature": 0.01, "top_p": 0.001, "top_k": 1},
    {"temperature": 0.1, "top_p": 0.001, "top_k": 1},
    {"temperature": 0.1, "top_p": 0.001, "top_k": 1, "repetition_penalty": 1.05},
    {"temperature": 1e-6, "repetition_penalty": 1.05},
    {"temperature": 0.7, "top_p": 0.8, "top_k": 20},
    {"temperature": 1.0, "top_p": 0.95, "top_k": 20},
)

_INTERPOLATIONS = {2: "bilinear", 3: "bicubic"}  # numbers of PIL's Resampling
_PATCH_SIZES = ("patch_size", "temporal_patch_size", "merge_size")
_NORMALISATION = ("image_mean", "image_std", "interpolation")
_LIMIT_NAMES = (("min_pixels", "shortest_edge"), ("max_pixels", "longest_edge"))


class ProcessorSettings(NamedTuple):
    """The family with its normalisation, and settings of video and sampling as under the key ``streamingvlm``."""

    family: Family
    settings: dict[str, Any]


def read_processor_settings(folder: Path, family: Family, own: Mapping[str, Any]) -> ProcessorSettings:
    """Read what the processor files of a checkpoint decide, and log it in one line.

    own: the settings under the key ``streamingvlm``, which win. Qwen3-VL limits the pixels of all frames of a turn
    together, so that the limit of a frame follows from their number there.
    Raises CheckpointError for a file that cannot be read or that contradicts config.json.
    """
    path, video = _video_processor(folder)
    normalised = _with_normalisation(family, video, path)
    turn = resolve(VideoConfig, None, {name: own[name] for name in ("fps", "turn_s") if name in own})
    limits = _not_in(own, _limits(family, video, turn.num_frames, path))
    sampling = _not_in(own, _sampling(folder))
    changed = [field for field in _NORMALISATION if getattr(normalised, field) != getattr(family, field)]
    shown = {field: getattr(normalised, field) for field in changed}
    for name, taken in ((path.name, limits | shown), (GENERATION_FILE, sampling)):
        if taken:
            listed = ", ".join(f"{key}={value}" for key, value in taken.items())
            _LOG.warning("%s has settings of its own in %s: %s", folder, name, listed)
    return ProcessorSettings(normalised, limits | sampling)


def _not_in(own: Mapping[str, Any], settings: Mapping[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in settings.items() if name not in own}


def copy_processor_files(folder: Path, target: Path):
    """Copy the processor files of one checkpoint to another, so that transformers and other engines can load it."""
    for name in _CARRIED_FILES:
        if (folder / name).is_file() and not (target / name).exists():
            shutil.copyfile(folder / name, target / name)


def _video_processor(folder: Path) -> tuple[Path, Mapping[str, Any]]:
    """Return the file that transformers would read for video, and its settings; {} if there is none."""
    nested = _read(folder / _NESTED_FILE).get("video_processor")
    if nested is not None:
        return folder / _NESTED_FILE, _object(nested, folder / _NESTED_FILE)
    path = next((folder / name for name in _VIDEO_FILES if (folder / name).is_file()), folder / _VIDEO_FILES[-1])
    return path, _read(path)


def _read(path: Path) -> Mapping[str, Any]:
    if not path.is_file():
        return {}
    try:
        return _object(json.loads(path.read_text(encoding="utf-8")), path)
    except ValueError as error:
        raise CheckpointError(f"{path} is not JSON ({error}); copy it again, or remove it") from error


def _object(value: Any, path: Path) -> Mapping[str, Any]:
    if not isinstance(value, dict):
        raise CheckpointError(f"{path} holds no JSON object of settings; copy it again, or remove it")
    return value


def _with_normalisation(family: Family, video: Mapping[str, Any], path: Path) -> Family:
    for key in _PATCH_SIZES:
        if video.get(key) not in (None, getattr(family, key)):
            raise CheckpointError(
                f"{path} has {key}={video[key]}, but config.json says {getattr(family, key)}; "
                "take both files of one checkpoint"
            )
    if video.get("do_resize") is False:
        raise CheckpointError(f"{path} has do_resize=false, but frames have to fit whole tokens; set it to true")
    interpolation = video.get("resample")
    if interpolation is not None and interpolation not in _INTERPOLATIONS:
        raise CheckpointError(f"{path} has resample={interpolation}, expected 3 (bicubic) or 2 (bilinear)")
    scale = 1 / 255 if video.get("do_rescale") is False else 1 / (255 * _rescale_factor(video, path))
    mean, std = (_channels(video, f"image_{name}", getattr(family, f"image_{name}"), path) for name in ("mean", "std"))
    if video.get("do_normalize") is False:
        mean, std = (0.0, 0.0, 0.0), (1.0, 1.0, 1.0)
    return replace(
        family,
        image_mean=tuple(value * scale for value in mean),
        image_std=tuple(value * scale for value in std),
        interpolation=_INTERPOLATIONS.get(interpolation, family.interpolation),
    )


def _rescale_factor(video: Mapping[str, Any], path: Path) -> float:
    factor = _number(video, "rescale_factor", path)
    # 1/255 exactly, so that the usual factor, which files round, leaves mean and deviation as they are.
    return 1 / 255 if factor is None or abs(factor * 255 - 1) < 1e-6 else factor


def _channels(video: Mapping[str, Any], key: str, default: tuple[float, ...], path: Path) -> tuple[float, ...]:
    value = video.get(key)
    if value is None:
        return default
    values = value if isinstance(value, list) else [value] * 3
    if len(values) != 3 or not all(_is_number(v) for v in values) or (key == "image_std" and 0 in values):
        raise CheckpointError(f"{path} has {key}={value!r}, expected one number for each of 3 channels, std above 0")
    return tuple(map(float, values))


def _limits(family: Family, video: Mapping[str, Any], num_frames: int, path: Path) -> dict[str, int]:
    """Return the limits of a frame's pixels, {} if the file states none or stock ones."""
    size = _object(video.get("size") or {}, path)
    stated = [_stated_limit(family, video, size, *names, path) for names in _LIMIT_NAMES]
    if stated == [None, None]:
        return {}
    defaults = [tokens * family.size_factor**2 for tokens in _DEFAULT_LIMITS_TOKENS]
    least, most = (default if value is None else value for value, default in zip(stated, defaults, strict=True))
    if (least, most) in _STOCK_LIMITS:
        return {}
    share = num_frames if family.limits_whole_video else 1
    least, most = max(1, int(min(least, most) / share)), max(1, int(most / share))
    if most * share in _STOCK_MAXIMA:
        return {"min_pixels": least}
    return {"min_pixels": least, "max_pixels": most}


def _stated_limit(
    family: Family, video: Mapping[str, Any], size: Mapping[str, Any], name: str, edge: str, path: Path
) -> float | None:
    """Return a limit in any of its spellings. transformers' video processor of Qwen3-VL reads `size` alone."""
    spellings = (
        [(size, edge), (size, name)] if family.limits_whole_video else [(video, name), (size, edge), (size, name)]
    )
    values = (_number(where, key, path) for where, key in spellings)
    return next((value for value in values if value is not None), None)


def _sampling(folder: Path) -> dict[str, float]:
    """Return the sampling that generation_config.json recommends, {} if it is that of a released checkpoint."""
    path = folder / GENERATION_FILE
    config = _read(path)
    stated = {name: value for name in _SAMPLING if (value := _number(config, name, path)) is not None}
    if any(_without_defaults(stated) == _without_defaults(stock) for stock in _STOCK_SAMPLING):
        return {}
    if config.get("do_sample") is False or stated.get("top_k") == 1:
        stated["temperature"] = 0.0
    stated.pop("top_k", None)
    if (length := _number(config, "max_new_tokens", path)) is not None:
        stated["max_new_tokens"] = int(length)
    return stated


def _without_defaults(sampling: Mapping[str, float]) -> dict[str, float]:
    return {name: value for name, value in sampling.items() if (name, value) != ("repetition_penalty", 1.0)}


def _number(values: Mapping[str, Any], key: str, path: Path) -> float | None:
    value = values.get(key)
    if value is not None and not (_is_number(value) and value >= 0):
        raise CheckpointError(f"{path} has {key}={value!r}, expected a number; correct it or remove the key")
    return value


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)
