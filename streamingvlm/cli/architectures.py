"""Architectures with random weights, for benchmarks: the choices of ``configs/architecture/``."""

from typing import Any

from streamingvlm.cli.command_line import CONFIGS
from omegaconf import OmegaConf

from streamingvlm.errors import ConfigError


def architecture_names() -> list[str]:
    """List the choices."""
    return sorted(file.stem for file in (CONFIGS / "architecture").glob("*.yaml"))


def architecture_named(name: str) -> dict[str, Any]:
    """Return the sizes of a choice. Raises ConfigError for an unknown one."""
    if name not in architecture_names():
        raise ConfigError(f"architecture={name} is unknown; choose one of {', '.join(architecture_names())}")
    return OmegaConf.to_container(OmegaConf.load(CONFIGS / "architecture" / f"{name}.yaml").architecture)
