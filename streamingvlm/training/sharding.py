"""FSDP2 and DeepSpeed: what Trainer is told of them, and where it needs a hand.

FSDP2 shards parameters as DTensors. accelerate drives it on accelerators alone and silently trains unsharded on CPU
processes; torch itself shards there as well, over gloo, and that is what proves the sharded loss without a GPU.
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
    """The arguments by which Trainer is asked to shard ``module``; none where it shall not. Raises ConfigError."""
    if settings.deepspeed is not None:
        if not is_deepspeed_available():
            raise ConfigError(
                f"deepspeed={settings.deepspeed} needs DeepSpeed, which is missing; run: pip install "
                '"streamingvlm[deepspeed]", or give fsdp=full_shard'
            )
        return {"deepspeed": settings.deepspeed}
    if settings.fsdp == "off":
        return {}
    layers = module.layer_classes
    return {"fsdp": True, "fsdp_config": {"version": 2, "transformer_layer_cls_to_wrap": layers}}


def shard_on_cpu_(trainer: "Trainer"):
    """Let accelerate shard over CPU processes as it does over others. Raises ConfigError for a lone process."""
    state = trainer.accelerator.state
    if state.num_processes < 2:
        raise ConfigError("fsdp=full_shard needs two processes or more; start them with torchrun, or give fsdp=off")
    if state.distributed_type is not DistributedType.MULTI_CPU:
        return
    state.fsdp_plugin = FullyShardedDataParallelPlugin(**trainer.args.fsdp_plugin_args)
    state.distributed_type = DistributedType.FSDP
    PartialState._shared_state["distributed_type"] = DistributedType.FSDP
    trainer.is_fsdp_enabled = True


def use_exact_inputs_(plugin: FullyShardedDataParallelPlugin, *, bf16: bool):
    """Compute in bfloat16, but reduce gradients in float32 and leave inputs as they come.

    By default FSDP2 casts all that goes into a module, rotary positions too, and bfloat16 cannot count past 256.
    """
    dtype = torch.bfloat16 if bf16 else None
    plugin.mixed_precision_policy = MixedPrecisionPolicy(
        param_dtype=dtype, reduce_dtype=torch.float32, cast_forward_inputs=False
    )


def load_full_state_(module: nn.Module, state: dict[str, torch.Tensor]):
    """Spread a whole state dict, which the first process has, over the shards of all."""
    options = StateDictOptions(full_state_dict=True, broadcast_from_rank0=True, strict=False)
    set_model_state_dict(module, state, options=options)


def save_sharded_optimizer(trainer: "Trainer", folder: str):
    """Write optimizer and schedule of a sharded run; the weights are in the model's own files already."""
    accelerator = trainer.accelerator
    save_fsdp_optimizer(accelerator.state.fsdp_plugin, accelerator, trainer.optimizer, trainer.model, folder)
    if trainer.args.should_save:
        torch.save(trainer.lr_scheduler.state_dict(), Path(folder) / _SCHEDULER_FILE)
