"""Tower and language model, learning together from pictures.

The tower learnt from the mean of a picture's tokens who is at the ball. Which of two players close to it struck the
ball is finer than that, and the words know: what is left of wrong sides is for both to learn at once.
"""

import torch
from torch import nn
from transformers import Qwen2_5_VLForConditionalGeneration

from streamingvlm.training.pitch.footage import pixels_of
from streamingvlm.training.pitch.tower import Tower
from streamingvlm.training.sft_model import SFTModel


class SeeingCommentator(nn.Module):
    """The language model and the tower under it, which learn together from pictures.

    model: shares its weights with this module.
    """

    def __init__(self, model: Qwen2_5_VLForConditionalGeneration):
        super().__init__()
        self.commentator = SFTModel(model)
        self.tower = Tower(model)
        self.tower.requires_grad_(True)

    def forward(self, vision: torch.Tensor, **batch) -> dict[str, torch.Tensor]:
        """As `Commentator`, with frames uint8 [S, F, 3, H, W] for vision, none of them where words alone are asked."""
        if len(vision):
            frames = vision.to(torch.uint8)  # beside a drill, which shows nothing, they have become floats
            vision = self.tower(pixels_of(frames, self.tower)).flatten(0, 1)
        return self.commentator(vision=vision, **batch)
