"""The files of a checkpoint: find its folder, or download it from the hub, report what is missing, and write another.

Weights must be in safetensors, because a pickled file can execute code when it is read. This module reads JSON only.
"""

import json
import shutil
from pathlib import Path
from typing import TYPE_CHECKING, Any

from streamingvlm.errors import CheckpointError
from streamingvlm.model.processor_files import copy_processor_files

if TYPE_CHECKING:
    from transformers import PreTrainedModel

EMBEDDED = {"pitch": Path(__file__).resolve().parents[1] / "assets" / "pitch"}

ADAPTER_CONFIG, ADAPTER_RECORD = "adapter_config.json", "streamingvlm.json"
ADAPTER_WEIGHTS = "adapter_model.safetensors"

_HUB_TEXT_FILES = ["*.json", "*.txt", "*.jinja"]
_HUB_FILES = [*_HUB_TEXT_FILES, "*.safetensors"]
_INDEX = "model.safetensors.index.json"
_TOKENIZER_FILES = (("tokenizer.json",), ("vocab.json", "merges.txt"))


def find_checkpoint(name: str | Path, *, has_weights: bool = True) -> Path:
    """Return the folder of a checkpoint, downloading it if ``name`` is a hub name. Raises CheckpointError.

    has_weights: False downloads its config and its tokenizer alone.
    """
    return find_local_checkpoint(name) or _download(str(name), _HUB_FILES if has_weights else _HUB_TEXT_FILES)


def find_local_checkpoint(name: str | Path) -> Path | None:
    """Return the folder of a checkpoint, None if ``name`` is a hub name. Raises CheckpointError."""
    if name in EMBEDDED:
        folder = EMBEDDED[name]
        if not folder.is_dir():
            raise CheckpointError(
                f"the embedded model {name!r} is missing from this installation; give a folder or a hub name"
            )
        return folder
    path = Path(name).expanduser()
    if path.is_dir():
        return path
    if path.exists():
        raise CheckpointError(f"{name} is a file, expected a model folder; give the folder that holds config.json")
    if _is_hub_name(str(name)):
        return None
    raise CheckpointError(
        f"there is no model folder {name}; give a folder, one of {', '.join(EMBEDDED)}, or a hub name such as "
        "mit-han-lab/StreamingVLM"
    )


def read_config_json(folder: Path) -> dict[str, Any]:
    """Read config.json of a checkpoint. Raises CheckpointError."""
    path = folder / "config.json"
    if (folder / ADAPTER_CONFIG).is_file():
        raise CheckpointError(_adapter_found(folder, beside_model=path.is_file()))
    if not path.is_file():
        raise CheckpointError(f"{folder} has no config.json; give a model folder in the layout of Hugging Face")
    try:
        config_json = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise CheckpointError(f"{path} is not JSON ({first_line(error)}); copy it again") from error
    if not isinstance(config_json, dict):
        raise CheckpointError(f"{path} holds no JSON object; copy it again")
    return config_json


def _adapter_found(folder: Path, *, beside_model: bool) -> str:
    if beside_model:
        return (
            f"{folder} has an adapter ({ADAPTER_CONFIG}) beside a whole model, and it is not clear which is meant; "
            "move the adapter to a folder of its own, or merge it"
        )
    if (folder / ADAPTER_RECORD).is_file():
        return f"{folder} holds an adapter alone; merge it first: streamingvlm merge {folder} target=merged"
    return (
        f"{folder} holds an adapter alone, and it was not trained here (no {ADAPTER_RECORD}); merge it with the tool "
        "that trained it (in peft: merge_and_unload), and give the merged folder"
    )


def check_weights_exist(folder: Path):
    """Raise CheckpointError unless the folder has all its weights in safetensors."""
    index = folder / _INDEX
    if (folder / "model.safetensors").is_file():
        return
    if not index.is_file():
        pickled = sorted(path.name for pattern in ("*.bin", "*.pt", "*.pth") for path in folder.glob(pattern))
        found = f"only {pickled[0]}, which can execute code when read" if pickled else "no weights"
        raise CheckpointError(f"{folder} has {found}; put model.safetensors (or its shards and their index) there")
    shards = _shards(index)
    if outside := sorted(shard for shard in shards if Path(shard).name != shard):
        raise CheckpointError(f"{index} names {outside[0]}, expected the name of a file beside it; correct the index")
    if absent := sorted(shard for shard in shards if not (folder / shard).is_file()):
        raise CheckpointError(f"{folder} lacks {len(absent)} of {len(shards)} shards ({absent[0]}); copy them there")


def weight_files(folder: Path) -> list[Path]:
    """Return the files with the weights of a folder that `check_weights_exist` has checked."""
    whole = folder / "model.safetensors"
    return [whole] if whole.is_file() else [folder / shard for shard in sorted(_shards(folder / _INDEX))]


def _shards(index: Path) -> set[str]:
    try:
        return set(json.loads(index.read_text(encoding="utf-8"))["weight_map"].values())
    except (ValueError, KeyError, AttributeError) as error:
        raise CheckpointError(f"{index} is not an index of shards ({first_line(error)}); copy it again") from error


def has_tokenizer(folder: Path) -> bool:
    """Return True if the folder has the files of a tokenizer."""
    return any(all((folder / name).is_file() for name in names) for names in _TOKENIZER_FILES)


def check_tokenizer_exists(folder: Path):
    """Raise CheckpointError unless the folder has a tokenizer; transformers silently returns an empty one."""
    if not has_tokenizer(folder):
        raise CheckpointError(f"{folder} has no tokenizer; put tokenizer.json, or vocab.json and merges.txt, there")


def save_checkpoint(hf: "PreTrainedModel", folder: Path, **options: Any):
    """Write a model as transformers does, readable like any other file, with the processor files it was loaded with.

    options: of transformers' (or peft's) ``save_pretrained``.
    """
    hf.save_pretrained(folder, **options)
    for weights in folder.glob("*.safetensors"):  # safetensors writes them for their owner alone
        shutil.copymode(next(folder.glob("*.json")), weights)
    if hf.config.name_or_path and not hasattr(hf, "peft_config"):
        copy_processor_files(Path(hf.config.name_or_path), folder)


def first_line(error: Exception) -> str:
    """Return the first line of an error's message, to be quoted in another."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[0].rstrip(".:") if lines else type(error).__name__


def _is_hub_name(name: str) -> bool:
    parts = name.split("/")
    return len(parts) == 2 and all(part and not part.startswith((".", "~")) for part in parts)


def _download(name: str, patterns: list[str]) -> Path:
    from huggingface_hub import snapshot_download

    try:
        return Path(snapshot_download(name, allow_patterns=patterns))
    except Exception as error:  # network, validation and storage errors share no base class
        raise CheckpointError(
            f"{name} is not a folder and cannot be downloaded from the hub ({first_line(error)}); check the name and "
            "the network, or give the folder of a copy"
        ) from error


def weights_bytes(name: str | Path) -> int | None:
    """Return the size of a checkpoint's weights; None if they are not on this machine."""
    folder = EMBEDDED.get(str(name)) or Path(name).expanduser()
    return sum(path.stat().st_size for path in folder.glob("*.safetensors")) or None
