"""The bootstrap against scipy's, against closed forms, and by properties of any interval."""

import math

import numpy as np
import pytest
import scipy.stats
from hypothesis import given, settings
from hypothesis import strategies as st

from streamingvlm.evaluation.statistics import bootstrap_interval

numbers = st.floats(-100, 100).map(lambda x: round(x, 3))
groups = st.dictionaries(st.text(max_size=3), st.lists(numbers, min_size=1, max_size=5), min_size=2, max_size=8)


def one_each(values):
    """Each value a group of its own."""
    return {str(number): [value] for number, value in enumerate(values)}


@pytest.mark.parametrize("statistic, confidence", [(np.mean, 0.95), (np.median, 0.5), (np.std, 0.9)])
def test_groups_of_one_value_have_scipys_interval(statistic, confidence):
    values = np.random.default_rng(1).exponential(size=40)
    expected = scipy.stats.bootstrap(
        (values,), statistic, n_resamples=5000, confidence_level=confidence, method="percentile", rng=2
    ).confidence_interval
    found = bootstrap_interval(one_each(values), statistic, num_resamples=5000, confidence=confidence)
    assert found == pytest.approx(expected, abs=0.04)


def test_whole_groups_have_scipys_interval_over_groups():
    rng = np.random.default_rng(3)
    values = [
        rng.normal(mean, 0.1, size) for mean, size in zip(rng.normal(size=25), rng.integers(1, 9, 25), strict=True)
    ]

    def mean_of_drawn(drawn):
        return np.concatenate([values[int(index)] for index in drawn]).mean()

    expected = scipy.stats.bootstrap(
        (np.arange(25),), mean_of_drawn, n_resamples=2000, vectorized=False, method="percentile", rng=4
    ).confidence_interval
    found = bootstrap_interval({str(n): v for n, v in enumerate(values)}, num_resamples=500)
    assert found == pytest.approx(expected, abs=0.06)


def test_two_groups_have_the_interval_of_four_equally_likely_draws():
    # Means of 0 and 1 drawn twice: 0, 1/2, 1/2, 1, so that the quartiles lie on the steps.
    assert bootstrap_interval(one_each([0, 1]), confidence=0.9) == (0.0, 1.0)
    assert bootstrap_interval(one_each([0, 1]), confidence=0.2) == (0.5, 0.5)


def test_a_mean_of_many_has_the_normal_interval():
    values = np.random.default_rng(5).normal(size=100)
    half = 1.96 * values.std() / math.sqrt(len(values))
    assert bootstrap_interval(one_each(values), num_resamples=4000) == pytest.approx(
        (values.mean() - half, values.mean() + half), abs=0.03
    )


@settings(max_examples=25)
@given(groups, st.integers(1, 4), numbers)
def test_values_that_say_the_same_make_nothing_surer(values, num_copies, shift):
    interval = bootstrap_interval(values, num_resamples=50)
    assert bootstrap_interval({name: v * num_copies for name, v in values.items()}, num_resamples=50) == pytest.approx(
        interval, abs=1e-9
    )
    moved = bootstrap_interval({name: [x + shift for x in v] for name, v in values.items()}, num_resamples=50)
    assert moved == pytest.approx([bound + shift for bound in interval], abs=1e-9)


@settings(max_examples=25)
@given(groups, st.integers(0, 5))
def test_an_interval_lies_among_the_groups_and_a_seed_decides_it(values, seed):
    low, high = bootstrap_interval(values, num_resamples=50, seed=seed)
    means = [np.mean(v) for v in values.values()]
    assert min(means) - 1e-9 <= low <= high <= max(means) + 1e-9
    assert (low, high) == bootstrap_interval(values | {"nothing": []}, num_resamples=50, seed=seed)
    mirrored = bootstrap_interval({k: [-x for x in v] for k, v in values.items()}, num_resamples=50, seed=seed)
    assert mirrored == pytest.approx((-high, -low), abs=1e-9)


@pytest.mark.parametrize("values", [{}, {"a": [1, 2, 3]}, {"a": [1, 2], "b": []}])
def test_one_group_says_nothing_about_others(values):
    assert all(map(math.isnan, bootstrap_interval(values)))


@pytest.mark.parametrize("wrong", [{"confidence": 1.0}, {"confidence": 0.0}, {"num_resamples": 0}])
def test_settings_that_make_no_interval_are_refused(wrong):
    with pytest.raises(ValueError, match="confidence="):
        bootstrap_interval(one_each([1, 2]), **wrong)
