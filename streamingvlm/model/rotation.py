"""The rotary angles of a text model, for many positions at once.

Each pair of dimensions turns by the position on one axis (time, row or column) times a frequency of its own (Sec. 2.1
of Qwen2-VL, arXiv 2409.12191). Which axis that is differs from family to family; the model's own rotary embedding is
asked once, and the angles of a second are then made of the one axis that each needs.
"""

import torch
from torch import nn


class Rotation:
    """``cos`` and ``sin`` by position, as the text model's own rotary embedding gives them.

    dtype: of what is returned; the angles themselves are float32.
    """

    def __init__(self, text_model: nn.Module, dtype: torch.dtype):
        rotary = text_model.rotary_emb
        self.dtype = dtype
        self.frequencies = rotary.inv_freq.float()
        # Three tokens, each at 1 on one axis and at 0 on the others: a sine is zero but on the axis that it goes by.
        probe = torch.eye(3, device=self.frequencies.device)[:, None]
        _, sin = rotary(torch.empty(0, dtype=torch.float32, device=probe.device), probe)
        self.axes = sin[0, :, : len(self.frequencies)].abs().argmax(0)

    def __call__(self, positions: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """``cos`` and ``sin`` [T, D] of tokens at ``positions`` [3, T]."""
        return self._of(positions.T.contiguous()[:, self.axes])

    def of_text(self, positions: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """``cos`` and ``sin`` [T, D] of text at ``positions`` [T]: it stands at one number on all three axes."""
        return self._of(positions[:, None])

    def _of(self, positions: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        angles = positions * self.frequencies
        return tuple(torch.cat((half, half), dim=-1).to(self.dtype) for half in (angles.cos(), angles.sin()))
