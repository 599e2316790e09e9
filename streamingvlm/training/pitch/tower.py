"""The vision tower for batches of many small frames, as training needs it.

transformers runs one attention per frame, and its patch embedding is a convolution whose stride equals its kernel. For
hundreds of small frames on a CPU, both cost many times the arithmetic. Here all frames share one batched product. The
weights, their names and the result are the same.
"""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import nn
from transformers import AttentionInterface, Qwen2_5_VLForConditionalGeneration

from streamingvlm.model.family import FAMILIES
from streamingvlm.model.patch_layers import PatchProduct
from streamingvlm.training.pitch.architecture import FRAME_SIZE

_ATTENTION = "streamingvlm_frames"


class Tower(nn.Module):
    """The vision tower of a model, for frames of one size: patches [S * patches, values] to tokens [S, V, D]."""

    def __init__(self, model: Qwen2_5_VLForConditionalGeneration):
        super().__init__()
        self.visual = model.model.visual
        self.family = FAMILIES["qwen2_5_vl"].with_vision_config(model.config.vision_config.to_dict())
        self.side = FRAME_SIZE // self.family.patch_size

    @property
    def embedding_size(self) -> int:
        """Width D of a token."""
        return self.visual.config.out_hidden_size

    def forward(self, pixels: torch.Tensor) -> torch.Tensor:
        """Encode the patches of S turns of two frames each."""
        num_patches = self.side**2
        num_turns = pixels.shape[0] // num_patches
        grid = torch.tensor([[num_turns, self.side, self.side]], device=pixels.device)
        cu_seqlens = torch.tensor([0, pixels.shape[0]], dtype=torch.int32, device=pixels.device)
        with _fast_kernels(self.visual):
            merged = self.visual(
                pixels,
                grid_thw=grid,
                cu_seqlens=cu_seqlens,
                cu_window_seqlens=cu_seqlens,
                patches_per_frame=num_patches,
            ).pooler_output
        return merged.view(num_turns, -1, merged.shape[-1])


@contextmanager
def _fast_kernels(visual: nn.Module) -> Iterator[None]:
    """Use the kernels of this file in a tower for the duration of a block; the weights do not change."""
    attention, projection = visual.config._attn_implementation, visual.patch_embed.proj
    visual.patch_embed.proj = PatchProduct.of(projection)
    visual.set_attn_implementation(_ATTENTION)
    try:
        yield
    finally:
        visual.patch_embed.proj = projection
        visual.set_attn_implementation(attention)


def _attend_within_frames(
    module, query, key, value, attention_mask, *, scaling: float, patches_per_frame: int, **_unused
) -> tuple[torch.Tensor, None]:
    """Full attention inside each run of ``patches_per_frame`` patches; query, key, value [1, H, N, D]."""
    q, k, v = (x[0].unflatten(1, (-1, patches_per_frame)).transpose(0, 1) for x in (query, key, value))
    weights = torch.softmax(q @ k.transpose(-1, -2) * scaling, dim=-1)
    return (weights @ v).transpose(1, 2).flatten(0, 1)[None], None


AttentionInterface.register(_ATTENTION, _attend_within_frames)
