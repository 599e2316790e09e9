"""Token-bucket rate limits, one bucket per client address."""

import time
from collections import OrderedDict
from dataclasses import dataclass

_MAX_ADDRESSES = 10_000


@dataclass
class TokenBucket:
    """A bucket of at most ``size`` tokens, refilled at ``rate_per_s``; each request takes some."""

    rate_per_s: float
    size: float

    def __post_init__(self):
        self._level, self._updated_at_s = self.size, time.monotonic()

    def take(self, cost: float = 1.0) -> float:
        """Take tokens and return 0; if there are too few, take none and return the seconds until there are enough."""
        now_s = time.monotonic()
        self._level = min(self.size, self._level + (now_s - self._updated_at_s) * self.rate_per_s)
        self._updated_at_s = now_s
        if self._level < cost:
            return (cost - self._level) / self.rate_per_s
        self._level -= cost
        return 0.0


class AddressRateLimiter:
    """One token bucket per address; the least recently used are evicted beyond 10,000."""

    def __init__(self, rate_per_s: float, burst: float):
        self._rate_per_s, self._burst = rate_per_s, burst
        self._buckets: OrderedDict[str, TokenBucket] = OrderedDict()

    def take(self, address: str) -> float:
        """Take a token for a request of this address; see ``TokenBucket.take``."""
        bucket = self._buckets.setdefault(address, TokenBucket(self._rate_per_s, self._burst))
        self._buckets.move_to_end(address)
        if len(self._buckets) > _MAX_ADDRESSES:
            self._buckets.popitem(last=False)
        return bucket.take()
