"""Joint training of the vision tower and the language model of the embedded model, from frames.

The tower's own pretraining supervises the mean of a frame's tokens, which shows who is at the ball. If two players are
close to it, a mean does not show which of them struck the ball. The commentary does, and joint training lets its loss
reach the tower.
"""

import torch
from transformers import Qwen2_5_VLForConditionalGeneration

from streamingvlm.training.pitch.pitch_footage import patches_of
from streamingvlm.training.pitch.tower import Tower
from streamingvlm.training.sft_model import SFTModel


class SFTModelWithTower(SFTModel):
    """`SFTModel` with a trainable vision tower that takes frames, encoded by the kernels of `Tower`."""

    def __init__(self, model: Qwen2_5_VLForConditionalGeneration):
        super().__init__(model, train_vision=True)
        self._tower = [Tower(model)]  # in a list: its weights are part of this module already

    def forward(self, vision: torch.Tensor, **batch) -> dict[str, torch.Tensor]:
        """Take frames uint8 [S, F, 3, H, W] as vision, empty in a batch of drills; return the losses of `SFTModel`."""
        if len(vision):
            (tower,) = self._tower
            frames = vision.to(torch.uint8)  # float after concatenation with the empty vision of a drill
            vision = tower(patches_of(frames, tower)).flatten(0, 1)
        return super().forward(vision=vision, **batch)
