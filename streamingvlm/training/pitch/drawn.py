"""Datasets that are drawn rather than stored: an example depends on the seed and its own number alone."""

from typing import Any

from torch.utils.data import Dataset

from streamingvlm.pitch.dice import Dice, hashed


class DrawnDataset(Dataset):
    """``num_examples`` examples; a subclass says how one is drawn."""

    def __init__(self, *, num_examples: int, seed: int):
        self.num_examples = num_examples
        self.seed = seed

    def __len__(self) -> int:
        return self.num_examples

    def __getitem__(self, index: int) -> Any:
        """Return the example of a number. Raises IndexError."""
        if not 0 <= index < self.num_examples:
            raise IndexError(f"example {index} of {self.num_examples}")
        return self.draw(index, Dice(hashed(self.seed, index)))

    def draw(self, index: int, dice: Dice) -> Any:
        """Draw the example of a number with dice of its own."""
        raise NotImplementedError
