"""LoRA and QLoRA: low-rank adapters for the language model, trained while its other weights are frozen.

Hu et al., arXiv 2106.09685; Dettmers et al., arXiv 2305.14314. The layers are peft's and are inserted into the Hugging
Face model, so training and inference use its ``model.language_model`` with the adapter as they use it without. A saved
adapter is a peft folder with the tokenizer and, in ``streamingvlm.json``, the stream settings and the fingerprint of
the base model; weights of the base model that were trained as well, such as those of the tower, are in a file beside
it. `merge` converts all into an ordinary checkpoint.
"""

import hashlib
import json
import re
import tempfile
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import nn
from transformers import TrainerCallback

from streamingvlm.errors import CheckpointError, ConfigError
from streamingvlm.model.checkpoint import (
    ADAPTER_CONFIG,
    ADAPTER_RECORD,
    ADAPTER_WEIGHTS,
    find_checkpoint,
    first_line,
    read_config_json,
    save_checkpoint,
)
from streamingvlm.model.loading import StreamingModel, load_model, quiet_transformers
from streamingvlm.model.quantization import nf4
from streamingvlm.model.stream_settings import SETTINGS_KEY
from streamingvlm.training.checkpoints import checkpoint_folder

if TYPE_CHECKING:
    from peft import PeftConfig, PeftModel
    from transformers import BitsAndBytesConfig, PreTrainedTokenizerBase

TRAINED_BASE_WEIGHTS = "trained_base.safetensors"
"""The weights of the base model that were trained beside an adapter."""

_LANGUAGE_MODEL = "model.language_model"
_PEFT_PREFIX = "base_model.model."
# Values hashed per weight; enough to distinguish two trainings of one architecture.
_VALUES_IN_FINGERPRINT = 4096


@dataclass(frozen=True)
class LoraSettings:
    """Shape of the adapters.

    rank: of each layer's update; alpha: scales the update by alpha / rank; dropout: of the adapter's input.
    target_modules: names of layers of the language model, such as q_proj; None: all linear layers.
    """

    rank: int = 16
    alpha: float = 32.0
    dropout: float = 0.0
    target_modules: Sequence[str] | None = None

    def __post_init__(self):
        if self.rank < 1:
            raise ConfigError(f"lora.rank={self.rank} is below 1; give 1 or more")
        if not 0 <= self.dropout < 1:
            raise ConfigError(f"lora.dropout={self.dropout} is outside [0, 1); 0 disables dropout")


def with_lora_(model: StreamingModel, settings: LoraSettings) -> "PeftModel":
    """Insert LoRA layers into ``model.hf`` and freeze all other weights; return the peft model around it.

    Initial weights come from torch's global random stream; the initial update is 0. Raises ConfigError for target
    modules that the language model does not have, and if peft is not installed.
    """
    peft = _peft()
    config = peft.LoraConfig(
        r=settings.rank,
        lora_alpha=settings.alpha,
        lora_dropout=settings.dropout,
        target_modules=_target_pattern(model.text_model, settings.target_modules),
        bias="none",
    )
    with _without_warnings():
        adapted = peft.get_peft_model(model.hf, config)
    adapted.peft_config["default"].base_model_name_or_path = _absolute_name(model.name)
    return adapted


def lora_shape(config: "PeftConfig") -> str:
    """Describe the adapters of a model, as a resumed run must have them."""
    return f"rank {config.r}, alpha {config.lora_alpha:g}, dropout {config.lora_dropout:g} of {config.target_modules}"


def qlora_quantization(compute_dtype: torch.dtype = torch.bfloat16) -> "BitsAndBytesConfig":
    """Return QLoRA's quantization for `load_model`: the language model's matrices in 4-bit NormalFloat.

    The vision tower and the head are not quantized. Raises ConfigError if bitsandbytes is not installed.
    """
    from transformers.utils import is_bitsandbytes_available

    if not is_bitsandbytes_available():
        raise ConfigError('QLoRA needs bitsandbytes, which is not installed; run: pip install "streamingvlm[qlora]"')
    return nf4(compute_dtype)


def save_adapter(adapted: "PeftModel", tokenizer: "PreTrainedTokenizerBase", folder: str | Path):
    """Write an adapter in peft's format, with the tokenizer and the record of its base model."""
    save_checkpoint(adapted, Path(folder), save_embedding_layers=False)  # by default peft asks the hub whether to
    write_trained_base(adapted, adapted.state_dict(), folder)
    tokenizer.save_pretrained(folder)
    write_record(adapted, folder)


