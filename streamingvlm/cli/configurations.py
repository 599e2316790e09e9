"""The files of ``configs/``, in the checkout or in the wheel, and their composition by Hydra."""

from collections.abc import Iterator, Sequence
from pathlib import Path

from hydra import compose, initialize_config_dir
from omegaconf import DictConfig, OmegaConf

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
