"""Load a checkpoint: the embedded one, a folder, or a name on the Hugging Face hub.

A checkpoint is a folder in the layout of Hugging Face: config.json, weights in safetensors, a tokenizer. No code in it
is executed, no parameter keeps a random value, and every defect is reported in one line (CheckpointError). The model is
an instance of the transformers class; some of its layers are replaced by faster ones that share their weights.
"""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
import transformers
from safetensors import SafetensorError
from transformers.utils import logging as transformers_logging

from streamingvlm.errors import CheckpointError, ConfigError
from streamingvlm.model.attention import WINDOWED_ATTENTION
from streamingvlm.model.checkpoint import (
    check_tokenizer_exists,
    check_weights_exist,
    find_checkpoint,
    first_line,
    has_tokenizer,
    read_config_json,
)
from streamingvlm.model.config_sizes import check_sizes
from streamingvlm.model.cpu_kernels.linear_layers import replace_linears_, supports_onednn
from streamingvlm.model.family import FAMILIES, Family
from streamingvlm.model.fingerprint import compute_fingerprint
from streamingvlm.model.patch_layers import PatchProduct, PatchRow
from streamingvlm.model.processor_files import read_processor_settings
from streamingvlm.model.quantization import (
    check_products_,
    check_quantised,
    quantization_named,
    stored_quantization,
)
from streamingvlm.model.rotation import Rotation
from streamingvlm.model.stream_settings import check_settings, read_stream_settings
from streamingvlm.model.vision import Resize, VisionEncoder
from streamingvlm.model.weights import check_finite, check_keys, check_stored_dtypes

if TYPE_CHECKING:
    from transformers.utils.quantization_config import QuantizationConfigMixin

_DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


@dataclass(frozen=True)
class StreamingModel:
    """A loaded checkpoint: weights, tokenizer and the format of video that they expect. Streams do not change it.

    name: the name that was loaded, as given.
    hf: the transformers model, in eval mode on ``device``, its floating-point parameters in ``dtype``.
    stream_defaults: the checkpoint's own settings, from the key ``streamingvlm`` of its config.json, then from its
        processor files.
    """

    name: str
    hf: transformers.PreTrainedModel
    tokenizer: transformers.PreTrainedTokenizerBase
    family: Family
    stream_defaults: Mapping[str, Any]
    device: torch.device
    dtype: torch.dtype

    @property
    def text_model(self) -> torch.nn.Module:
        """The language model without its head."""
        return self.hf.model.language_model

    @property
    def lm_head(self) -> torch.nn.Module:
        """The layer from hidden states to logits."""
        return self.hf.lm_head

    def logits(self, hidden: torch.Tensor) -> torch.Tensor:
        """Return logits [..., V] of hidden states [..., hidden size]. The weights are taken to be final."""
        if self.device.type == "cpu" and type(self.lm_head) is torch.nn.Linear and self.lm_head.bias is None:
            return hidden @ self._head_columns
        return self.lm_head(hidden)

    @cached_property
    def _head_columns(self) -> torch.Tensor:
        # Each decode step reads the whole head; a CPU reads a transposed copy 1.1 to 1.6 times as fast.
        return self.lm_head.get_parameter("weight").detach().t().contiguous()

    @cached_property
    def fingerprint(self) -> str:
        """Hash of the weights, settings and tokens, which identifies the model in snapshots."""
        return compute_fingerprint(self.hf, self.family, self.tokenizer)

    @cached_property
    def rotation(self) -> Rotation:
        """The rotary angles of the text model."""
        return Rotation(self.text_model, self.dtype)

    def vision_encoder(
        self, *, min_pixels: int | None = None, max_pixels: int | None = None, resize: Resize = "processor"
    ) -> VisionEncoder:
        """Return the vision encoder. The limits count the pixels of one resized frame; by default 100 to 768 tokens."""
        return VisionEncoder(
            self.hf.model.visual, self.family, min_pixels=min_pixels, max_pixels=max_pixels, resize=resize
        )


