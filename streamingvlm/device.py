"""From the host's plain numbers to tensors of the device, without waiting for what the device is doing."""

from collections.abc import Sequence

import torch


def on_device(numbers: Sequence | torch.Tensor, dtype: torch.dtype, device: torch.device) -> torch.Tensor:
    """Return numbers of the host as a tensor of the device; a copy to CUDA takes its place in the current stream."""
    host = torch.as_tensor(numbers, dtype=dtype)
    if device.type != "cuda":
        return host.to(device)
    return host.pin_memory().to(device, non_blocking=True)
