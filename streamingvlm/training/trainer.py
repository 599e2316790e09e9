"""A training run on transformers' Trainer, which provides processes, sharding and optimizer.

What differs from Trainer: the loss of a step is the weighted sum over all its supervised tokens, in whatever process
and micro-batch, divided by the sum of the weights; the order of examples is a pure function (`batch_plan`); checkpoints
are crash-safe (`checkpoints`); a loss that is not finite ends the run.
"""

import contextlib
import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Any

import torch
from accelerate.utils import send_to_device
from safetensors import SafetensorError
from torch import nn
from torch.utils.data import Dataset
from transformers import PreTrainedTokenizerBase, PrinterCallback, Trainer, TrainerCallback, TrainingArguments

from streamingvlm.errors import CheckpointError, ConfigError, NonFiniteLossError
from streamingvlm.model.checkpoint import first_line
from streamingvlm.training.batch_plan import BatchPlan, plan_batches
from streamingvlm.training.checkpoints import (
    changes_since,
    check_resume_invariants,
    checkpoint_folder,
    checkpoints,
    commit_checkpoint,
    keep_newest,
    latest_complete_checkpoint,
    remove_incomplete,
)
from streamingvlm.training.collate import model_inputs
from streamingvlm.training.settings import FitSettings
from streamingvlm.training.sharding import (
    load_full_state_,
    save_sharded_optimizer,
    shard_on_cpu_,
    sharding_arguments,
    use_exact_inputs_,
)
from streamingvlm.training.step_loader import StepLoader
from streamingvlm.training.throughput import ThroughputMeter

_LOG = logging.getLogger(__name__)
_CURVE = ("step", "loss", "learning_rate", "grad_norm")
_PLAN_INVARIANTS = ("seed", "num_examples", "batch_size", "num_steps")
_WRITE_ERRORS = (OSError, RuntimeError, SafetensorError)  # a full disk, as Python, torch and safetensors report it
_NUM_NAMES_SHOWN = 4