def load_model(
    name: str | Path,
    *,
    device: str | torch.device | None = None,
    dtype: str | torch.dtype | None = None,
    attention: str | None = None,
    quantization: "str | QuantizationConfigMixin | None" = None,
    cpu_kernels: bool = True,
) -> StreamingModel:
    """Load a Qwen2-VL, Qwen2.5-VL or Qwen3-VL checkpoint.

    name: ``pitch`` (embedded), a folder in the layout of Hugging Face, or a hub name such as mit-han-lab/StreamingVLM.
    device: by default CUDA if available, else the CPU.
    dtype: float32, bfloat16 or float16; by default bfloat16 on CUDA and float32 elsewhere.
    attention: of the language model outside of streams, by its name in transformers; by default sdpa.
    quantization: how to quantise the weights, one of `quantization.QUANTIZATIONS` or a configuration of transformers;
        by default not at all.
    cpu_kernels: use oneDNN of torch's private interface where it is faster: float32 on a CPU with AVX-512.

    Raises CheckpointError for a checkpoint that cannot be used, ConfigError for a device, dtype or quantisation that is
    unknown or not available.
    """
    device = device_named(device)
    dtype = dtype_named(dtype, device)
    method = quantization if isinstance(quantization, str) else type(quantization).__name__
    if isinstance(quantization, str):
        quantization = quantization_named(quantization, dtype)
    folder = find_checkpoint(name)
    config_json = read_config_json(folder)
    family = _family(config_json, folder)
    own = read_stream_settings(config_json, folder)
    stored = stored_quantization(config_json, folder)
    if stored is not None and quantization is not None:
        raise ConfigError(f"{folder} is quantised by {stored} already; leave model.quantization={method} out")
    check_weights_exist(folder)
    if stored is None:
        check_stored_dtypes(folder)
    with quiet_transformers():
        config = _load_config(folder)
        tokenizer = _load_tokenizer(folder, config)
        family, stream_defaults = _with_settings(family, folder, config.vision_config, own)
        hf = _load_weights(folder, family, config, dtype, attention or "sdpa", quantization, device, stored)
        if quantization is not None:
            check_quantised(hf.model.language_model, method)
        elif stored is None:
            hf = hf.to(device)  # type: ignore[arg-type] # transformers' wrapper of `to` hides its signature
            check_finite(hf, folder)
    choose_kernels_(hf, attention, device, dtype, cpu_kernels=cpu_kernels)
    return StreamingModel(
        name=str(name),
        hf=hf.eval(),
        tokenizer=tokenizer,
        family=family,
        stream_defaults=stream_defaults,
        device=device,
        dtype=dtype,
    )


def load_without_weights(
    name: str | Path,
    *,
    device: str | torch.device | None = None,
    dtype: str | torch.dtype | None = None,
    tokenizer: transformers.PreTrainedTokenizerBase | None = None,
) -> StreamingModel:
    """Load the structure of a checkpoint, from its config.json and tokenizer: enough for sizes, not to run.

    device, dtype: as `load_model` takes them; the dtype follows from the device, but the parameters are on none.
    tokenizer: used if the folder has none. Raises CheckpointError and ConfigError.
    """
    dtype = dtype_named(dtype, device_named(device))
    folder = find_checkpoint(name, has_weights=False)
    config_json = read_config_json(folder)
    family, own = _family(config_json, folder), read_stream_settings(config_json, folder)
    with quiet_transformers():
        config = _load_config(folder)
        if tokenizer is None or has_tokenizer(folder):
            tokenizer = _load_tokenizer(folder, config)
        with torch.device("meta"):
            hf = getattr(transformers, family.class_name)._from_config(config, dtype=dtype)
        family, stream_defaults = _with_settings(family, folder, config.vision_config, own)
    return StreamingModel(str(name), hf.eval(), tokenizer, family, stream_defaults, torch.device("meta"), dtype)


