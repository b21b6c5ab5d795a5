"""How sure a measured number is: 95 % intervals for shares, means and paired differences. Pure arithmetic on lists."""

import math
from collections.abc import Sequence

import numpy as np

from luthier.records import Metric

Z_95 = 1.959963984540054
RESAMPLES = 2_000


def wilson(successes: float, n: int) -> tuple[float, float]:
    """The 95 % score interval of the share successes / n (Wilson 1927): honest at 0 and 1, where the usual one has no width.

    center = (p + z^2 / 2n) / (1 + z^2 / n); half = z / (1 + z^2 / n) * sqrt(p (1 - p) / n + z^2 / 4n^2)
    """
    share, shrink = successes / n, 1 + Z_95**2 / n
    center = (share + Z_95**2 / (2 * n)) / shrink
    half = Z_95 / shrink * math.sqrt(share * (1 - share) / n + Z_95**2 / (4 * n * n))
    # A bound is exact at the ends; rounding must not push it past the share itself.
    return max(0.0, min(center - half, share)), min(1.0, max(center + half, share))


def mean_interval(values: Sequence[float], seed: int = 0) -> tuple[float, float]:
    """The 95 % percentile bootstrap interval of the mean of values in [0, 1] (Efron 1979). The same seed gives the same interval.

    Where all values are equal a resample shows no spread; then it is the Wilson interval, which is never too narrow for such values.
    """
    if min(values) == max(values):
        return wilson(sum(values), len(values))
    return _bootstrap(np.asarray(values, dtype=np.float64), seed)


def paired_difference(before: Sequence[float], after: Sequence[float], seed: int = 0) -> Metric:
    """The mean of after - before over the same rows, with the 95 % bootstrap interval that resamples rows, not models.

    Narrower than two separate intervals, because what makes a row hard is the same for both. Both have one value a row. Where values in
    [0, 1] differ by the same in all rows, resamples show no spread: then as much of the rows as Wilson's interval leaves open may differ
    otherwise, by anything from -1 to 1.
    """
    one, other = np.asarray(before, dtype=np.float64), np.asarray(after, dtype=np.float64)
    differences = other - one
    n, value = len(differences), float(differences.mean())
    if differences.min() == differences.max() and min(one.min(), other.min()) >= 0 and max(one.max(), other.max()) <= 1:
        unseen = wilson(0, n)[1]
        return Metric(value, max(-1.0, value - unseen * (1 + value)), min(1.0, value + unseen * (1 - value)), n)
    low, high = _bootstrap(differences, seed)
    return Metric(value, low, high, n)


def _bootstrap(values: np.ndarray, seed: int) -> tuple[float, float]:
    random = np.random.default_rng(seed)
    n = len(values)
    means = [values[random.integers(n, size=n)].mean() for _ in range(RESAMPLES)]
    low, high = np.quantile(means, [0.025, 0.975])
    return float(low), float(high)