class StreamingTrainer(Trainer):
    """transformers' Trainer for a module that returns one loss per supervised token.

    The module returns ``losses`` [A], to be multiplied by the batch's ``weights`` [A]; or a single ``loss``, in which
    case each micro-batch has weight 1.

    plan: the examples of each step. batch_transform: applied to each batch in this process before the forward pass.
    resume_invariants: saved in every checkpoint beside those of plan and settings; a resumed run must have the same.
    meter: counts the work of each step.
    """

    def __init__(
        self,
        *,
        plan: BatchPlan,
        settings: FitSettings,
        batch_transform: Callable[[dict], dict] | None = None,
        resume_invariants: Mapping[str, Any] = MappingProxyType({}),
        meter: ThroughputMeter | None = None,
        **trainer_arguments,
    ):
        self.plan = plan
        self.settings = settings
        self.batch_transform = batch_transform
        self.meter = meter
        planned = {name: getattr(plan, name) for name in _PLAN_INVARIANTS}
        self.resume_invariants = planned | settings.deciding | dict(resume_invariants)
        super().__init__(**trainer_arguments)
        # `compute_loss` divides by the weights of the whole step; Trainer must not divide again.
        self.model_accepts_loss_kwargs = True
        self.remove_callback(PrinterCallback)

    def create_accelerator_and_postprocess(self):
        """Create the accelerator, which knows the processes, and set up sharding."""
        super().create_accelerator_and_postprocess()
        if self.settings.fsdp != "off":
            shard_on_cpu_(self)
            use_exact_inputs_(self.accelerator.state.fsdp_plugin, bf16=self.settings.bf16)

    def create_scheduler(self, num_training_steps: int, optimizer: torch.optim.Optimizer | None = None):
        """Create the schedule, without its first value if the settings skip it: warm-up begins at 0."""
        if not self.settings.skip_zero_step or self.lr_scheduler is not None:
            return super().create_scheduler(num_training_steps, optimizer)
        scheduler = super().create_scheduler(num_training_steps + 1, optimizer)
        scheduler.lr_lambdas = [lambda step, rate=rate: rate(step + 1) for rate in scheduler.lr_lambdas]
        for group, rate in zip(scheduler.optimizer.param_groups, scheduler.lr_lambdas, strict=True):
            group["lr"] = group["initial_lr"] * rate(0)
        return scheduler

    # ---- batches and loss ----

    def get_train_dataloader(self) -> StepLoader:
        """Return the micro-batches of this process, from the current step on."""
        return self._step_loader(self.train_dataset, self.plan, first_step=lambda: self.state.global_step)

    def _step_loader(self, dataset: Dataset, plan: BatchPlan, **more) -> StepLoader:
        return StepLoader(
            dataset,
            self.data_collator,
            plan,
            process_index=self.args.process_index,
            num_workers=self.settings.num_workers,
            pin_memory=self.args.device.type == "cuda",
            batch_transform=self.batch_transform,
            max_bad_fraction=self.settings.max_bad_fraction,
            **more,
        )

    def get_batch_samples(
        self, epoch_iterator: Iterator, num_batches: int, device: torch.device
    ) -> tuple[list[list[dict]], torch.Tensor | None]:
        """Return the micro-batches of one step, as one batch, and the sum of the weights over all processes."""
        with self.meter.data_wait() if self.meter else contextlib.nullcontext():
            step = next(epoch_iterator, None)
        if step is None:
            return [], None
        if self.meter:
            for batch in step:
                self.meter.count(batch)
        weight = sum(_weights(batch).sum(dtype=torch.float64) for batch in step)
        return [step], self.accelerator.reduce(weight.to(device), "sum")

    def training_step(self, model: nn.Module, inputs: Sequence[dict], num_items_in_batch: torch.Tensor) -> torch.Tensor:
        """Run the micro-batches of a step; gradients are synchronized across processes at the last one."""
        loss = torch.zeros((), device=self.args.device)
        for number, batch in enumerate(inputs, start=1):
            is_last = number == len(inputs)
            self.accelerator.gradient_state._set_sync_gradients(is_last)
            with contextlib.nullcontext() if is_last else self.accelerator.no_sync(model):
                loss += super().training_step(model, batch, num_items_in_batch)
        return loss

    def compute_loss(
        self,
        model: nn.Module,
        inputs: dict[str, Any],
        return_outputs: bool = False,
        num_items_in_batch: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """Return the contribution of a micro-batch to the loss of the step. Raises NonFiniteLossError.

        It is multiplied by the number of processes, because the gradient is averaged over them.
        """
        total, _, outputs = self._weighted_loss(model, inputs)
        loss = total * (self.accelerator.num_processes / num_items_in_batch.clamp(min=torch.finfo(torch.float32).tiny))
        loss = loss.float()
        return (loss, outputs) if return_outputs else loss

    def _weighted_loss(self, model: nn.Module, inputs: dict[str, Any]) -> tuple[torch.Tensor, torch.Tensor, dict]:
        """Return the weighted sum of the losses, the sum of the weights, and the output of the module."""
        weights = _weights(inputs).to(self.args.device)
        outputs = model(**model_inputs(inputs))
        losses = outputs["losses"] if "losses" in outputs else outputs["loss"][None]
        total = (losses.float() * weights).sum()
        if not torch.isfinite(total):
            raise _not_finite(inputs, losses, self.state.global_step + 1)
        return total, weights.sum(dtype=torch.float64), outputs

    def _prepare_inputs(self, inputs: dict[str, Any]) -> dict[str, Any]:
        # Trainer casts every float to the dtype of the weights, and bfloat16 positions are exact only up to 256.
        return send_to_device(inputs, self.args.device)

    # ---- held-out loss ----

    @torch.no_grad()
    def evaluate(
        self, eval_dataset: Dataset | None = None, ignore_keys: list[str] | None = None, metric_key_prefix: str = "eval"
    ) -> dict[str, float]:
        """Return the loss over all held-out tokens, each counted once, as ``eval_loss``."""
        dataset = self.eval_dataset if eval_dataset is None else eval_dataset
        plan = plan_batches(dataset, self.settings, num_processes=self.args.world_size, seed=None, num_epochs=1)
        self.model.eval()
        sums = torch.zeros(2, dtype=torch.float64, device=self.args.device)
        for step in self._step_loader(dataset, plan):
            for batch in step:
                sums += torch.stack(self._weighted_loss(self.model, self._prepare_inputs(batch))[:2])
        total, weight = self.accelerator.reduce(sums, "sum").tolist()
        metrics = {f"{metric_key_prefix}_loss": total / max(weight, torch.finfo(torch.float32).tiny)}
        self.log(metrics)
        self.control = self.callback_handler.on_evaluate(self.args, self.state, self.control, metrics)
        return metrics

    def log(self, logs: dict[str, float], start_time: float | None = None):
        """Log with the epoch of the plan; Trainer sees a single long epoch and cannot compute it."""
        self.state.epoch = self.plan.epoch_at(self.state.global_step)
        super().log(logs, start_time)

    # ---- checkpoints ----

    def _save_checkpoint(self, model: nn.Module, trial: None):
        folder = checkpoint_folder(self.args.output_dir, self.state.global_step)
        try:
            super()._save_checkpoint(model, trial)
            self.accelerator.wait_for_everyone()
            if self.args.should_save:
                commit_checkpoint(folder, self.resume_invariants, self._changeable)
                keep_newest(self.args.output_dir, self.settings.keep_checkpoints)
        except _WRITE_ERRORS as error:
            raise CheckpointError(
                f"{folder} cannot be written ({first_line(error)}); free some space and continue with resume=true"
            ) from error

    @property
    def _changeable(self) -> dict[str, Any]:
        return {"processes": self.accelerator.num_processes} | self.settings.changeable

    def changes_since(self, checkpoint: Path) -> list[str]:
        """Describe the settings that differ from those of the run that wrote a checkpoint."""
        return changes_since(checkpoint, self._changeable)

    def _save(self, output_dir: str | None = None, state_dict: dict | None = None):
        module = self.accelerator.unwrap_model(self.model)
        if not hasattr(module, "save_pretrained"):
            super()._save(output_dir, state_dict)
        elif self.args.should_save:
            module.save_pretrained(output_dir, state_dict)
            if self.processing_class is not None:
                self.processing_class.save_pretrained(output_dir)

    def _save_optimizer_and_scheduler(self, output_dir: str):
        if self.is_fsdp_enabled:
            save_sharded_optimizer(self, output_dir)
        else:
            super()._save_optimizer_and_scheduler(output_dir)

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: nn.Module | None = None):
        module = self.accelerator.unwrap_model(self.model if model is None else model)
        if not hasattr(module, "saved_state"):
            super()._load_from_checkpoint(resume_from_checkpoint, model)
        elif self.is_fsdp_enabled:
            load_full_state_(module, module.saved_state(resume_from_checkpoint) if self.args.should_save else {})
        else:
            module.load_state_dict(module.saved_state(resume_from_checkpoint), strict=False)


