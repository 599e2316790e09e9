"""The highest passing load, in few trials."""

from hypothesis import given
from hypothesis import strategies as st

from streamingvlm.benchmark.search import highest_passing


@given(threshold=st.integers(0, 300), limit=st.integers(1, 256), step=st.sampled_from([1, 2, 5]))
def test_the_highest_multiple_that_passes_is_found_and_no_load_is_tried_twice(threshold, limit, step):
    tried = []

    def passes(load):
        tried.append(load)
        return load <= threshold

    found = highest_passing(passes, step=step, limit=limit)
    assert found == min(threshold, limit) // step * step
    assert len(set(tried)) == len(tried) <= 18
    assert all(0 < load <= limit and load % step == 0 for load in tried)
