"""The vision tower over many small pictures at once, as training needs it.

transformers' own path runs one attention a picture, and its first layer is a convolution whose stride equals its
kernel; over hundreds of small pictures on a CPU, both cost many times the arithmetic. Here all pictures share one
batched product. The weights, their names and the result are the same.
"""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import nn
from transformers import AttentionInterface, Qwen2_5_VLForConditionalGeneration

from streamingvlm.model.family import FAMILIES
from streamingvlm.model.patch_layers import PatchProduct
from streamingvlm.training.pitch.architecture import PICTURE_PIXELS

_ATTENTION = "streamingvlm_pictures"


class Tower(nn.Module):
    """A model's vision tower, for pictures of one size: from patches [S * patches, values] to tokens [S, V, D]."""

    def __init__(self, model: Qwen2_5_VLForConditionalGeneration):
        super().__init__()
        self.visual = model.model.visual
        self.family = FAMILIES["qwen2_5_vl"].with_vision_config(model.config.vision_config.to_dict())
        self.side = PICTURE_PIXELS // self.family.patch_size

    @property
    def embedding_size(self) -> int:
        """Width of a token."""
        return self.visual.config.out_hidden_size

    def forward(self, pixels: torch.Tensor) -> torch.Tensor:
        """Encode the patches of S pairs of pictures."""
        num_patches = self.side**2
        num_seconds = pixels.shape[0] // num_patches
        grid = torch.tensor([[num_seconds, self.side, self.side]], device=pixels.device)
        everything = torch.tensor([0, pixels.shape[0]], dtype=torch.int32, device=pixels.device)
        with _fast_kernels(self.visual):
            merged = self.visual(
                pixels,
                grid_thw=grid,
                cu_seqlens=everything,
                cu_window_seqlens=everything,
                patches_per_picture=num_patches,
            ).pooler_output
        return merged.view(num_seconds, -1, merged.shape[-1])


@contextmanager
def _fast_kernels(visual: nn.Module) -> Iterator[None]:
    """Lend a tower the kernels of this file; the weights stay its own."""
    attention, projection = visual.config._attn_implementation, visual.patch_embed.proj
    visual.patch_embed.proj = PatchProduct.of(projection)
    visual.set_attn_implementation(_ATTENTION)
    try:
        yield
    finally:
        visual.patch_embed.proj = projection
        visual.set_attn_implementation(attention)


def _attend_within_pictures(
    module, query, key, value, attention_mask, *, scaling: float, patches_per_picture: int, **_transformers_extras
) -> tuple[torch.Tensor, None]:
    """Full attention inside each run of ``patches_per_picture`` patches; query, key, value [1, H, N, D]."""
    q, k, v = (x[0].unflatten(1, (-1, patches_per_picture)).transpose(0, 1) for x in (query, key, value))
    weights = torch.softmax(q @ k.transpose(-1, -2) * scaling, dim=-1)
    return (weights @ v).transpose(1, 2).flatten(0, 1)[None], None


AttentionInterface.register(_ATTENTION, _attend_within_pictures)