def write_trained_base(adapted: "PeftModel", state: Mapping[str, torch.Tensor], folder: str | Path):
    """Write the trained weights that peft does not save, such as those of the vision tower, if there are any.

    state: maps the names of ``adapted.named_parameters()`` to weights, gathered if the model is sharded.
    """
    saved_by_peft = (adapted.prefix, "modules_to_save")
    trained = {
        name.removeprefix(_PEFT_PREFIX): state[name].detach().cpu().contiguous()
        for name, weight in adapted.named_parameters()
        if weight.requires_grad and not any(part in name for part in saved_by_peft)
    }
    if trained:
        save_file(trained, Path(folder) / TRAINED_BASE_WEIGHTS, metadata={"format": "pt"})


def read_trained_base(folder: str | Path) -> dict[str, torch.Tensor]:
    """Read what `write_trained_base` wrote, by the names of ``adapted.named_parameters()``."""
    path = Path(folder) / TRAINED_BASE_WEIGHTS
    return {_PEFT_PREFIX + name: weight for name, weight in load_file(path).items()} if path.is_file() else {}


def write_record(adapted: "PeftModel", folder: str | Path):
    """Write the base model, its fingerprint and the stream settings into the folder of an adapter.

    The settings come from the key ``streamingvlm`` of the base model's config.
    """
    base = adapted.get_base_model()
    record = {
        "base": adapted.peft_config["default"].base_model_name_or_path,
        "base_fingerprint": base_fingerprint(base),
        "stream_defaults": dict(getattr(base.config, SETTINGS_KEY, {})),
    }
    (Path(folder) / ADAPTER_RECORD).write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")


class RecordAdapter(TrainerCallback):
    """Writes the record of an adapter into every checkpoint of its training, so that each can be merged."""

    def __init__(self, adapted: "PeftModel"):
        self.adapted = adapted

    def on_save(self, args, state, control, **_):
        """Add the record to the checkpoint just written."""
        if state.is_world_process_zero:
            write_record(self.adapted, checkpoint_folder(args.output_dir, state.global_step))


def load_adapter_(model: StreamingModel, folder: str | Path) -> "PeftModel":
    """Insert a saved adapter, frozen, into ``model.hf`` and return the peft model around it.

    Raises CheckpointError for a folder without an adapter in safetensors, and for an adapter of another base model.
    """
    folder = Path(folder)
    peft = _peft()
    record = _read_record(folder)
    expected, found = record["base_fingerprint"], base_fingerprint(model.hf)
    if expected != found:
        raise CheckpointError(
            f"the adapter {folder} was trained on {record['base']} (fingerprint {expected[:8]}), but {model.name} has "
            f"other weights ({found[:8]}); give the base model of the adapter"
        )
    try:
        with _without_warnings():
            adapted = peft.PeftModel(model.hf, peft.PeftConfig.from_pretrained(str(folder)))
        outcome = peft.set_peft_model_state_dict(adapted, load_file(folder / ADAPTER_WEIGHTS))
        trained_base = adapted.load_state_dict(read_trained_base(folder), strict=False)
    except (SafetensorError, RuntimeError, ValueError, TypeError, KeyError) as error:
        raise CheckpointError(f"the adapter {folder} cannot be loaded ({first_line(error)}); copy it again") from error
    absent = [name for name in outcome.missing_keys if "lora_" in name]
    if surplus := [*absent, *outcome.unexpected_keys, *trained_base.unexpected_keys]:
        raise CheckpointError(
            f"the weights of the adapter {folder} do not match {model.name}: {surplus[0]}; copy it again"
        )
    adapted.requires_grad_(False)
    return adapted.eval()


def merge(
    adapter_folder: str | Path,
    target: str | Path,
    *,
    base: str | Path | None = None,
    dtype: str | None = None,
) -> Path:
    """Merge an adapter into its base model and write an ordinary checkpoint with tokenizer and stream settings.

    base: the base model, if it has moved; by default the one recorded with the adapter. dtype: of the merged weights;
    by default the dtype of the base. ``target`` is renamed into place when complete. Returns it.

    Raises CheckpointError if adapter or base cannot be loaded, ConfigError if the target is not empty.
    """
    target = Path(target)
    _check_target(target)
    record = _read_record(Path(adapter_folder))
    base = base or record["base"]
    model = load_model(base, device="cpu", dtype=dtype or _stored_dtype(base))
    merged = load_adapter_(model, adapter_folder).merge_and_unload()
    setattr(merged.config, SETTINGS_KEY, record["stream_defaults"])
    target.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=f".{target.name}-", dir=target.parent) as parent:
        partial = Path(parent) / "model"
        with quiet_transformers():
            save_checkpoint(merged, partial)
        model.tokenizer.save_pretrained(partial)
        partial.replace(target)
    return target


