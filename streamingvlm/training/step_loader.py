"""Loads the micro-batches of a `BatchPlan` for one process, step by step."""

from collections.abc import Callable, Iterator
from functools import partial
from itertools import islice, tee

import torch
from torch.utils.data import DataLoader, Dataset

from streamingvlm.errors import DataError
from streamingvlm.training.bad_examples import BadExample, BadExamples, ErrorAsValueDataset
from streamingvlm.training.batch_plan import BatchPlan, MicroBatch


class StepLoader:
    """Iterates over steps; each item is the list of collated micro-batches of this process.

    batch_transform: applied to each batch in this process, which has the device, not in the workers.
    first_step: called when iteration begins.
    max_bad_fraction: share of the examples that may be skipped because their video cannot be read.
    The DataLoader's ``num_workers`` processes prefetch batches across step boundaries.
    """

    def __init__(
        self,
        dataset: Dataset,
        collate: Callable[[list], dict],
        plan: BatchPlan,
        *,
        process_index: int = 0,
        num_workers: int = 0,
        pin_memory: bool = False,
        batch_transform: Callable[[dict], dict] | None = None,
        first_step: Callable[[], int] = int,
        max_bad_fraction: float = 0.0,
    ):
        self.dataset = dataset
        self.collate = collate
        self.plan = plan
        self.process_index = process_index
        self.num_workers = num_workers
        self.pin_memory = pin_memory
        self.batch_transform = batch_transform
        self.first_step = first_step
        self.bad = BadExamples(plan.num_examples, max_bad_fraction)
        self._last_batch: dict | None = None

    def __len__(self) -> int:
        return self.plan.num_steps

    def __iter__(self) -> Iterator[list[dict]]:
        first_step = self.first_step()
        steps = range(first_step, self.plan.num_steps)
        planned, prefetched = tee(self.plan.micro_batches(step, self.process_index) for step in steps)
        batches = iter(
            DataLoader(
                ErrorAsValueDataset(self.dataset),
                batch_sampler=_BatchSampler(prefetched),
                collate_fn=partial(_collate_good, self.collate),
                num_workers=self.num_workers,
                pin_memory=self.pin_memory,
                # DataLoader draws a seed here; from the global stream it would change the dropout of a resumed run.
                generator=torch.Generator(),
            )
        )
        for step, micro_batches in enumerate(planned, start=first_step + 1):
            loaded = zip(micro_batches, islice(batches, len(micro_batches)), strict=True)
            batches_of_step = [self._transformed(micro_batch, *batch) for micro_batch, batch in loaded]
            if step == self.plan.num_steps:
                next(batches, None)  # exhausts the DataLoader, which then stops its workers
            yield batches_of_step

    def _transformed(self, micro_batch: MicroBatch, batch: dict | None, bad: list[BadExample]) -> dict:
        for example in bad:
            self.bad.add(example)
        if batch is None:  # all processes run the same number of passes
            return _with_zero_weights(self._last_batch or self._readable_batch())
        self._last_batch = batch = self.batch_transform(batch) if self.batch_transform else batch
        return _with_zero_weights(batch) if micro_batch.is_padding else batch

    def _readable_batch(self) -> dict:
        """Return a batch of the first example that can be read."""
        examples = ErrorAsValueDataset(self.dataset)
        for index in range(self.plan.num_examples):
            batch, bad = _collate_good(self.collate, [examples[index]])
            if batch is not None:
                return self.batch_transform(batch) if self.batch_transform else batch
            self.bad.add(bad[0])
        raise DataError("no example can be read; mend the videos, or prepare the data again")


def _collate_good(collate: Callable[[list], dict], examples: list) -> tuple[dict | None, list[BadExample]]:
    """Return the batch of the examples that could be read, None if there are none, and the others."""
    bad = [example for example in examples if isinstance(example, BadExample)]
    good = [example for example in examples if not isinstance(example, BadExample)]
    return collate(good) if good else None, bad


class _BatchSampler:
    """Flattens steps of micro-batches into DataLoader's lists of indices."""

    def __init__(self, steps: Iterator[list[MicroBatch]]):
        self.steps = steps

    def __iter__(self) -> Iterator[list[int]]:
        return (list(micro_batch.examples) for step in self.steps for micro_batch in step)


def _with_zero_weights(batch: dict) -> dict:
    return {**batch, "weights": torch.zeros_like(batch.get("weights", torch.ones(1)))}
