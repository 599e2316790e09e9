"""A hash that identifies a model, from a sample of its weights."""

import hashlib
import json
from dataclasses import asdict

import torch
import transformers

from streamingvlm.model.family import Family

_NUM_SAMPLES = 64

# Settings that affect the output and are not visible in the weights. Other keys change with transformers' version.
_TEXT_SETTINGS = ("rope_parameters", "num_attention_heads", "num_key_value_heads", "rms_norm_eps", "hidden_act")


def compute_fingerprint(
    hf: transformers.PreTrainedModel, family: Family, tokenizer: transformers.PreTrainedTokenizerBase
) -> str:
    """Hash (hex) the names and shapes of all weights, a sample of their values, the settings and the vocabulary.

    Values are hashed in bfloat16, so that the fingerprint does not depend on the dtype in which a checkpoint is loaded.
    64 values of each weight suffice to distinguish checkpoints, because training changes nearly every value, and take a
    moment where hashing 7B weights takes half a minute. The hash is no protection against forgery.
    """
    digest = hashlib.sha256()
    for name, weight in hf.named_parameters():
        digest.update(f"{name} {tuple(weight.shape)}".encode())
        digest.update(_sample(weight.detach()))
    text = hf.model.language_model.config
    settings = [asdict(family), {name: getattr(text, name, None) for name in _TEXT_SETTINGS}]
    digest.update(json.dumps([settings, sorted(tokenizer.get_vocab().items())], sort_keys=True).encode())
    return digest.hexdigest()


def _sample(weight: torch.Tensor) -> bytes:
    num_samples = min(_NUM_SAMPLES, weight.numel())
    indices = torch.arange(num_samples, device=weight.device) * max(weight.numel() - 1, 0) // max(num_samples - 1, 1)
    return weight.flatten()[indices].to("cpu", torch.bfloat16).view(torch.uint8).numpy().tobytes()
