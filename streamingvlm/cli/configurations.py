"""The files of ``configs/``, in the checkout or in the wheel, and their composition by Hydra."""

import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from hydra import compose, initialize_config_dir
from omegaconf import DictConfig, OmegaConf

from streamingvlm.errors import ConfigError

_PACKAGE = Path(__file__).resolve().parents[1]
CONFIGS = next(folder for folder in (_PACKAGE / "configs", _PACKAGE.parent / "configs") if folder.is_dir())
GROUPS = frozenset(folder.name for folder in CONFIGS.iterdir() if folder.is_dir())


def compose_config(name: str, overrides: Sequence[str] = ()) -> DictConfig:
    """Compose ``configs/NAME.yaml`` with overrides in Hydra's grammar. Raises HydraException."""
    with initialize_config_dir(str(CONFIGS), version_base="1.3"):
        return compose(name, overrides=list(overrides))


def choices(group: str) -> list[str]:
    """List the choices of a group."""
    return sorted(file.stem for file in (CONFIGS / group).glob("*.yaml"))


def option_names(config: DictConfig, prefix: str = "") -> Iterator[tuple[str, bool]]:
    """Yield the dotted name of each option, and whether its value is another option's (``${video.fps}``)."""
    for key in config:
        node = OmegaConf.is_interpolation(config, key)
        value = None if node else config[key]
        if isinstance(value, DictConfig) and value:
            yield from option_names(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", node


def check_types(given: Mapping[str, Any], defaults: Mapping[str, Any], prefix: str = ""):
    """Raise ConfigError for a value that is no number, or neither true nor false, where the default is one.

    A number may be given as text, as a plain word of the command line is.
    """
    for name, value in given.items():
        default, key = defaults.get(name), f"{prefix}{name}"
        if isinstance(value, dict) and isinstance(default, dict):
            check_types(value, default, f"{key}.")
        elif isinstance(default, bool):
            if not isinstance(value, bool | None):
                raise ConfigError(f"{key}={value} is neither true nor false; give one of them")
        elif isinstance(default, int | float) and not (value is None or _is_number(value)):
            raise ConfigError(f"{key}={value} is not a number; give one, such as {default}")


def _is_number(value: Any) -> bool:
    if isinstance(value, str):
        return re.fullmatch(r"[-+]?(\d+\.?\d*|\.\d+)(e[-+]?\d+)?", value.strip(), re.IGNORECASE) is not None
    return isinstance(value, int | float) and not isinstance(value, bool)
