"""How fast somebody may ask, by buckets that fill with time."""

import time
from collections import OrderedDict
from dataclasses import dataclass

_MAX_ADDRESSES = 10_000


@dataclass
class Bucket:
    """Holds up to ``size`` tokens and gains ``rate_per_s`` of them; an act takes some."""

    rate_per_s: float
    size: float

    def __post_init__(self):
        self._level, self._at_s = self.size, time.monotonic()

    def take(self, cost: float = 1.0) -> float:
        """Take tokens where there are enough, and return 0; else the seconds until there will be."""
        now_s = time.monotonic()
        self._level = min(self.size, self._level + (now_s - self._at_s) * self.rate_per_s)
        self._at_s = now_s
        if self._level < cost:
            return (cost - self._level) / self.rate_per_s
        self._level -= cost
        return 0.0


class AddressRates:
    """A bucket for each address; the addresses that were silent longest are forgotten first."""

    def __init__(self, rate_per_s: float, burst: float):
        self._rate_per_s, self._burst = rate_per_s, burst
        self._buckets: OrderedDict[str, Bucket] = OrderedDict()

    def of(self, address: str) -> Bucket:
        """The bucket of an address."""
        bucket = self._buckets.get(address) or Bucket(self._rate_per_s, self._burst)
        self._buckets[address] = bucket
        self._buckets.move_to_end(address)
        if len(self._buckets) > _MAX_ADDRESSES:
            self._buckets.popitem(last=False)
        return bucket
