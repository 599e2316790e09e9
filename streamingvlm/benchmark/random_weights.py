"""A model of any size with random weights, initialized on the device: enough for speed, with nothing to download."""

from collections.abc import Mapping
from typing import Any

import torch
import transformers

from streamingvlm.errors import ConfigError
from streamingvlm.model.family import FAMILIES
from streamingvlm.model.loading import StreamingModel, choose_kernels_
from streamingvlm.pitch.tokenizer import build_tokenizer

_SPECIAL_TOKENS = {
    "image_token_id": "<|image_pad|>",
    "video_token_id": "<|video_pad|>",
    "vision_start_token_id": "<|vision_start|>",
    "vision_end_token_id": "<|vision_end|>",
}


def random_model(
    architecture: Mapping[str, Any],
    *,
    device: torch.device,
    dtype: torch.dtype,
    attention: str | None = None,
    cpu_kernels: bool = True,
) -> StreamingModel:
    """Build a streaming model with random weights and the tokenizer of the embedded model.

    architecture: ``name``, and the content of a config.json: ``model_type``, ``text_config`` and ``vision_config`` at
    least. attention, cpu_kernels: as `load_model` takes them.
    Raises ConfigError for a family that cannot stream.
    """
    parts = dict(architecture)
    name, model_type = parts.pop("name"), parts.pop("model_type", None)
    if model_type not in FAMILIES:
        known = ", ".join(FAMILIES)
        raise ConfigError(f"{name} has model_type={model_type}, which cannot stream; choose one of {known}")
    tokenizer = build_tokenizer()
    ids = {key: tokenizer.convert_tokens_to_ids(token) for key, token in _SPECIAL_TOKENS.items()}
    config = transformers.AutoConfig.for_model(model_type, **parts, **ids)
    family = FAMILIES[model_type]
    with device:
        hf = getattr(transformers, family.class_name)._from_config(
            config, dtype=dtype, attn_implementation={"text_config": attention or "sdpa", "vision_config": "sdpa"}
        )
    choose_kernels_(hf, attention, device, dtype, cpu_kernels=cpu_kernels)
    family = family.with_vision_config(config.vision_config.to_dict())
    return StreamingModel(name, hf.eval(), tokenizer, family, {}, device, dtype)
