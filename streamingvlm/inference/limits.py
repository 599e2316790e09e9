"""Limits that end a stream early, and how to tell running out of memory from a bug."""

from dataclasses import dataclass

import torch

from streamingvlm.errors import EngineFull
from streamingvlm.inference.stats import SessionStats

_BYTES_PER_MB = 1024 * 1024
# torch raises a plain RuntimeError when the memory of a CPU is used up.
_CPU_MEMORY_MESSAGE = "can't allocate memory"


@dataclass(frozen=True)
class StreamLimits:
    """When a stream is ended early; None is no limit.

    cache_mb: memory of the cache's tensors; busy_s: seconds of work in total.
    """

    cache_mb: float | None = None
    busy_s: float | None = None

    def exceeded(self, stats: SessionStats, cache_bytes: int) -> str:
        """Return which limit a stream exceeds, in words, "" if none."""
        cache_mb = cache_bytes / _BYTES_PER_MB
        after = f"after {stats.stream_s:.0f} s of stream"
        if self.cache_mb is not None and cache_mb > self.cache_mb:
            return f"the cache took {cache_mb:.0f} MB {after}, more than {self.cache_mb:g}"
        if self.busy_s is not None and stats.busy_s > self.busy_s:
            return f"the work took {stats.busy_s:.0f} s {after}, more than {self.busy_s:g}"
        return ""


def is_out_of_memory(error: BaseException) -> bool:
    """Return True if an error says that memory is used up: of a device, of the host, or of an engine."""
    if isinstance(error, torch.OutOfMemoryError | MemoryError | EngineFull):
        return True
    return isinstance(error, RuntimeError) and _CPU_MEMORY_MESSAGE in str(error)
