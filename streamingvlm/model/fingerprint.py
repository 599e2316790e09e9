"""Telling two models apart without reading all their weights."""

import hashlib
import json
from dataclasses import asdict
from typing import TYPE_CHECKING

import torch

if TYPE_CHECKING:
    from streamingvlm.model.loading import StreamingModel

_NUM_SAMPLES = 64

# What decides the output and cannot be seen from the weights; the rest of a config changes with transformers' version.
_TEXT_SETTINGS = ("rope_parameters", "num_attention_heads", "num_key_value_heads", "rms_norm_eps", "hidden_act")


def fingerprint(model: "StreamingModel") -> str:
    """A hash (hex) of a model: the weights' names and shapes, values spread evenly over each, the settings, the tokens.

    The values are taken in bfloat16, so that a checkpoint is the same in any type that holds it. A sample is enough to
    tell checkpoints apart, as training moves nearly every value it may move, and costs a moment where all of 7B weights
    would cost half a minute. It is no proof against somebody who wants two models to look alike.
    """
    digest = hashlib.sha256()
    for name, weight in model.hf.named_parameters():
        digest.update(f"{name} {tuple(weight.shape)}".encode())
        digest.update(_sample(weight.detach()))
    text = model.text_model.config
    settings = [asdict(model.family), {name: getattr(text, name, None) for name in _TEXT_SETTINGS}]
    digest.update(json.dumps([settings, sorted(model.tokenizer.get_vocab().items())], sort_keys=True).encode())
    return digest.hexdigest()


def _sample(weight: torch.Tensor) -> bytes:
    num_samples = min(_NUM_SAMPLES, weight.numel())
    places = torch.arange(num_samples, device=weight.device) * max(weight.numel() - 1, 0) // max(num_samples - 1, 1)
    return weight.flatten()[places].to("cpu", torch.bfloat16).view(torch.uint8).numpy().tobytes()
