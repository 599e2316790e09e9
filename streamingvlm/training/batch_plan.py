"""Which examples each training step uses: a pure function of seed, step, batch_size and the number of examples.

No sampler state has to be saved: a run that resumes at step s asks the plan for step s. The number of processes, the
micro-batches and the packing do not change the examples of a step.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from torch.utils.data import Dataset

from streamingvlm.errors import ConfigError
from streamingvlm.training.packing import pack
from streamingvlm.training.settings import FitSettings


@dataclass(frozen=True)
class MicroBatch:
    """Examples that go through the model in one forward pass.

    is_padding: a filler that repeats examples with weight 0, so that all processes run the same number of passes.
    """

    examples: tuple[int, ...]
    is_padding: bool = False


@dataclass(frozen=True)
class BatchPlan:
    """The examples of every step, and how a step is split over processes and micro-batches.

    batch_size: examples of a step, over all processes and micro-batches.
    accumulation_steps: micro-batches of each process and step. With ``pack_tokens`` it has no effect: the number
        of packs decides, and processes with fewer packs get padding.
    length_of: returns the tokens of an example; needed for packing.
    seed: None keeps the examples in the order of the dataset.
    """

    num_examples: int
    batch_size: int
    num_steps: int
    num_processes: int = 1
    accumulation_steps: int = 1
    pack_tokens: int = 0
    length_of: Callable[[int], int] | None = None
    seed: int | None = 0

    @property
    def steps_per_epoch(self) -> int:
        """Steps that use every example once."""
        return math.ceil(self.num_examples / self.batch_size)

    def epoch_at(self, step: int) -> float:
        """Return the passes over the data completed before ``step``."""
        return step / self.steps_per_epoch

    def examples(self, step: int) -> list[int]:
        """Return the examples of a step; fewer than ``batch_size`` at the end of an epoch."""
        epoch, step_in_epoch = divmod(step, self.steps_per_epoch)
        start = step_in_epoch * self.batch_size
        return _permutation(self.num_examples, self.seed, epoch)[start : start + self.batch_size].tolist()

    def micro_batches(self, step: int, process_index: int) -> list[MicroBatch]:
        """Return the micro-batches that a process computes in a step; their number is the same in all processes."""
        examples = self.examples(step)
        groups = self._packs(examples) if self.pack_tokens else self._splits(examples)
        num_missing = -len(groups) % self.num_processes
        padding = MicroBatch(groups[-1].examples, is_padding=True)
        return [*groups, *[padding] * num_missing][process_index :: self.num_processes]

    def _splits(self, examples: Sequence[int]) -> list[MicroBatch]:
        num_splits = self.num_processes * self.accumulation_steps
        splits = [tuple(examples[number::num_splits]) for number in range(num_splits)]
        return [MicroBatch(split) if split else MicroBatch((examples[0],), is_padding=True) for split in splits]

    def _packs(self, examples: Sequence[int]) -> list[MicroBatch]:
        """Sort packs by length, so that processes run packs of similar size at the same time."""
        lengths = [self.length_of(example) for example in examples]
        packs = sorted(pack(lengths, self.pack_tokens), key=lambda items: -sum(lengths[item] for item in items))
        return [MicroBatch(tuple(examples[item] for item in items)) for items in packs]


def plan_batches(
    dataset: Dataset,
    settings: FitSettings,
    *,
    num_processes: int,
    seed: int | None,
    num_epochs: int | None = None,
) -> BatchPlan:
    """Plan the batches of a dataset; ``num_epochs`` overrides the length given in the settings.

    Raises ConfigError if settings, data and number of processes do not fit together.
    """
    if not len(dataset):
        raise ConfigError("the dataset has no examples; choose another split, or prepare the data again")
    batch_size = settings.batch_size_for(len(dataset), num_processes)
    if batch_size < num_processes and not settings.pack_tokens:
        raise ConfigError(
            f"batch_size={batch_size} is smaller than the number of processes; give {num_processes} or more"
        )
    if settings.pack_tokens and not hasattr(dataset, "length"):
        raise ConfigError(
            f"pack_tokens={settings.pack_tokens} needs a dataset with a method length(index), and "
            f"{type(dataset).__name__} has none; give pack_tokens=0"
        )
    steps_per_epoch = -(-len(dataset) // batch_size)
    return BatchPlan(
        num_examples=len(dataset),
        batch_size=batch_size,
        num_steps=num_epochs * steps_per_epoch if num_epochs else settings.steps_for(len(dataset), num_processes),
        num_processes=num_processes,
        accumulation_steps=settings.accumulation_steps or -(-batch_size // num_processes),
        pack_tokens=settings.pack_tokens,
        length_of=getattr(dataset, "length", None),
        seed=seed,
    )


@lru_cache(maxsize=2)
def _permutation(num_examples: int, seed: int | None, epoch: int) -> np.ndarray:
    if seed is None:
        return np.arange(num_examples)
    return np.random.default_rng([seed, epoch]).permutation(num_examples)
