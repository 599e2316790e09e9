"""Which examples each step of training learns from: a pure function, so that no sampler has a state to be saved.

Step s of a run takes the examples that (seed, epoch) put there, whatever the number of processes, the micro-batches
and the packing. A run that goes on from step s asks for step s.
"""

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache, partial
from itertools import islice, tee

import numpy as np
import torch
from torch.utils.data import DataLoader, Dataset

from streamingvlm.errors import ConfigError, StreamingVLMError
from streamingvlm.training.packing import pack
from streamingvlm.training.settings import FitSettings


@dataclass(frozen=True)
class MicroBatch:
    """Examples that go through the model together.

    is_idle: another process has more to do in this step. All processes must run as often, so that this one runs
        along on examples that are not its own and count for nothing.
    """

    examples: tuple[int, ...]
    is_idle: bool = False


@dataclass(frozen=True)
class Order:
    """The examples of every step, and how a step is shared out.

    num_micro_batches: of a step, all processes together; with ``pack_tokens`` it is the number of processes, and each
        gets as many packs as the fullest needs.
    length_of: tokens of an example; packing asks for it.
    seed: None keeps the examples as they come.
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
        """Steps in which every example comes once."""
        return math.ceil(self.num_examples / self.batch_size)

    def epoch_at(self, step: int) -> float:
        """Passes over the data before ``step``."""
        return step / self.steps_per_epoch

    def examples(self, step: int) -> list[int]:
        """The examples of a step; fewer than ``batch_size`` at the end of an epoch."""
        epoch, place = divmod(step, self.steps_per_epoch)
        start = place * self.batch_size
        return _permutation(self.num_examples, self.seed, epoch)[start : start + self.batch_size].tolist()

    def micro_batches(self, step: int, process: int) -> list[MicroBatch]:
        """The micro-batches of a step that ``process`` computes; all processes have as many."""
        examples = self.examples(step)
        groups = self._packs(examples) if self.pack_tokens else self._shares(examples)
        num_missing = -len(groups) % self.num_processes
        idle = MicroBatch(groups[-1].examples, is_idle=True)
        return [*groups, *[idle] * num_missing][process :: self.num_processes]

    def _shares(self, examples: Sequence[int]) -> list[MicroBatch]:
        num_shares = self.num_processes * self.accumulation_steps
        shares = [tuple(examples[number::num_shares]) for number in range(num_shares)]
        return [MicroBatch(share) if share else MicroBatch((examples[0],), is_idle=True) for share in shares]

    def _packs(self, examples: Sequence[int]) -> list[MicroBatch]:
        """Full packs first: processes that run at the same time have about as much to do."""
        lengths = [self.length_of(example) for example in examples]
        packs = sorted(pack(lengths, self.pack_tokens), key=lambda items: -sum(lengths[item] for item in items))
        return [MicroBatch(tuple(examples[item] for item in items)) for items in packs]


def order_of(
    dataset: Dataset,
    settings: FitSettings,
    *,
    num_processes: int,
    seed: int | None,
    num_epochs: int | None = None,
) -> Order:
    """The order of a dataset under these settings; ``num_epochs`` goes before their own length.

    Raises ConfigError where settings, data and processes do not fit each other.
    """
    if not len(dataset):
        raise ConfigError("the data holds no example; choose another split, or prepare it again")
    if settings.batch_size < num_processes and not settings.pack_tokens:
        raise ConfigError(
            f"batch_size={settings.batch_size} leaves some of {num_processes} processes without work; give "
            f"{num_processes} or more"
        )
    if settings.pack_tokens and not hasattr(dataset, "length"):
        raise ConfigError(f"pack_tokens={settings.pack_tokens}, but {type(dataset).__name__} knows no lengths; give 0")
    steps_per_epoch = -(-len(dataset) // settings.batch_size)
    return Order(
        num_examples=len(dataset),
        batch_size=settings.batch_size,
        num_steps=num_epochs * steps_per_epoch if num_epochs else settings.steps_for(len(dataset)),
        num_processes=num_processes,
        accumulation_steps=settings.accumulation_steps,
        pack_tokens=settings.pack_tokens,
        length_of=getattr(dataset, "length", None),
        seed=seed,
    )


@lru_cache(maxsize=2)
def _permutation(num_examples: int, seed: int | None, epoch: int) -> np.ndarray:
    if seed is None:
        return np.arange(num_examples)
    return np.random.default_rng([seed, epoch]).permutation(num_examples)


class Steps:
    """An order as one process goes through it: step by step, its micro-batches as ``collate`` makes them.

    finish: done to each batch in this process, which has the device. first_step: asked when iteration begins.
    Batches are prepared ahead by ``num_workers`` processes, across steps.
    """

    def __init__(
        self,
        dataset: Dataset,
        collate: Callable[[list], dict],
        order: Order,
        *,
        process: int = 0,
        num_workers: int = 0,
        pin_memory: bool = False,
        finish: Callable[[dict], dict] | None = None,
        first_step: Callable[[], int] = int,
    ):
        self.dataset = dataset
        self.collate = collate
        self.order = order
        self.process = process
        self.num_workers = num_workers
        self.pin_memory = pin_memory
        self.finish = finish
        self.first_step = first_step

    def __len__(self) -> int:
        return self.order.num_steps

    def __iter__(self) -> Iterator[list[dict]]:
        first_step = self.first_step()
        steps = range(first_step, self.order.num_steps)
        planned, ahead = tee(self.order.micro_batches(step, self.process) for step in steps)
        batches = iter(
            DataLoader(
                _Telling(self.dataset),
                batch_sampler=_Examples(ahead),
                collate_fn=partial(_collated, self.collate),
                num_workers=self.num_workers,
                pin_memory=self.pin_memory,
                # Its seed is drawn from a stream of its own: dropout must not depend on where a run was broken off.
                generator=torch.Generator(),
            )
        )
        for step, micro_batches in enumerate(planned, start=first_step + 1):
            pulled = zip(micro_batches, islice(batches, len(micro_batches)), strict=True)
            batches_of_step = [self._finished(micro_batch, batch) for micro_batch, batch in pulled]
            if step == self.order.num_steps:
                next(batches, None)  # at its end the loader lets its workers go, and nobody will come for another step
            yield batches_of_step

    def _finished(self, micro_batch: MicroBatch, batch: dict | StreamingVLMError) -> dict:
        if isinstance(batch, StreamingVLMError):
            raise batch
        batch = self.finish(batch) if self.finish else batch
        return _counting_for_nothing(batch) if micro_batch.is_idle else batch


class _Telling(Dataset):
    """A dataset that returns what is wrong with an example: raised in a worker, it would come with pages around it."""

    def __init__(self, dataset: Dataset):
        self.dataset = dataset

    def __getitem__(self, index: int):
        try:
            return self.dataset[index]
        except StreamingVLMError as error:
            return error


def _collated(collate: Callable[[list], dict], examples: list) -> dict | StreamingVLMError:
    wrong = next((example for example in examples if isinstance(example, StreamingVLMError)), None)
    return collate(examples) if wrong is None else wrong


class _Examples:
    """What DataLoader wants of a batch sampler, from steps of micro-batches."""

    def __init__(self, steps: Iterator[list[MicroBatch]]):
        self.steps = steps

    def __iter__(self) -> Iterator[list[int]]:
        return (list(micro_batch.examples) for step in self.steps for micro_batch in step)


def _counting_for_nothing(batch: dict) -> dict:
    return {**batch, "weights": torch.zeros_like(batch.get("weights", torch.ones(1)))}
