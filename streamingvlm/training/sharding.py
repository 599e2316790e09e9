"""Sharding by FSDP2 and DeepSpeed: Trainer's arguments, and what accelerate leaves to be done.

FSDP2 shards parameters as DTensors. accelerate enables it on accelerators only and silently trains unsharded on CPU
processes. torch can shard there too, over gloo; the tests use this to check the sharded loss without a GPU.
"""

from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from accelerate.state import PartialState
from accelerate.utils import (
    DistributedType,
    FullyShardedDataParallelPlugin,
    is_deepspeed_available,
    save_fsdp_optimizer,
)
from torch import nn
from torch.distributed.checkpoint.state_dict import StateDictOptions, set_model_state_dict
from torch.distributed.fsdp import MixedPrecisionPolicy

from streamingvlm.errors import ConfigError
from streamingvlm.training.settings import FitSettings

if TYPE_CHECKING:
    from transformers import Trainer

_SCHEDULER_FILE = "scheduler.pt"


def sharding_arguments(settings: FitSettings, module: nn.Module) -> dict[str, Any]:
    """Return the Trainer arguments that shard ``module``; empty without sharding. Raises ConfigError."""
    if settings.deepspeed is not None:
        if not is_deepspeed_available():
            raise ConfigError(
                f"deepspeed={settings.deepspeed} needs DeepSpeed, which is not installed; run: pip install "
                '"streamingvlm[deepspeed]", or give fsdp=full_shard'
            )
        return {"deepspeed": settings.deepspeed}
    if settings.fsdp == "off":
        return {}
    layers = module.layer_classes
    return {"fsdp": True, "fsdp_config": {"version": 2, "transformer_layer_cls_to_wrap": layers}}


def shard_on_cpu_(trainer: "Trainer"):
    """Make accelerate shard over CPU processes as well. Raises ConfigError for a single process."""
    state = trainer.accelerator.state
    if state.num_processes < 2:
        raise ConfigError("fsdp=full_shard needs two or more processes; start them with torchrun, or give fsdp=off")
    if state.distributed_type is not DistributedType.MULTI_CPU:
        return
    state.fsdp_plugin = FullyShardedDataParallelPlugin(**trainer.args.fsdp_plugin_args)
    state.distributed_type = DistributedType.FSDP
    PartialState._shared_state["distributed_type"] = DistributedType.FSDP
    trainer.is_fsdp_enabled = True


def use_exact_inputs_(plugin: FullyShardedDataParallelPlugin, *, bf16: bool):
    """Compute in bfloat16, but reduce gradients in float32 and do not cast inputs.

    By default FSDP2 casts all inputs of a module, including rotary positions, and bfloat16 is exact only up to 256.
    """
    dtype = torch.bfloat16 if bf16 else None
    plugin.mixed_precision_policy = MixedPrecisionPolicy(
        param_dtype=dtype, reduce_dtype=torch.float32, cast_forward_inputs=False
    )


def load_full_state_(module: nn.Module, state: dict[str, torch.Tensor]):
    """Load the full state dict of the first process into the shards of all processes."""
    options = StateDictOptions(full_state_dict=True, broadcast_from_rank0=True, strict=False)
    set_model_state_dict(module, state, options=options)


def save_sharded_optimizer(trainer: "Trainer", folder: str):
    """Write optimizer and schedule of a sharded run; the weights are saved with the model."""
    accelerator = trainer.accelerator
    save_fsdp_optimizer(accelerator.state.fsdp_plugin, accelerator, trainer.optimizer, trainer.model, folder)
    if trainer.args.should_save:
        torch.save(trainer.lr_scheduler.state_dict(), Path(folder) / _SCHEDULER_FILE)