class _LogWhenSaving(TrainerCallback):
    """Logs before every checkpoint: Trainer drops unlogged losses there, so a resumed run would log other means."""

    def on_step_end(self, args, state, control, **_):
        control.should_log |= control.should_save


def fit_(
    module: nn.Module,
    dataset: Dataset,
    collate: Callable,
    settings: FitSettings,
    *,
    seed: int,
    folder: str | Path,
    device: str = "cpu",
    callbacks: Sequence[TrainerCallback] = (),
    resume: bool = False,
    held_out: Dataset | None = None,
    batch_transform: Callable[[dict], dict] | None = None,
    resume_invariants: Mapping[str, Any] = MappingProxyType({}),
    meter: ThroughputMeter | None = None,
    tokenizer: PreTrainedTokenizerBase | None = None,
    model_folder: str | Path | None = None,
) -> list[dict[str, float]]:
    """Train ``module`` in place and return its loss curve: step, loss, learning rate and gradient norm of each log.

    module: returns a dict with its losses, as described at `StreamingTrainer`.
    dataset: of examples for ``collate``; packing also needs its method ``length(index)``, in tokens.
    folder: for checkpoints; with ``resume`` the run continues from the latest complete one there, if there is one.
    held_out: examples of the held-out loss. batch_transform, resume_invariants, meter: see `StreamingTrainer`.
    tokenizer: saved with every checkpoint.
    model_folder: where to write the trained model, as a Hugging Face folder.

    Raises ConfigError if the settings do not fit the data, the folder or the processes, NonFiniteLossError with the
    names of the examples, and CheckpointError if a checkpoint cannot be written.
    """
    arguments = _arguments(settings, module, seed=seed, folder=folder, device=device, evaluates=held_out is not None)
    plan = plan_batches(dataset, settings, num_processes=arguments.world_size, seed=seed)
    arguments.max_steps = plan.num_steps
    arguments.warmup_steps = settings.warmup_of(plan.num_steps)
    if settings.gradient_checkpointing:
        module.checkpoint_activations_()
    if settings.liger:
        module.use_liger_kernels_()
    trainer = StreamingTrainer(
        plan=plan,
        settings=settings,
        batch_transform=batch_transform,
        resume_invariants=resume_invariants,
        meter=meter,
        model=module,
        args=arguments,
        train_dataset=dataset,
        eval_dataset=held_out,
        data_collator=collate,
        processing_class=tokenizer,
        callbacks=[_LogWhenSaving(), *callbacks],
    )
    trainer.train(resume_from_checkpoint=_checkpoint_to_resume(trainer, resume=resume))
    if model_folder is not None:
        trainer.save_model(str(model_folder))
    return [{key: entry[key] for key in _CURVE} for entry in trainer.state.log_history if "loss" in entry]


