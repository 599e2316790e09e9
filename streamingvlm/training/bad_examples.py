"""Examples whose video cannot be read: skipped, named and counted, until they are too many."""

import logging
from typing import NamedTuple

from torch.utils.data import Dataset

from streamingvlm.errors import DataError, StreamingVLMError, VideoError

_LOG = logging.getLogger(__name__)


class BadExample(NamedTuple):
    """An example that could not be read, and why."""

    index: int
    error: StreamingVLMError


class ErrorAsValueDataset(Dataset):
    """Returns the errors of a dataset as values: DataLoader would bury an error raised in a worker in tracebacks."""

    def __init__(self, dataset: Dataset):
        self.dataset = dataset

    def __getitem__(self, index: int):
        try:
            return self.dataset[index]
        except StreamingVLMError as error:
            return BadExample(index, error)


class BadExamples:
    """The bad examples that a process has met.

    num_examples: of the dataset; max_fraction: the largest share of them that may be bad. At 0 the first one ends the
    run with its own error.
    """

    def __init__(self, num_examples: int, max_fraction: float):
        self.num_examples = num_examples
        self.max_fraction = max_fraction
        self._indices: set[int] = set()

    def __len__(self) -> int:
        return len(self._indices)

    def add(self, bad: BadExample):
        """Log a bad example. Raises its error if it may not be skipped, and DataError if there are too many."""
        if not (self.max_fraction and isinstance(bad.error, VideoError)):
            raise bad.error
        if bad.index in self._indices:
            return
        self._indices.add(bad.index)
        share = f"{len(self)} of {self.num_examples} examples"
        _LOG.warning("skipped an example, %s so far: %s", share, bad.error)
        if len(self) > self.max_fraction * self.num_examples:
            raise DataError(
                f"{share} cannot be read, more than max_bad_fraction={self.max_fraction:g}; the last: {bad.error}; "
                "mend the videos, or raise max_bad_fraction"
            )
