"""First-fit allocation of row ranges in a pool that many streams share; plain integers, no tensors."""

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
    """Allocates disjoint extents of the rows [first, num_rows)."""

    def __init__(self, num_rows: int, *, first: int = 0):
        self.first = first
        self.num_rows = num_rows
        self.allocated: list[Extent] = []  # sorted

    @property
    def num_free(self) -> int:
        """Unallocated rows, contiguous or not."""
        return self.num_rows - self.first - sum(len(extent) for extent in self.allocated)

    def allocate(self, num_rows: int) -> Extent | None:
        """Allocate from the first gap that is large enough; return None if no gap is."""
        for gap in self._gaps():
            if len(gap) >= num_rows:
                extent = Extent(gap.start, gap.start + num_rows)
                insort(self.allocated, extent)
                return extent
        return None

    def free(self, extent: Extent):
        """Return an extent to the pool."""
        self.allocated.remove(extent)

    def grow(self, extent: Extent, num_rows: int) -> Extent | None:
        """Extend an extent in place to ``num_rows`` rows; return None if the rows after it are allocated."""
        grown = Extent(extent.start, extent.start + num_rows)
        index = self.allocated.index(extent)
        end = self.allocated[index + 1].start if index + 1 < len(self.allocated) else self.num_rows
        if grown.stop > end:
            return None
        self.allocated[index] = grown
        return grown

    def compact(self) -> list[tuple[Extent, Extent]]:
        """Move all extents to the front, in order; return the old and the new extent of each."""
        moves, start = [], self.first
        for extent in self.allocated:
            moves.append((extent, Extent(start, start + len(extent))))
            start += len(extent)
        self.allocated = [new for _, new in moves]
        return moves

    def _gaps(self) -> Iterator[Extent]:
        start = self.first
        for extent in self.allocated:
            yield Extent(start, extent.start)
            start = extent.stop
        yield Extent(start, self.num_rows)