def _checkpoint_to_resume(trainer: StreamingTrainer, *, resume: bool) -> str | None:
    folder = trainer.args.output_dir
    if not resume:
        if found := checkpoints(folder):
            raise ConfigError(f"{found[-1]} exists; give resume=true to continue from it, or another folder")
        return None
    if trainer.args.should_save:
        remove_incomplete(folder)
    trainer.accelerator.wait_for_everyone()
    if (latest := latest_complete_checkpoint(folder)) is None:
        _LOG.info("%s holds no checkpoint; the run starts at its first step", folder)
        return None
    check_resume_invariants(latest, trainer.resume_invariants)
    changes = trainer.changes_since(latest)
    _LOG.info("resuming from %s%s", latest, f" with {', '.join(changes)}" if changes else "")
    return str(latest)


def _arguments(
    settings: FitSettings, module: nn.Module, *, seed: int, folder: str | Path, device: str, evaluates: bool
) -> TrainingArguments:
    on_cpu = torch.device(device).type == "cpu"
    arguments = TrainingArguments(
        output_dir=str(folder),
        max_steps=1,  # replaced once the number of processes is known
        per_device_train_batch_size=1,  # Trainer sees a step as one batch; `training_step` splits it
        learning_rate=settings.learning_rate,
        lr_scheduler_type="cosine",
        weight_decay=settings.weight_decay,
        adam_beta2=settings.adam_beta2,
        max_grad_norm=settings.max_grad_norm,
        bf16=settings.bf16,
        use_cpu=on_cpu,
        ddp_find_unused_parameters=False,
        seed=seed,
        logging_steps=settings.log_every_steps,
        logging_nan_inf_filter=False,
        save_strategy="steps" if settings.save_every_steps else "no",
        save_steps=settings.save_every_steps or 1,
        eval_strategy="steps" if evaluates and settings.evaluate_every_steps else "no",
        eval_steps=settings.evaluate_every_steps or None,
        ignore_data_skip=True,  # `StepLoader` starts at the current step
        report_to=[],
        remove_unused_columns=False,
        disable_tqdm=True,
        **sharding_arguments(settings, module),
    )
    # One device per process: Trainer would use DataParallel over all visible GPUs in a single process.
    arguments._n_gpu = min(arguments.n_gpu, 1)
    return arguments


def _weights(batch: dict[str, Any]) -> torch.Tensor:
    return batch["weights"] if "weights" in batch else torch.ones(1)


def _not_finite(inputs: dict[str, Any], losses: torch.Tensor, step: int) -> NonFiniteLossError:
    names = inputs.get("names", ["an unnamed batch"])
    if "num_supervised" in inputs:
        parts = losses.split(inputs["num_supervised"])
        names = [name for name, part in zip(names, parts, strict=True) if not torch.isfinite(part).all()] or names
    more = f" and {len(names) - _NUM_NAMES_SHOWN} more" if len(names) > _NUM_NAMES_SHOWN else ""
    return NonFiniteLossError(
        f"the loss of step {step} is not finite; it comes from {', '.join(names[:_NUM_NAMES_SHOWN])}{more}: check "
        "their frames and text, or lower the learning rate"
    )
