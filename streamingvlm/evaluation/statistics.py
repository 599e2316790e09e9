"""Bootstrap intervals over groups, for example over all judgements of one video."""

import math
from collections.abc import Callable, Mapping, Sequence

import numpy as np


def bootstrap_interval(
    values_by_group: Mapping[str, Sequence[float]],
    statistic: Callable[[np.ndarray], float] = np.mean,
    *,
    num_resamples: int = 10_000,
    seed: int = 0,
    confidence: float = 0.95,
) -> tuple[float, float]:
    """Return the percentile interval of a statistic by resampling whole groups (Efron and Tibshirani 1993, ch. 13).

    values_by_group: measurements by group. Values of a group are correlated, so groups are drawn with replacement, each
        with all its values. Groups without values are ignored.
    statistic: a function of the values of all drawn groups, one array [N].

    Returns (low, high), both NaN if fewer than two groups have values. Raises ValueError for a confidence outside
    (0, 1) or fewer than one resample.
    """
    if not 0 < confidence < 1 or num_resamples < 1:
        raise ValueError(f"confidence={confidence} must be in (0, 1), num_resamples={num_resamples} must be at least 1")
    groups = [np.asarray(values, dtype=float) for values in values_by_group.values() if len(values)]
    if len(groups) < 2:
        return math.nan, math.nan
    draws = np.random.default_rng(seed).integers(len(groups), size=(num_resamples, len(groups)))
    resampled = [statistic(np.concatenate([groups[index] for index in draw])) for draw in draws]
    low, high = np.quantile(resampled, [(1 - confidence) / 2, (1 + confidence) / 2])
    return float(low), float(high)