def check_is_loaded(model: object, remedy: str):
    """Raise ConfigError unless ``model`` is a StreamingModel. remedy: the call to write, with {!r} for the name."""
    if not isinstance(model, StreamingModel):
        name = model if isinstance(model, str | Path) else "pitch"
        raise ConfigError(
            f"the model is a {type(model).__name__}, expected a loaded StreamingModel; write {remedy.format(str(name))}"
        )


def device_named(device: str | torch.device | None) -> torch.device:
    """Return the device with this name; by default CUDA if available, else the CPU. Raises ConfigError."""
    if device is None:
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        chosen = torch.device(device)
    except RuntimeError as error:
        raise ConfigError(f"device={device} is unknown; choose cpu, cuda or cuda:N") from error
    if chosen.type == "cuda" and (chosen.index or 0) >= torch.cuda.device_count():
        raise ConfigError(f"device={device}, but this machine has {torch.cuda.device_count()} CUDA devices; choose cpu")
    return chosen


def _family(config_json: Mapping[str, Any], folder: Path) -> Family:
    model_type = config_json.get("model_type")
    if model_type not in FAMILIES:
        raise CheckpointError(
            f"{folder} is a checkpoint of architecture {model_type!r}, which cannot stream; give one of "
            f"{', '.join(FAMILIES)}"
        )
    return FAMILIES[model_type]


def _with_settings(family: Family, folder: Path, vision: Any, own: Mapping[str, Any]) -> tuple[Family, dict[str, Any]]:
    """Return the family as this checkpoint's files describe it, and the settings of its streams."""
    family, recommended = read_processor_settings(folder, family.with_vision_config(vision.to_dict()), own)
    settings = {**recommended, **own}
    check_settings(settings, f"the settings in the processor files of {folder}")
    return family.with_turn_format(own.get("turn_format")), settings


def _load_config(folder: Path) -> transformers.PreTrainedConfig:
    try:
        config = transformers.AutoConfig.from_pretrained(folder, trust_remote_code=False, local_files_only=True)
    except Exception as error:  # validation errors of several packages
        raise CheckpointError(
            f"{folder / 'config.json'} cannot be used ({first_line(error)}); copy it again"
        ) from error
    rope_type = config.text_config.rope_parameters["rope_type"]
    if rope_type != "default":
        # `Rotation` reproduces the frequencies of other types, but not their attention scaling.
        raise CheckpointError(
            f"{folder} has rotary positions of type {rope_type!r}, expected 'default'; give a checkpoint without it"
        )
    if "sliding_attention" in (getattr(config.text_config, "layer_types", None) or ()):
        raise CheckpointError(f"{folder} has sliding-window layers; set use_sliding_window to false in config.json")
    check_sizes(config, folder)
    return config


def _load_tokenizer(folder: Path, config: transformers.PreTrainedConfig) -> transformers.PreTrainedTokenizerBase:
    check_tokenizer_exists(folder)
    try:
        tokenizer = transformers.AutoTokenizer.from_pretrained(folder, trust_remote_code=False, local_files_only=True)
    except Exception as error:  # the tokenizers package raises bare Exception
        raise CheckpointError(
            f"the tokenizer of {folder} cannot be read ({first_line(error)}); copy it again"
        ) from error
    num_rows = config.text_config.vocab_size
    if not config.video_token_id < len(tokenizer) <= num_rows:
        raise CheckpointError(
            f"the tokenizer of {folder} has {len(tokenizer)} tokens, expected more than the video token's id "
            f"{config.video_token_id} and at most the model's {num_rows}; copy all tokenizer files of this checkpoint"
        )
    return tokenizer


