"""Datasets whose examples are generated: an example depends only on the seed and its index."""

from typing import Any

from torch.utils.data import Dataset

from streamingvlm.pitch.dice import Dice, hashed


class SeededDataset(Dataset):
    """``num_examples`` generated examples; a subclass implements `draw`."""

    def __init__(self, *, num_examples: int, seed: int):
        self.num_examples = num_examples
        self.seed = seed

    def __len__(self) -> int:
        return self.num_examples

    def __getitem__(self, index: int) -> Any:
        """Return the example with an index. Raises IndexError."""
        if not 0 <= index < self.num_examples:
            raise IndexError(f"example {index} of {self.num_examples}")
        return self.draw(index, Dice(hashed(self.seed, index)))

    def draw(self, index: int, dice: Dice) -> Any:
        """Generate the example with an index from random numbers of its own."""
        raise NotImplementedError
