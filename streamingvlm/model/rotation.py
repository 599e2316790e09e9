"""Rotary embeddings of a text model for many positions at once.

Each pair of dimensions rotates by the position on one axis (time, row or column) times its own frequency (Sec. 2.1 of
Qwen2-VL, arXiv 2409.12191). The axis of each pair differs between families, so one probe of the model's own rotary
embedding finds it. Angles are then computed on the needed axis only, instead of on all three.
"""

import torch
from torch import nn


class Rotation:
    """``cos`` and ``sin`` by position, equal to those of the text model's own rotary embedding.

    dtype: of the result; angles are computed in float32.
    """

    def __init__(self, text_model: nn.Module, dtype: torch.dtype):
        rotary = text_model.rotary_emb
        self.dtype = dtype
        self.frequencies = rotary.inv_freq.float()
        # Three tokens, each at position 1 on one axis and 0 on the others: a sine is nonzero only on its own axis.
        probe = torch.eye(3, device=self.frequencies.device)[:, None]
        _, sin = rotary(torch.empty(0, dtype=torch.float32, device=probe.device), probe)
        self.axes = sin[0, :, : len(self.frequencies)].abs().argmax(0)

    def __call__(self, positions: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Return ``cos`` and ``sin`` [T, D] of tokens at ``positions`` [3, T]."""
        return self._of(positions.T.contiguous()[:, self.axes])

    def of_text(self, positions: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Return ``cos`` and ``sin`` [T, D] of text tokens at ``positions`` [T], equal on all three axes."""
        return self._of(positions[:, None])

    def _of(self, positions: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        angles = positions * self.frequencies
        return tuple(torch.cat((half, half), dim=-1).to(self.dtype) for half in (angles.cos(), angles.sin()))
