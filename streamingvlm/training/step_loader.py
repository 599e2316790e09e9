"""Loads the micro-batches of a `BatchPlan` for one process, step by step."""

from collections.abc import Callable, Iterator
from functools import partial
from itertools import islice, tee

import torch
from torch.utils.data import DataLoader, Dataset

from streamingvlm.errors import StreamingVLMError
from streamingvlm.training.batch_plan import BatchPlan, MicroBatch


class StepLoader:
    """Iterates over steps; each item is the list of collated micro-batches of this process.

    batch_transform: applied to each batch in this process, which has the device, not in the workers.
    first_step: called when iteration begins.
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
    ):
        self.dataset = dataset
        self.collate = collate
        self.plan = plan
        self.process_index = process_index
        self.num_workers = num_workers
        self.pin_memory = pin_memory
        self.batch_transform = batch_transform
        self.first_step = first_step

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
                collate_fn=partial(_collate_or_error, self.collate),
                num_workers=self.num_workers,
                pin_memory=self.pin_memory,
                # DataLoader draws a seed here; from the global stream it would change the dropout of a resumed run.
                generator=torch.Generator(),
            )
        )
        for step, micro_batches in enumerate(planned, start=first_step + 1):
            loaded = zip(micro_batches, islice(batches, len(micro_batches)), strict=True)
            batches_of_step = [self._transformed(micro_batch, batch) for micro_batch, batch in loaded]
            if step == self.plan.num_steps:
                next(batches, None)  # exhausts the DataLoader, which then stops its workers
            yield batches_of_step

    def _transformed(self, micro_batch: MicroBatch, batch: dict | StreamingVLMError) -> dict:
        if isinstance(batch, StreamingVLMError):
            raise batch
        batch = self.batch_transform(batch) if self.batch_transform else batch
        return _with_zero_weights(batch) if micro_batch.is_padding else batch


class ErrorAsValueDataset(Dataset):
    """Returns the errors of a dataset as values: DataLoader would bury an error raised in a worker in tracebacks."""

    def __init__(self, dataset: Dataset):
        self.dataset = dataset

    def __getitem__(self, index: int):
        try:
            return self.dataset[index]
        except StreamingVLMError as error:
            return error


def _collate_or_error(collate: Callable[[list], dict], examples: list) -> dict | StreamingVLMError:
    error = next((example for example in examples if isinstance(example, StreamingVLMError)), None)
    return collate(examples) if error is None else error


class _BatchSampler:
    """Flattens steps of micro-batches into DataLoader's lists of indices."""

    def __init__(self, steps: Iterator[list[MicroBatch]]):
        self.steps = steps

    def __iter__(self) -> Iterator[list[int]]:
        return (list(micro_batch.examples) for step in self.steps for micro_batch in step)


def _with_zero_weights(batch: dict) -> dict:
    return {**batch, "weights": torch.zeros_like(batch.get("weights", torch.ones(1)))}
