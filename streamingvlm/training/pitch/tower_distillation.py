"""Distillation of the vision tower: filmed seconds get the features that rendered ones have.

The teacher is the tower of the recipe's base and sees each second as rendered; the student sees it as filmed. The
language model can read the student's features as it read the teacher's, without further training. The heads of
`TowerWithHeads` make the student keep what decides a line, which is a small part of the features.
"""

from collections.abc import Sequence

import torch

from streamingvlm.pitch.dice import Dice
from streamingvlm.training.pitch.pitch_footage import NUM_MIRRORINGS, mirrored, patches_of
from streamingvlm.training.pitch.tower import Tower
from streamingvlm.training.pitch.tower_pretraining import TowerDataset, TowerWithHeads, labels_of

_MEAN_WEIGHT = 3.0  # of the mean token, from which the event and the player at the ball are read
_HEADS_WEIGHT = 0.3


class FilmedSecondsDataset(TowerDataset):
    """Seconds drawn as in `TowerDataset`, as filmed and as rendered."""

    def draw(self, index: int, dice: Dice) -> tuple[torch.Tensor, torch.Tensor, int, int]:
        """Return the filmed and the rendered frames of a second, [F, 3, H, W] each, and its labels."""
        match, number = self.draw_second(index, dice)
        rendered = match.frames if match.rendered is None else match.rendered
        mirroring = dice.below(NUM_MIRRORINGS)
        filmed, rendered = (mirrored(frames[number], mirroring) for frames in (match.frames, rendered))
        return filmed, rendered, *labels_of(match.seconds[number])


class TowerWithTeacher(TowerWithHeads):
    """The tower with heads, and a frozen teacher."""

    def __init__(self, tower: Tower, teacher: Tower):
        super().__init__(tower)
        self.teacher = teacher.requires_grad_(False)

    def forward(
        self, filmed: torch.Tensor, rendered: torch.Tensor, kinds: torch.Tensor, colours: torch.Tensor
    ) -> dict[str, torch.Tensor]:
        """Return the loss, and the logits of both heads for the filmed seconds.

        The loss is the squared errors of the tokens and of their mean, relative to the teacher's variances, plus that
        of the heads.
        """
        with torch.no_grad():
            target = self.teacher(rendered).float()
        tokens = self.tower(filmed).float()
        mean, target_mean = tokens.mean(1), target.mean(1)
        loss = (tokens - target).square().mean() / target.var()
        loss = loss + _MEAN_WEIGHT * (mean - target_mean).square().mean() / target_mean.var(0).mean()
        heads = self.classify(mean, kinds, colours)
        return heads | {"loss": loss + _HEADS_WEIGHT * heads["loss"]}

    def collate(self, examples: Sequence[tuple[torch.Tensor, torch.Tensor, int, int]]) -> dict[str, torch.Tensor]:
        """Make a batch of examples of a `FilmedSecondsDataset`."""
        filmed, rendered, kinds, colours = zip(*examples, strict=True)
        return {
            "filmed": patches_of(torch.stack(filmed), self.tower),
            "rendered": patches_of(torch.stack(rendered), self.tower),
            "kinds": torch.tensor(kinds),
            "colours": torch.tensor(colours),
        }
