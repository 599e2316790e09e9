"""Architectures with random weights, for benchmarks: the choices of ``configs/architecture/``."""

from typing import Any

from omegaconf import OmegaConf

from streamingvlm.cli.configurations import CONFIGS, choices
from streamingvlm.errors import ConfigError


def architecture_named(name: str) -> dict[str, Any]:
    """Return the sizes of a choice. Raises ConfigError for an unknown one."""
    if name not in choices("architecture"):
        raise ConfigError(f"architecture={name} is unknown; choose one of {', '.join(choices('architecture'))}")
    return OmegaConf.to_container(OmegaConf.load(CONFIGS / "architecture" / f"{name}.yaml").architecture)
