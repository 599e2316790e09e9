"""Distillation of the vision tower: filmed seconds get the features that rendered ones had.

The teacher is the tower before the stage and sees each second as rendered; the student sees it as a camera films it.
The language model can read the student's features as it read the teacher's, without further training.
"""

import copy
from collections.abc import Sequence

import torch
from torch import nn

from streamingvlm.pitch.dice import Dice
from streamingvlm.training.pitch.pitch_footage import NUM_MIRRORINGS, mirrored, patches_of
from streamingvlm.training.pitch.tower import Tower
from streamingvlm.training.pitch.tower_pretraining import TowerDataset

# The event and the player at the ball are read off the mean, which a loss per token alone follows slowly.
_MEAN_WEIGHT = 3.0


class FilmedSecondsDataset(TowerDataset):
    """Seconds drawn as in `TowerDataset`, as filmed and as rendered."""

    def draw(self, index: int, dice: Dice) -> tuple[torch.Tensor, torch.Tensor]:
        """Return the filmed and the rendered frames of a second, each [F, 3, H, W], mirrored alike."""
        match, number = self.draw_second(index, dice)
        rendered = match.frames if match.rendered is None else match.rendered
        mirroring = dice.below(NUM_MIRRORINGS)
        return mirrored(match.frames[number], mirroring), mirrored(rendered[number], mirroring)


class TowerWithTeacher(nn.Module):
    """The tower, and a frozen copy of it as it is now."""

    def __init__(self, tower: Tower):
        super().__init__()
        self.tower = tower
        self.teacher = copy.deepcopy(tower).requires_grad_(False)

    def forward(self, filmed: torch.Tensor, rendered: torch.Tensor) -> dict[str, torch.Tensor]:
        """Return the loss: squared errors of the tokens and of their mean, each relative to the teacher's variance."""
        with torch.no_grad():
            target = self.teacher(rendered).float()
        tokens = self.tower(filmed).float()
        loss = (tokens - target).square().mean() / target.var()
        mean, target_mean = tokens.mean(1), target.mean(1)
        return {"loss": loss + _MEAN_WEIGHT * (mean - target_mean).square().mean() / target_mean.var(0).mean()}

    def collate(self, examples: Sequence[tuple[torch.Tensor, torch.Tensor]]) -> dict[str, torch.Tensor]:
        """Make a batch of examples of a `FilmedSecondsDataset`."""
        filmed, rendered = (patches_of(torch.stack(frames), self.tower) for frames in zip(*examples, strict=True))
        return {"filmed": filmed, "rendered": rendered}
