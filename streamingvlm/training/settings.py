"""How a model is fitted, as one frozen dataclass: ranges are checked before anything is loaded."""

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from streamingvlm.errors import ConfigError

_AT_LEAST_ONE = ("batch_size", "accumulation_steps", "log_every_steps", "keep_checkpoints")
_AT_LEAST_ZERO = (
    "warmup_steps",
    "weight_decay",
    "max_grad_norm",
    "pack_tokens",
    "silence_weight",
    "num_workers",
    "save_every_steps",
    "evaluate_every_steps",
)
_CHOICES = {"attention": (None, "sdpa", "flash_attention_2"), "fsdp": ("off", "full_shard")}


@dataclass(frozen=True, kw_only=True)
class FitSettings:
    """How long and how fast a model learns, and on what: AdamW, a linear warm-up, then a cosine down to nothing.

    num_steps: optimizer steps; or num_epochs: passes over the data. One of the two.
    batch_size: examples an optimizer step, of all processes and micro-batches together. It alone decides what a step
        learns from; the three below decide how that is computed, and leave the loss as it is.
    accumulation_steps: micro-batches into which each process cuts its share of a step.
    pack_tokens: examples are laid end to end in sequences of at most so many tokens, none of which sees another;
        0 pads them to rectangular batches instead. With it, the micro-batches are as many as the sequences need.
    num_workers: processes that prepare examples beside each training process.
    warmup_steps: of the steps; warmup_ratio, a fraction of them, goes before it where it is given.
    max_grad_norm: of the gradient of the whole step; 0 leaves it as it is.
    silence_weight: weight of a second in which nothing is said, against 1 for the others.
    bf16: compute in bfloat16; the weights themselves stay as they are.
    attention: name of the language model's attention; None: flash_attention_2 on a GPU that has it, else sdpa.
    fsdp: ``full_shard`` spreads weights, gradients and optimizer over the processes (FSDP2).
    deepspeed: a DeepSpeed configuration file, instead of it.
    save_every_steps: 0 writes no checkpoints; keep_checkpoints: the newest stay.
    evaluate_every_steps: held-out loss; 0: never.
    """

    num_steps: int | None = None
    num_epochs: float | None = None
    batch_size: int
    accumulation_steps: int = 1
    pack_tokens: int = 0
    num_workers: int = 0
    learning_rate: float
    warmup_steps: int = 50
    warmup_ratio: float | None = None
    weight_decay: float = 0.01
    adam_beta2: float = 0.98
    max_grad_norm: float = 1.0
    silence_weight: float = 1.0
    bf16: bool = True
    gradient_checkpointing: bool = False
    attention: Literal["sdpa", "flash_attention_2"] | None = None
    liger: bool = False
    fsdp: Literal["off", "full_shard"] = "off"
    deepspeed: str | None = None
    log_every_steps: int = 20
    save_every_steps: int = 0
    keep_checkpoints: int = 2
    evaluate_every_steps: int = 0

    def __post_init__(self):
        self._check_length()
        for names, least in ((_AT_LEAST_ONE, 1), (_AT_LEAST_ZERO, 0)):
            for name in names:
                _at_least(name, getattr(self, name), least)
        for name, allowed in _CHOICES.items():
            if getattr(self, name) not in allowed:
                shown = ", ".join("null" if choice is None else choice for choice in allowed)
                raise ConfigError(f"{name}={getattr(self, name)} is unknown; choose one of {shown}")
        if not 0 < self.learning_rate < math.inf:
            raise ConfigError(f"learning_rate={self.learning_rate} is not above 0; the paper's is 1e-5")
        if not 0 < self.adam_beta2 < 1:
            raise ConfigError(f"adam_beta2={self.adam_beta2} is outside (0, 1); the usual values are 0.95 to 0.999")
        if self.warmup_ratio is not None and not 0 <= self.warmup_ratio <= 1:
            raise ConfigError(f"warmup_ratio={self.warmup_ratio} is outside [0, 1]; the paper's is 0.03")
        self._check_together()

    def _check_length(self):
        given = [name for name in ("num_steps", "num_epochs") if getattr(self, name) is not None]
        if len(given) != 1:
            raise ConfigError(f"{' and '.join(given) or 'neither num_steps nor num_epochs'} given; give one of the two")
        _at_least(given[0], getattr(self, given[0]), 1 if given[0] == "num_steps" else math.ulp(0.0))

    def _check_together(self):
        if self.pack_tokens and self.accumulation_steps > 1:
            raise ConfigError(
                f"accumulation_steps={self.accumulation_steps} with pack_tokens={self.pack_tokens}: packs are as many "
                "as they need to be; give accumulation_steps=1, and a smaller pack_tokens where memory is short"
            )
        if self.deepspeed is not None and self.fsdp != "off":
            raise ConfigError("fsdp and deepspeed both spread the weights; give one of them")
        if self.deepspeed is not None and not Path(self.deepspeed).is_file():
            raise ConfigError(f"deepspeed={self.deepspeed} is no file; configs/deepspeed/zero3.json is one")

    def steps_for(self, num_examples: int) -> int:
        """Optimizer steps over ``num_examples`` examples; the last step of an epoch takes what is left."""
        if self.num_steps is not None:
            return self.num_steps
        return max(1, math.ceil(self.num_epochs * math.ceil(num_examples / self.batch_size)))

    def warmup_of(self, num_steps: int) -> int:
        """Steps of the warm-up, out of ``num_steps``."""
        return self.warmup_steps if self.warmup_ratio is None else math.ceil(self.warmup_ratio * num_steps)


def _at_least(name: str, value: float, least: float):
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise ConfigError(f"{name}={value!r} is not a number; give one")
    if not least <= value < math.inf:
        raise ConfigError(f"{name}={value} is below {least:g}; give {least:g} or more")
