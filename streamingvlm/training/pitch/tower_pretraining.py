"""Pretraining of the vision tower, before the language model is trained.

Trained end to end from random weights, a model of this size learns the statistics of the text and hardly uses vision.
So the tower is trained first: temporary linear heads on the mean of a turn's tokens classify the event and the colour
of the player at the ball. Attention can read what a linear layer can read off a mean.
"""

from collections.abc import Sequence

import torch
from torch import nn

from streamingvlm.pitch.dice import Dice
from streamingvlm.pitch.field import side_of
from streamingvlm.pitch.script import EventKind
from streamingvlm.pitch.world import COLOURS, KINDS, PitchSecond
from streamingvlm.training.examples import IGNORED_LABEL
from streamingvlm.training.pitch.pitch_footage import NUM_MIRRORINGS, Footage, mirrored, patches_of
from streamingvlm.training.pitch.seeded_dataset import SeededDataset
from streamingvlm.training.pitch.tower import Tower

# The frames of an outcome do not show who took the shot.
_EVENTS_WITHOUT_VISIBLE_ACTOR = frozenset({EventKind.GOAL, EventKind.SAVE, EventKind.WIDE})


class TowerDataset(SeededDataset):
    """Single seconds of footage, mirrored at random; half are drawn uniformly, half with all event kinds balanced."""

    def __init__(self, footage: Sequence[Footage], *, num_examples: int, seed: int):
        self.footage = footage
        super().__init__(num_examples=num_examples, seed=seed)
        samples = [(match, index) for match in footage for index in range(len(match))]
        self.by_kind = [[(m, n) for m, n in samples if m.seconds[n].kind is kind] for kind in KINDS]
        self.by_kind = [group for group in self.by_kind if group]
        self.samples = samples

    def draw(self, index: int, dice: Dice) -> tuple[torch.Tensor, int, int]:
        """Return frames [F, 3, H, W], the index of the event kind and that of the colour (or IGNORED_LABEL)."""
        match, number = self.draw_second(index, dice)
        frames = mirrored(match.frames[number], dice.below(NUM_MIRRORINGS))
        return frames, *labels_of(match.seconds[number])

    def draw_second(self, index: int, dice: Dice) -> tuple[Footage, int]:
        """Draw a match and the number of a second in it."""
        group = self.by_kind[dice.below(len(self.by_kind))] if index % 2 else self.samples
        return group[dice.below(len(group))]


class TowerWithHeads(nn.Module):
    """The tower with two auxiliary classification heads."""

    def __init__(self, tower: Tower):
        super().__init__()
        self.tower = tower
        self.kind = nn.Linear(tower.embedding_size, len(KINDS))
        self.colour = nn.Linear(tower.embedding_size, len(COLOURS))

    def forward(self, pixels: torch.Tensor, kinds: torch.Tensor, colours: torch.Tensor) -> dict[str, torch.Tensor]:
        """Return the loss and the logits of both heads, [S, kinds] and [S, colours]."""
        return self.classify(self.tower(pixels).mean(dim=1), kinds, colours)

    def classify(self, mean: torch.Tensor, kinds: torch.Tensor, colours: torch.Tensor) -> dict[str, torch.Tensor]:
        """Return what `forward` does, for the mean tokens [S, D]."""
        kind, colour = self.kind(mean).float(), self.colour(mean).float()
        loss = nn.functional.cross_entropy(kind, kinds)
        if (colours != IGNORED_LABEL).any():
            loss = loss + nn.functional.cross_entropy(colour, colours, ignore_index=IGNORED_LABEL)
        return {"loss": loss, "kind": kind, "colour": colour}

    def collate(self, examples: Sequence[tuple[torch.Tensor, int, int]]) -> dict[str, torch.Tensor]:
        """Make a batch of examples of a `TowerDataset`."""
        frames, kinds, colours = zip(*examples, strict=True)
        return {
            "pixels": patches_of(torch.stack(frames), self.tower),
            "kinds": torch.tensor(kinds),
            "colours": torch.tensor(colours),
        }


def labels_of(second: PitchSecond) -> tuple[int, int]:
    """Return the index of a second's event kind, and that of its colour (or IGNORED_LABEL)."""
    kind = KINDS.index(second.kind)
    if second.actor is None or second.kind in _EVENTS_WITHOUT_VISIBLE_ACTOR:
        return kind, IGNORED_LABEL
    return kind, COLOURS.index(second.colours[side_of(second.actor)])
