"""Teaching the vision tower to see before the language model learns to speak.

Taught end to end from nothing, a model of this size learns the words' statistics and hardly looks. So the tower comes
first: throw-away linear heads on the mean of a picture's tokens must tell the event and the colour of the player at the
ball. What one linear layer can read off a mean, attention can.
"""

from collections.abc import Sequence

import torch
from torch import nn

from streamingvlm.pitch.dice import Dice
from streamingvlm.pitch.field import side_of
from streamingvlm.pitch.script import EventKind
from streamingvlm.pitch.world import COLOURS, KINDS, PitchSecond
from streamingvlm.training.examples import IGNORED_LABEL
from streamingvlm.training.pitch.drawn import DrawnDataset
from streamingvlm.training.pitch.footage import NUM_MIRRORINGS, Footage, mirrored, pixels_of
from streamingvlm.training.pitch.tower import Tower

# Who took the shot cannot be seen in the second of its outcome.
_ACTOR_UNSEEN = frozenset({EventKind.GOAL, EventKind.SAVE, EventKind.WIDE})


class SecondDataset(DrawnDataset):
    """Single seconds of footage, mirrored at random; every other one is drawn evenly by kind, the rest as they come."""

    def __init__(self, footage: Sequence[Footage], *, num_examples: int, seed: int):
        self.footage = footage
        super().__init__(num_examples=num_examples, seed=seed)
        places = [(film, place) for film in footage for place in range(len(film))]
        self.by_kind = [[(f, p) for f, p in places if f.seconds[p].kind is kind] for kind in KINDS]
        self.by_kind = [group for group in self.by_kind if group]
        self.places = places

    def draw(self, index: int, dice: Dice) -> tuple[torch.Tensor, int, int]:
        """Return frames [F, 3, H, W], the kind's number and the colour's (or -100)."""
        group = self.by_kind[dice.below(len(self.by_kind))] if index % 2 else self.places
        film, place = group[dice.below(len(group))]
        second = film.seconds[place]
        frames = mirrored(film.frames[place], dice.below(NUM_MIRRORINGS))
        return frames, KINDS.index(second.kind), _colour_number(second)


class TowerWithHeads(nn.Module):
    """The tower under its two auxiliary heads."""

    def __init__(self, tower: Tower):
        super().__init__()
        self.tower = tower
        self.kind = nn.Linear(tower.embedding_size, len(KINDS))
        self.colour = nn.Linear(tower.embedding_size, len(COLOURS))

    def forward(self, pixels: torch.Tensor, kinds: torch.Tensor, colours: torch.Tensor) -> dict[str, torch.Tensor]:
        """Return the loss and the two logits, [S, kinds] and [S, colours]."""
        mean = self.tower(pixels).mean(dim=1)
        kind, colour = self.kind(mean).float(), self.colour(mean).float()
        loss = nn.functional.cross_entropy(kind, kinds)
        if (colours != IGNORED_LABEL).any():
            loss = loss + nn.functional.cross_entropy(colour, colours, ignore_index=IGNORED_LABEL)
        return {"loss": loss, "kind": kind, "colour": colour}

    def collate(self, examples: Sequence[tuple[torch.Tensor, int, int]]) -> dict[str, torch.Tensor]:
        """Make a batch of examples of a `SecondDataset`."""
        frames, kinds, colours = zip(*examples, strict=True)
        return {
            "pixels": pixels_of(torch.stack(frames), self.tower),
            "kinds": torch.tensor(kinds),
            "colours": torch.tensor(colours),
        }


def _colour_number(second: PitchSecond) -> int:
    if second.actor is None or second.kind in _ACTOR_UNSEEN:
        return IGNORED_LABEL
    return COLOURS.index(second.colours[side_of(second.actor)])
