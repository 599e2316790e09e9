"""Where runs of rows lie in a pool that many streams share: first fit, plain integers."""

from bisect import insort
from collections.abc import Iterator
from typing import NamedTuple


class Extent(NamedTuple):
    """The rows [start, stop)."""

    start: int
    stop: int

    def __len__(self) -> int:
        return self.stop - self.start


class RangeAllocator:
    """Hands out runs of the rows [first, num_rows) and takes them back; no two overlap."""

    def __init__(self, num_rows: int, *, first: int = 0):
        self.first = first
        self.num_rows = num_rows
        self.taken: list[Extent] = []  # in order

    @property
    def num_free(self) -> int:
        """Rows that nobody holds, in one run or in many."""
        return self.num_rows - self.first - sum(len(extent) for extent in self.taken)

    def take(self, num_rows: int) -> Extent | None:
        """Take the first gap that is long enough; None where there is none."""
        for gap in self._gaps():
            if len(gap) >= num_rows:
                extent = Extent(gap.start, gap.start + num_rows)
                insort(self.taken, extent)
                return extent
        return None

    def release(self, extent: Extent):
        """Take back an extent."""
        self.taken.remove(extent)

    def lengthen(self, extent: Extent, num_rows: int) -> Extent | None:
        """Make an extent ``num_rows`` long where it lies, if nobody holds what follows it."""
        longer = Extent(extent.start, extent.start + num_rows)
        place = self.taken.index(extent)
        end = self.taken[place + 1].start if place + 1 < len(self.taken) else self.num_rows
        if longer.stop > end:
            return None
        self.taken[place] = longer
        return longer

    def packed(self) -> list[tuple[Extent, Extent]]:
        """Move all extents to the front, in order; return where each was and where it is now."""
        moves, start = [], self.first
        for extent in self.taken:
            moves.append((extent, Extent(start, start + len(extent))))
            start += len(extent)
        self.taken = [now for _, now in moves]
        return moves

    def _gaps(self) -> Iterator[Extent]:
        start = self.first
        for extent in self.taken:
            yield Extent(start, extent.start)
            start = extent.stop
        yield Extent(start, self.num_rows)
