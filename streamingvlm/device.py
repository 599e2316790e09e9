"""Copies from the host to the device that do not wait for the device."""

from collections.abc import Sequence

import torch


def on_device(numbers: Sequence | torch.Tensor, dtype: torch.dtype, device: torch.device) -> torch.Tensor:
    """Return host numbers as a tensor on the device. A copy to CUDA is queued on the current CUDA stream."""
    host = torch.as_tensor(numbers, dtype=dtype)
    return host.pin_memory().to(device, non_blocking=True) if device.type == "cuda" else host.to(device)
