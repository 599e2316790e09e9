"""Random numbers in plain integers, so that a seed means the same match on every machine and every Python."""

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
    """One 64-bit integer drawn from a few small integers: random access, where `Dice` is a sequence."""
    state = 0
    for key in keys:
        state = mix(state + _GOLDEN_GAMMA + mix(key + _GOLDEN_GAMMA))
    return state


class Dice:
    """A SplitMix64 sequence with the few draws that a match needs."""

    def __init__(self, seed: int) -> None:
        self._state = hashed(seed)

    def below(self, bound: int) -> int:
        """An integer from 0 to `bound - 1`."""
        self._state = (self._state + _GOLDEN_GAMMA) & _MASK
        return ((mix(self._state) >> 32) * bound) >> 32

    def between(self, low: int, high: int) -> int:
        """An integer from `low` to `high`, both included."""
        return low + self.below(high - low + 1)

    def chance(self, percent: int) -> bool:
        """True in `percent` of a hundred draws."""
        return self.below(100) < percent

    def weighted(self, weights: Sequence[int]) -> int:
        """An index, drawn in proportion to its weight."""
        draw = self.below(sum(weights))
        for index, weight in enumerate(weights):
            if draw < weight:
                return index
            draw -= weight
        raise AssertionError("a draw below the sum of the weights falls on one of them")
