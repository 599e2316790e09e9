"""Joint training of the vision tower and the language model of the embedded model, from frames.

The tower's own pretraining supervises the mean of a frame's tokens, which shows who is at the ball. If two players are
close to it, a mean does not show which of them struck the ball. The commentary does, and joint training lets its loss
reach the tower.
"""

import torch
from torch import nn
from transformers import Qwen2_5_VLForConditionalGeneration

from streamingvlm.training.pitch.pitch_footage import patches_of
from streamingvlm.training.pitch.tower import Tower
from streamingvlm.training.sft_model import SFTModel


class SFTModelWithTower(nn.Module):
    """`SFTModel` with a trainable vision tower that takes frames.

    model: shares its weights with this module.
    """

    def __init__(self, model: Qwen2_5_VLForConditionalGeneration):
        super().__init__()
        self.sft_model = SFTModel(model)
        self.tower = Tower(model)
        self.tower.requires_grad_(True)

    def forward(self, vision: torch.Tensor, **batch) -> dict[str, torch.Tensor]:
        """Take frames uint8 [S, F, 3, H, W] as vision, empty in a batch of drills; return the losses of `SFTModel`."""
        if len(vision):
            frames = vision.to(torch.uint8)  # float after concatenation with the empty vision of a drill
            vision = self.tower(patches_of(frames, self.tower)).flatten(0, 1)
        return self.sft_model(vision=vision, **batch)
