"""The settings of a training run, one frozen dataclass; ranges are checked before anything is loaded."""

import logging
import math
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

from streamingvlm.errors import ConfigError

_LOG = logging.getLogger(__name__)

MAY_CHANGE = (
    "accumulation_steps",
    "pack_tokens",
    "num_workers",
    "max_bad_fraction",
    "gradient_checkpointing",
    "attention",
    "liger",
    "log_every_steps",
    "save_every_steps",
    "keep_checkpoints",
    "evaluate_every_steps",
)
"""Settings that a resumed run may change: the losses stay the same."""

_IN_PLAN = ("batch_size", "num_steps", "num_epochs")
_AT_LEAST_ONE = ("batch_size", "accumulation_steps", "log_every_steps", "keep_checkpoints")
_FEW_STEPS = 20
_LARGEST_BATCH = 512  # of the paper
_AT_LEAST_ZERO = (
    "warmup_steps",
    "weight_decay",
    "max_grad_norm",
    "pack_tokens",
    "silence_weight",
    "num_workers",
    "max_bad_fraction",
    "save_every_steps",
    "evaluate_every_steps",
)
_MAY_BE_NONE = ("batch_size", "accumulation_steps")
_CHOICES = {"attention": (None, "sdpa", "flash_attention_2"), "fsdp": ("off", "full_shard")}


@dataclass(frozen=True, kw_only=True)
class FitSettings:
    """Optimization settings: AdamW with linear warm-up and cosine decay to 0.

    num_steps: optimizer steps; None: as many as num_epochs, passes over the data, takes.
    batch_size: examples per optimizer step, over all processes and micro-batches. It alone determines the loss of a
        step; accumulation_steps, pack_tokens and the number of processes only change how it is computed. None: a power
        of 2 up to 512 that gives an epoch 20 steps or more.
    accumulation_steps: micro-batches into which each process splits its share of a step; None: one per example.
    pack_tokens: concatenate examples into sequences of at most this many tokens, without attention between examples;
        0 pads them to rectangular batches. Packing decides the number of micro-batches itself.
    num_workers: data loading processes per training process.
    max_bad_fraction: share of the examples that may be skipped because their video cannot be read; 0: none.
    warmup_steps: a number of steps; warmup_ratio, a fraction of all steps, overrides it if given.
    skip_zero_step: each step has the learning rate that warm-up gives the next; otherwise the first step has 0.
    max_grad_norm: clips the gradient of the whole step; 0 disables clipping.
    silence_weight: loss weight of the tokens of a silent turn; other tokens have weight 1.
    bf16: compute in bfloat16; the dtype of the weights does not change.
    attention: attention implementation of the language model; None: flash_attention_2 on a GPU that has it, else sdpa.
    fsdp: ``full_shard`` shards weights, gradients and optimizer state over the processes (FSDP2).
    deepspeed: a DeepSpeed configuration file, as an alternative to ``fsdp``.
    save_every_steps: 0 writes no checkpoints; keep_checkpoints: how many of the newest are kept.
    evaluate_every_steps: interval of the held-out loss; 0 disables it.
    """

    num_steps: int | None = None
    num_epochs: float | None = None
    batch_size: int | None = None
    accumulation_steps: int | None = 1
    pack_tokens: int = 0
    num_workers: int = 0
    max_bad_fraction: float = 0.0
    learning_rate: float
    warmup_steps: int = 50
    warmup_ratio: float | None = None
    skip_zero_step: bool = False
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
                if getattr(self, name) is not None or name not in _MAY_BE_NONE:
                    _at_least(name, getattr(self, name), least)
        for name, allowed in _CHOICES.items():
            if getattr(self, name) not in allowed:
                shown = ", ".join("null" if choice is None else choice for choice in allowed)
                raise ConfigError(f"{name}={getattr(self, name)} is unknown; choose one of {shown}")
        if not 0 < self.learning_rate < math.inf:
            raise ConfigError(f"learning_rate={self.learning_rate} is not above 0; the paper uses 1e-5")
        if not 0 < self.adam_beta2 < 1:
            raise ConfigError(f"adam_beta2={self.adam_beta2} is outside (0, 1); the usual values are 0.95 to 0.999")
        if self.warmup_ratio is not None and not 0 <= self.warmup_ratio <= 1:
            raise ConfigError(f"warmup_ratio={self.warmup_ratio} is outside [0, 1]; the paper uses 0.03")
        self._check_together()

    def _check_length(self):
        if self.num_steps is not None:
            _at_least("num_steps", self.num_steps, 1)
        elif self.num_epochs is not None:
            _at_least("num_epochs", self.num_epochs, math.ulp(0.0))
        else:
            raise ConfigError("neither num_steps nor num_epochs given; give one of the two")

    def _check_together(self):
        if self.pack_tokens and (self.accumulation_steps or 1) > 1:
            raise ConfigError(
                f"accumulation_steps={self.accumulation_steps} with pack_tokens={self.pack_tokens}: packing decides "
                "the number of micro-batches; give accumulation_steps=1, and lower pack_tokens to save memory"
            )
        if self.deepspeed is not None and self.fsdp != "off":
            raise ConfigError("fsdp and deepspeed both shard the weights; give one of them")
        if self.deepspeed is not None and not Path(self.deepspeed).is_file():
            raise ConfigError(
                f"deepspeed={self.deepspeed} is not a file; give one such as "
                "deepspeed/zero3.json of the configs, whose folder `streamingvlm info` names"
            )

    def batch_size_for(self, num_examples: int, num_processes: int = 1) -> int:
        """Return the examples of a step for a dataset of ``num_examples``."""
        if self.batch_size is not None:
            return self.batch_size
        most = min(_LARGEST_BATCH, max(num_examples // _FEW_STEPS, 1))
        return max(1 << (most.bit_length() - 1), num_processes)

    def steps_for(self, num_examples: int, num_processes: int = 1) -> int:
        """Return the optimizer steps for ``num_examples`` examples; the last step of an epoch may be smaller."""
        if self.num_steps is not None:
            return self.num_steps
        batch_size = self.batch_size_for(num_examples, num_processes)
        num_steps = max(1, math.ceil(self.num_epochs * math.ceil(num_examples / batch_size)))
        if num_steps < _FEW_STEPS:
            _LOG.warning(
                "%d examples at batch_size=%d, num_epochs=%g are %d optimizer steps, too few to learn much; lower "
                "batch_size, or raise num_epochs",
                *(num_examples, batch_size, self.num_epochs, num_steps),
            )
        return num_steps

    @property
    def deciding(self) -> dict[str, Any]:
        """The settings that decide what a run computes; batch_size and the number of steps depend on the data too."""
        others = (*MAY_CHANGE, *_IN_PLAN)
        return {name: value for name, value in asdict(self).items() if name not in others}

    @property
    def changeable(self) -> dict[str, Any]:
        """The settings that a resumed run may change."""
        return {name: getattr(self, name) for name in MAY_CHANGE}

    def warmup_of(self, num_steps: int) -> int:
        """Return the warm-up steps of a run of ``num_steps`` steps."""
        return self.warmup_steps if self.warmup_ratio is None else math.ceil(self.warmup_ratio * num_steps)


def _at_least(name: str, value: float, least: float):
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise ConfigError(f"{name}={value!r} is not a number; give a number")
    if not least <= value < math.inf:
        raise ConfigError(f"{name}={value} is below {least:g}; give {least:g} or more")
