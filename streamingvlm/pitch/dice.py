"""Random numbers in integer arithmetic, so that a seed gives the same match on every machine and Python version."""

from collections.abc import Sequence

_MASK = (1 << 64) - 1
_GOLDEN_GAMMA = 0x9E3779B97F4A7C15


def mix(value: int) -> int:
    """Scramble a 64-bit integer: the output function of SplitMix64 (Steele, Lea and Flood, 2014)."""
    value &= _MASK
    value = ((value ^ (value >> 30)) * 0xBF58476D1CE4E5B9) & _MASK
    value = ((value ^ (value >> 27)) * 0x94D049BB133111EB) & _MASK
    return value ^ (value >> 31)


def hashed(*keys: int) -> int:
    """Hash a few small integers to one 64-bit integer, for random access; `Dice` gives a sequence instead."""
    state = 0
    for key in keys:
        state = mix(state + _GOLDEN_GAMMA + mix(key + _GOLDEN_GAMMA))
    return state


class Dice:
    """A SplitMix64 random number generator with the draws that a match needs."""

    def __init__(self, seed: int) -> None:
        self._state = hashed(seed)

    def below(self, bound: int) -> int:
        """Return an integer from 0 to `bound - 1`."""
        self._state = (self._state + _GOLDEN_GAMMA) & _MASK
        return ((mix(self._state) >> 32) * bound) >> 32

    def between(self, low: int, high: int) -> int:
        """Return an integer from `low` to `high`, both included."""
        return low + self.below(high - low + 1)

    def chance(self, percent: int) -> bool:
        """Return True with a probability of `percent` %."""
        return self.below(100) < percent

    def weighted(self, weights: Sequence[int]) -> int:
        """Return an index, drawn in proportion to its weight."""
        draw = self.below(sum(weights))
        for index, weight in enumerate(weights):
            if draw < weight:
                return index
            draw -= weight
        raise AssertionError("a draw below the sum of the weights always selects an index")
