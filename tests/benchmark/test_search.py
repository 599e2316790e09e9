"""The highest load, in few trials."""

from hypothesis import given
from hypothesis import strategies as st

from streamingvlm.benchmark.search import highest


@given(limit=st.integers(0, 300), most=st.integers(1, 256), step=st.sampled_from([1, 2, 5]))
def test_the_highest_multiple_that_passes_is_found_and_no_load_is_tried_twice(limit, most, step):
    tried = []

    def passes(load):
        tried.append(load)
        return load <= limit

    found = highest(passes, step=step, most=most)
    assert found == min(limit, most) // step * step
    assert len(set(tried)) == len(tried) <= 18
    assert all(0 < load <= most and load % step == 0 for load in tried)
