"""Ranges of a pool that many streams share: they never overlap, no row is lost, and contents move with their range."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from streamingvlm.cache.kv_cache import KVPool, rotate, rotate_into
from streamingvlm.cache.range_allocator import Extent, RangeAllocator
from streamingvlm.errors import EngineFull

OPERATIONS = st.lists(st.tuples(st.sampled_from(["allocate", "free", "grow", "compact"]), st.integers(1, 30)))


@given(OPERATIONS)
def test_no_two_extents_overlap_and_all_rows_are_accounted_for(operations):
    extents, held = RangeAllocator(101, first=1), []
    for name, number in operations:
        if name == "allocate" and (extent := extents.allocate(number)):
            held.append(extent)
        elif name == "free" and held:
            extents.free(held.pop(number % len(held)))
        elif name == "grow" and held:
            index = number % len(held)
            if grown := extents.grow(held[index], len(held[index]) + number):
                held[index] = grown
        elif name == "compact":
            moves = dict(extents.compact())
            held = [moves[extent] for extent in held]
            assert sum(map(len, held)) + extents.num_free == 100
            assert extents.num_free == 0 or extents.allocate(extents.num_free), "the free rows are one range"
            extents.allocated = sorted(held)
        rows = [row for extent in held for row in range(extent.start, extent.stop)]
        assert len(rows) == len(set(rows)) == 100 - extents.num_free
        assert all(1 <= row < 101 for row in rows)


def test_allocation_is_first_fit():
    extents = RangeAllocator(20)
    first, second, third = (extents.allocate(5) for _ in range(3))
    extents.free(second)
    assert extents.allocate(6) is None
    assert extents.allocate(4) == Extent(5, 9)
    assert extents.grow(first, 6) is None
    assert extents.grow(third, 10) == Extent(10, 20)


def pool_of(num_tokens: int, **settings) -> KVPool:
    return KVPool(2, 1, 4, num_tokens, torch.float32, torch.device("cpu"), **settings)


def fill(cache, value: float):
    cache.num_tokens = cache.capacity
    for buffer in (cache.keys, cache.values, cache.rotated):
        buffer.fill_(value)


def holds(cache, value: float) -> bool:
    used = slice(0, cache.num_tokens)
    return all((buffer[:, :, used] == value).all() for buffer in (cache.keys, cache.values, cache.rotated))


def test_a_full_pool_refuses_and_reuses_closed_ranges():
    pool = pool_of(30)
    first, second = pool.open(20), pool.open(10)
    with pytest.raises(EngineFull, match="0 more tokens of 30") as error:
        pool.open(1)
    assert "\n" not in str(error.value)
    second.close()
    assert pool.open(10).capacity == 10
    assert first.capacity == 20


def test_compaction_keeps_the_contents_of_streams():
    pool = pool_of(30)
    caches = [pool.open(10) for _ in range(3)]
    for value, cache in enumerate(caches):
        fill(cache, value + 1)
    caches[0].close()
    caches[2].reserve_(20, is_bounded=True)
    fill(caches[2], 3)
    caches[1].close()
    fresh = pool.open(10)
    fill(fresh, 4)
    assert holds(caches[2], 3)
    assert holds(fresh, 4)
    assert pool.num_free == 0


@given(st.lists(st.tuples(st.sampled_from(["open", "close", "grow"]), st.integers(1, 12)), max_size=25), st.booleans())
def test_contents_survive_any_sequence_of_operations(operations, is_elastic):
    pool, held = pool_of(24, is_elastic=is_elastic), {}
    for number, (name, size) in enumerate(operations):
        try:
            if name == "open":
                held[number] = pool.open(size)
                fill(held[number], number)
            elif held:
                key = sorted(held)[size % len(held)]
                if name == "close":
                    held.pop(key).close()
                else:
                    held[key].reserve_(held[key].capacity + size, is_bounded=True)
        except EngineFull:
            assert not is_elastic
        assert all(holds(cache, key) for key, cache in held.items())
        assert pool.num_free == pool.num_tokens - sum(cache.capacity for cache in held.values())


def test_gather_keeps_what_the_ranges_hold_in_their_order():
    pool = pool_of(20)
    pool.open(3)
    cache = pool.open(10)
    cache.num_tokens = 6
    cache.keys[:, :, :6] = torch.arange(6.0)[:, None]
    cache.gather_([range(2), range(4, 5), range(2, 3), range(5, 6)])
    assert cache.num_tokens == 5
    assert cache.keys[1, 0, :5, 0].tolist() == [0, 1, 4, 2, 5]


def test_rotating_into_a_buffer_is_rotating():
    generator = torch.Generator().manual_seed(0)
    x, cos, sin = (torch.randn(3, 5, 8, generator=generator) for _ in range(3))
    out = torch.empty_like(x)
    rotate_into(out, x, cos, sin)
    assert torch.allclose(out, rotate(x, cos, sin), atol=1e-6)
