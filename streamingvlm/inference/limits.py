"""When a stream is ended before its time, and how running out of memory is told from a bug."""

from dataclasses import dataclass

import torch

from streamingvlm.errors import EngineFull
from streamingvlm.inference.session import StreamingSession

_BYTES_PER_MB = 1024 * 1024
# torch raises a bare RuntimeError where the memory of a CPU is spent.
_CPU_MEMORY_MESSAGE = "can't allocate memory"


@dataclass(frozen=True)
class StreamLimits:
    """When a stream is ended before its time; None is no limit.

    cache_mb: memory of the cache's tensors; busy_s: seconds of work in all.
    """

    cache_mb: float | None = None
    busy_s: float | None = None

    def passed_by(self, session: StreamingSession) -> str:
        """Which limit a stream has passed, "" if none."""
        cache_mb, busy_s = session.decoder.kv.num_bytes / _BYTES_PER_MB, session.stats.busy_s
        after = f"after {session.stats.stream_s:.0f} s of stream"
        if self.cache_mb is not None and cache_mb > self.cache_mb:
            return f"the cache took {cache_mb:.0f} MB {after}, more than {self.cache_mb:g}"
        if self.busy_s is not None and busy_s > self.busy_s:
            return f"the work took {busy_s:.0f} s {after}, more than {self.busy_s:g}"
        return ""


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an error says that memory is spent: of a device, of the host, or what an engine was given."""
    if isinstance(error, torch.OutOfMemoryError | MemoryError | EngineFull):
        return True
    return isinstance(error, RuntimeError) and _CPU_MEMORY_MESSAGE in str(error)
