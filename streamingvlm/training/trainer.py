"""One stage of training under transformers' Trainer."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import nn
from torch.utils.data import Dataset
from transformers import Trainer, TrainingArguments

from streamingvlm.errors import ConfigError


@dataclass(frozen=True)
class StageSettings:
    """How long and how fast a stage learns; AdamW, a linear warm-up, then a cosine down to nothing.

    num_steps: optimizer steps; batch_size: examples a step; warmup_steps: of the num_steps.
    bf16: autocast to bfloat16; the weights themselves stay float32.
    """

    num_steps: int
    batch_size: int
    learning_rate: float
    warmup_steps: int = 50
    weight_decay: float = 0.01
    max_grad_norm: float = 1.0
    bf16: bool = True
    log_every_steps: int = 20

    def __post_init__(self):
        for name in ("num_steps", "batch_size", "log_every_steps"):
            if getattr(self, name) < 1:
                raise ConfigError(f"{name}={getattr(self, name)} trains nothing; give 1 or more")


def fit_(
    module: nn.Module,
    dataset: Dataset,
    collate: Callable,
    settings: StageSettings,
    *,
    seed: int,
    folder: str | Path,
    device: str = "cpu",
) -> list[dict[str, float]]:
    """Train ``module`` in place and return its loss curve: step, loss and learning rate every so many steps.

    module: returns a dict with its loss. folder: for what the Trainer writes.
    """
    arguments = TrainingArguments(
        output_dir=str(folder),
        max_steps=settings.num_steps,
        per_device_train_batch_size=settings.batch_size,
        learning_rate=settings.learning_rate,
        lr_scheduler_type="cosine",
        warmup_steps=settings.warmup_steps,
        weight_decay=settings.weight_decay,
        adam_beta2=0.98,
        max_grad_norm=settings.max_grad_norm,
        bf16=settings.bf16,
        use_cpu=torch.device(device).type == "cpu",
        seed=seed,
        logging_steps=settings.log_every_steps,
        save_strategy="no",
        report_to=[],
        remove_unused_columns=False,
        disable_tqdm=True,
    )
    trainer = Trainer(model=module, args=arguments, train_dataset=dataset, data_collator=collate)
    trainer.train()
    kept = ("step", "loss", "learning_rate", "grad_norm")
    return [{key: entry[key] for key in kept} for entry in trainer.state.log_history if "loss" in entry]
