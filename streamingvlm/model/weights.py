"""Checks of a checkpoint's weights: the dtypes in its files, the keys that were loaded, and the values."""

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open

from streamingvlm.errors import CheckpointError
from streamingvlm.model.checkpoint import first_line, weight_files

_FLOATS = ("F64", "F32", "F16", "BF16")  # as safetensors names them
_NUM_KEYS_SHOWN = 3


def check_stored_dtypes(folder: Path):
    """Raise CheckpointError for a weight of 8 bits or fewer: transformers would take the codes for values."""
    for path in weight_files(folder):
        try:
            with safe_open(path, framework="pt") as file:
                dtypes = {name: file.get_slice(name).get_dtype() for name in file.keys()}  # noqa: SIM118 - no mapping
        except (SafetensorError, OSError) as error:
            raise CheckpointError(
                f"the weights of {folder} cannot be read ({first_line(error)}); copy them again"
            ) from error
        if coded := [name for name, dtype in dtypes.items() if dtype not in _FLOATS]:
            raise CheckpointError(
                f"{path} has weights of type {dtypes[coded[0]]} ({_shown(coded)}), but config.json has no "
                "quantization_config; copy config.json of this checkpoint, or give one that is not quantised"
            )


def check_keys(info: Mapping[str, Any], folder: Path):
    """Raise CheckpointError unless all weights, and no others, were loaded; info: transformers' loading info."""
    problems = {
        "are missing": info["missing_keys"],
        "are not of this architecture": info["unexpected_keys"],
        "have another shape than config.json says": [key for key, *_ in info["mismatched_keys"]],
    }
    for problem, keys in problems.items():
        if keys:
            raise CheckpointError(
                f"weights of {folder} {problem} ({_shown(keys)}); take weights and config.json of one checkpoint"
            )


def check_finite(hf: torch.nn.Module, folder: Path):
    """Raise CheckpointError for weights that are NaN or infinite, as training that has diverged leaves them."""
    with torch.no_grad():
        bad = [
            name
            for name, weights in hf.named_parameters()
            if weights.is_floating_point() and not weights.sum(dtype=torch.float32).isfinite()
        ]
    if bad:
        raise CheckpointError(
            f"weights of {folder} are not finite ({_shown(bad)}); the training that wrote them has diverged: give an "
            "earlier checkpoint"
        )


def _shown(keys: Iterable[str]) -> str:
    keys = sorted(keys)
    more = f" and {len(keys) - _NUM_KEYS_SHOWN} more" if len(keys) > _NUM_KEYS_SHOWN else ""
    return ", ".join(keys[:_NUM_KEYS_SHOWN]) + more