def base_fingerprint(hf: nn.Module) -> str:
    """Hash values of the weights that neither LoRA nor quantization changes, to identify a base model.

    These are the embeddings, norms and biases of the language model, cast to bfloat16. The fingerprint is the same for
    every dtype and sharding of a checkpoint, with or without an adapter.
    """
    digest = hashlib.sha256()
    for name, weight in sorted(_unchanged_weights(hf)):
        values = weight.detach().flatten()
        step = max(1, values.numel() // _VALUES_IN_FINGERPRINT)
        digest.update(f"{name} {list(weight.shape)};".encode())
        digest.update(values[::step].to("cpu", torch.bfloat16).contiguous().view(torch.uint8).numpy())
    return digest.hexdigest()


def _unchanged_weights(hf: nn.Module) -> Iterator[tuple[str, torch.Tensor]]:
    for name, weight in hf.get_submodule(_LANGUAGE_MODEL).named_parameters():
        if "lora_" not in name and (weight.ndim == 1 or "embed_tokens" in name):
            yield name.replace(".base_layer.", "."), weight


def _target_pattern(language_model: nn.Module, wanted: Sequence[str] | None) -> str:
    """Return a regular expression, in peft's syntax, for the linear layers of the language model only."""
    present = {
        name.rpartition(".")[2] for name, layer in language_model.named_modules() if isinstance(layer, nn.Linear)
    }
    if unknown := sorted(set(wanted or ()) - present):
        raise ConfigError(
            f"lora.target_modules names {unknown[0]}, which the language model does not have; it has "
            f"{', '.join(sorted(present))}"
        )
    names = "|".join(map(re.escape, sorted(wanted or present)))
    return rf"{re.escape(_LANGUAGE_MODEL)}\..*\.(?:{names})"


def _absolute_name(name: str) -> str:
    """Return the name of a checkpoint, as an absolute path if it is a folder."""
    return str(Path(name).resolve()) if Path(name).is_dir() else name


def _read_record(folder: Path) -> Mapping[str, Any]:
    """Read the record of an adapter. Raises CheckpointError if the folder holds no usable adapter."""
    if not (folder / ADAPTER_CONFIG).is_file():
        raise CheckpointError(f"{folder} has no {ADAPTER_CONFIG}; give the folder of an adapter that training wrote")
    if not (folder / ADAPTER_WEIGHTS).is_file():
        pickled = sorted(path.name for path in folder.glob("*.bin"))
        found = f"only {pickled[0]}, which can execute code when loaded" if pickled else "no weights"
        raise CheckpointError(f"{folder} has {found}; put {ADAPTER_WEIGHTS} there")
    try:
        record = json.loads((folder / ADAPTER_RECORD).read_text(encoding="utf-8"))
        fields = {"base": str, "base_fingerprint": str, "stream_defaults": dict}
        if wrong := [name for name, kind in fields.items() if not isinstance(record[name], kind)]:
            raise ValueError(f"{wrong[0]} is {record[wrong[0]]!r}")
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise CheckpointError(
            f"{folder / ADAPTER_RECORD}, the record of the adapter's base model, cannot be read ({first_line(error)}); "
            "give the folder of an adapter that training wrote"
        ) from error
    return record


def _check_target(target: Path):
    if target.exists() and not (target.is_dir() and not any(target.iterdir())):
        raise ConfigError(f"target={target} exists and is not an empty folder; give another")


def _stored_dtype(base: str | Path) -> str:
    config = read_config_json(find_checkpoint(base))
    return config.get("dtype") or config.get("torch_dtype") or "float32"


@contextmanager
def _without_warnings() -> Iterator[None]:
    """Silence what peft makes transformers say: it reads a property that transformers will rename."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)
        yield


def _peft():
    try:
        import peft
    except ImportError as error:
        raise ConfigError('LoRA needs peft, which is not installed; run: pip install "streamingvlm[lora]"') from error
    return peft