def _load_weights(
    folder: Path,
    family: Family,
    config: transformers.PreTrainedConfig,
    dtype: torch.dtype,
    attention: str,
    quantization: "QuantizationConfigMixin | None",
    device: torch.device,
    stored: str | None,
) -> transformers.PreTrainedModel:
    # Quantised weights are made on their device; others are loaded on the CPU and moved there.
    placement: dict[str, Any] = {} if quantization is None else {"quantization_config": quantization}
    if quantization is not None or stored is not None:
        placement["device_map"] = {"": device}
    if stored == "compressed-tensors" and device.type == "cpu":  # no CPU multiplies compressed weights
        config.quantization_config["run_compressed"] = False
    try:
        hf, info = getattr(transformers, family.class_name).from_pretrained(
            folder,
            config=config,
            dtype=dtype,
            attn_implementation={"text_config": attention, "vision_config": "sdpa"},
            use_safetensors=True,
            local_files_only=True,
            ignore_mismatched_sizes=True,  # reported by check_keys
            output_loading_info=True,
            **placement,
        )
        if stored is not None:
            check_products_(hf, dtype)
    except Exception as error:  # quantisers raise errors of their packages
        if stored is not None:
            raise CheckpointError(
                f"{folder} is quantised by {stored}, which does not work here on {device.type} ({first_line(error)}); "
                "install its package, or give a checkpoint that is not quantised"
            ) from error
        if not isinstance(error, SafetensorError | OSError | RuntimeError):
            raise
        if quantization is not None and isinstance(error, RuntimeError):
            raise ConfigError(
                f"this model.quantization does not work on {device.type} ({first_line(error)}); choose another, "
                "such as int8"
            ) from error
        raise CheckpointError(
            f"the weights of {folder} cannot be read ({first_line(error)}); copy them again"
        ) from error
    check_keys(info, folder)
    return hf


def choose_kernels_(
    hf: transformers.PreTrainedModel,
    attention: str | None,
    device: torch.device,
    dtype: torch.dtype,
    *,
    cpu_kernels: bool = True,
):
    """Replace layers of a model by faster ones, with the same weights, that suit its device and dtype.

    The vision tower embeds all patches in one product and, on CUDA, attends in all windows at once. Large float32
    products on a CPU use oneDNN where it is faster, unless ``cpu_kernels`` is False.
    """
    patch_embed = hf.model.visual.patch_embed
    # In float32 another summation order shows: PatchProduct moves logits by 1.1e-4, and tests hold them to 1e-4.
    patch_embed.proj = (PatchRow if dtype == torch.float32 else PatchProduct).of(patch_embed.proj)
    if _uses_windowed_attention(attention, device, dtype):
        # Set after loading: while it loads, transformers downloads a package for implementations named "flash".
        hf.model.visual.config._attn_implementation = WINDOWED_ATTENTION
    if cpu_kernels and supports_onednn(device, dtype):
        replace_linears_(hf.model)


def _uses_windowed_attention(attention: str | None, device: torch.device, dtype: torch.dtype) -> bool:
    """Return True if the vision tower attends in all windows at once. Elsewhere transformers loops over them."""
    return attention is None and device.type == "cuda" and dtype != torch.float32


def dtype_named(dtype: str | torch.dtype | None, device: torch.device) -> torch.dtype:
    """Return the dtype with this name; by default bfloat16 on CUDA and float32 elsewhere. Raises ConfigError."""
    if dtype is None:
        return torch.bfloat16 if device.type == "cuda" else torch.float32
    name = str(dtype).removeprefix("torch.")
    if name not in _DTYPES:
        raise ConfigError(f"dtype={dtype} is unknown; choose one of {', '.join(_DTYPES)}")
    return _DTYPES[name]


@contextmanager
def quiet_transformers() -> Iterator[None]:
    """Silence transformers' progress bars and reports, so that an error is the only output."""
    verbosity, had_bars = transformers_logging.get_verbosity(), transformers_logging.is_progress_bar_enabled()
    transformers_logging.set_verbosity_error()
    transformers_logging.disable_progress_bar()
    try:
        yield
    finally:
        transformers_logging.set_verbosity(verbosity)
        if had_bars:
            transformers_logging.enable_progress_bar()
