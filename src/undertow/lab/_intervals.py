"""Confidence intervals from few values: of medians between order statistics, of means, of shares.

The median's is Hettmansperger and Sheather's ("Confidence intervals based on interpolated order
statistics", Statistics & Probability Letters 4, 1986, eq. 2.1): it assumes no distribution, and of
nine or more no odd value can throw it. Each one's coverage: `python -m benchmarks.coverage`.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]
Interval = tuple[float, float]

_LONGEST = 2.0  # half-widths of Student's interval that a bootstrap's end may lie from the mean


def student_quantile(confidence: float, freedom: float) -> float:
    """Half the width of a two-sided Student interval, in standard errors."""
    from scipy.special import stdtrit

    return float(stdtrit(freedom, (1 + confidence) / 2))


def standard_error(values: Array) -> float:
    """Of the mean; NaN for one value, exactly zero for equal ones."""
    if len(values) < 2:
        return math.nan
    if np.ptp(values) == 0:
        return 0.0
    return float(values.std(ddof=1)) / math.sqrt(len(values))


def student_interval(values: Array, confidence: float) -> Interval:
    """Student's t interval of the mean; exact for normal values."""
    mean = float(values.mean())
    half = student_quantile(confidence, len(values) - 1) * standard_error(values)
    return mean - half, mean + half


@lru_cache
def median_depth(count: int, confidence: float = 0.95) -> tuple[int, float] | None:
    """How deep in the sorted values the median's interval ends, and how far towards the next.

    Between the d-th values from either end lies the median with probability
    g(d) = 1 - 2 P(B < d), B binomial(n, 1/2). Of the deepest d with g(d) at least the confidence,
    the weight of the next is (n - d) I / (d + (n - 2d) I), where
    I = (g(d) - confidence) / (g(d) - g(d + 1)).

    Returns:
        d and that weight; None where even the whole range covers less (fewer than 6 values at 95%).
    """
    total, below, depth, covered = 2**count, 0, 0, 1.0
    while True:
        below += math.comb(count, depth)
        deeper = 1 - 2 * below / total
        if deeper < confidence:
            break
        depth, covered = depth + 1, deeper
    if depth == 0:
        return None
    part = (covered - confidence) / (covered - deeper)
    return depth, (count - depth) * part / (depth + (count - 2 * depth) * part)


def between_order_statistics(
    ordered: Array, confidence: float, *, geometric: bool = False
) -> Interval:
    """Of the median, between order statistics; without end where there are too few of them.

    Args:
        ordered: `[n]`, ascending; it may be infinite at its ends.
        confidence: the nominal coverage.
        geometric: interpolate logarithms, of values of at least zero.
    """
    ends = median_depth(len(ordered), confidence)
    if ends is None:
        return 0.0 if geometric else -math.inf, math.inf
    depth, weight = ends
    low, after_low = float(ordered[depth - 1]), float(ordered[depth])
    high, before_high = float(ordered[-depth]), float(ordered[-depth - 1])
    return (
        _between(low, after_low, weight, geometric),
        _between(high, before_high, weight, geometric),
    )


def _between(outer: float, inner: float, weight: float, geometric: bool) -> float:
    """So far from one value to the next; never off one to what has no place on the same scale."""
    limits = (0.0, math.inf) if geometric else (-math.inf, math.inf)
    if outer == inner or outer in limits or inner in limits:
        return outer
    if geometric:
        return outer * (inner / outer) ** weight
    return outer + weight * (inner - outer)


@lru_cache
def rank_sum_levels(first: int, second: int) -> Array:
    """P(U <= u) of the rank-sum statistic of two samples of one distribution, u from 0 to m n."""
    ways = {(0, size): np.eye(1, first * second + 1)[0] for size in range(second + 1)}
    for own in range(1, first + 1):
        ways[own, 0] = ways[0, 0]
        for size in range(1, second + 1):
            # The largest value is of the first sample, and above all of the second; or it is not.
            above = np.roll(ways[own - 1, size], size)
            above[:size] = 0
            ways[own, size] = above + ways[own, size - 1]
    counts = ways[first, second]
    return np.asarray(np.cumsum(counts) / counts.sum())


def shift_interval(first: Array, second: Array, confidence: float) -> Interval:
    """Of the shift between two samples, between order statistics of all differences (Moses).

    Infinite where there are too few of them.
    """
    differences = np.sort(np.subtract.outer(first, second), axis=None)
    levels = rank_sum_levels(len(first), len(second))
    depth = int(np.searchsorted(levels, (1 - confidence) / 2, side="right"))
    if depth == 0:
        return -math.inf, math.inf
    return float(differences[depth - 1]), float(differences[-depth])


@lru_cache
def exact_share(count: int, total: int, confidence: float = 0.95) -> Interval:
    """Clopper and Pearson's interval of a share: it covers at least what is asked for."""
    from scipy.special import betaincinv

    tail = (1 - confidence) / 2
    low = float(betaincinv(count, total - count + 1, tail)) if count else 0.0
    high = float(betaincinv(count + 1, total - count, 1 - tail)) if count < total else 1.0
    return low, high


def studentised_interval(values: Array, rows: Array, confidence: float) -> Interval:
    """The bootstrap-t interval of the mean, from resampled `rows` (`[resamples, n]`).

    A resample of equal values has no standard error; it is left out. One of values that are almost
    equal, since it misses the odd one, has next to none, and its pivot is no news of the mean: no
    end lies farther from it than twice that of Student's interval.
    """
    errors = rows.std(axis=1, ddof=1) / math.sqrt(len(values))
    usable = np.ptp(rows, axis=1) > 0
    mean = float(values.mean())
    pivots = (rows.mean(axis=1) - mean)[usable] / errors[usable]
    levels = [(1 + confidence) / 2, (1 - confidence) / 2]
    farthest = _LONGEST * student_quantile(confidence, len(values) - 1)
    upper, lower = np.clip(np.quantile(pivots, levels), -farthest, farthest)
    error = standard_error(values)
    return mean - float(upper) * error, mean - float(lower) * error


def widened_levels(confidence: float, count: int) -> Array:
    """The two percentile levels that make up for a bootstrap distribution being too narrow.

    Hesterberg, "What teachers should know about the bootstrap" (2015): the normal
    level whose quantile is Student's, times sqrt(n / (n - 1)).
    """
    from scipy.special import ndtr

    quantile = math.sqrt(count / (count - 1)) * student_quantile(confidence, count - 1)
    return np.asarray(ndtr([-quantile, quantile]), dtype=np.float64)


def percentile_interval(draws: Array, levels: Array) -> Interval:
    """The quantiles of the bootstrap distribution at two levels."""
    low, high = np.quantile(draws, levels)
    return float(low), float(high)


def widened_bca_interval(
    value: float, draws: Array, left_out: Array, count: int, confidence: float
) -> Interval:
    """Efron's bias-corrected and accelerated interval, at widened levels.

    Args:
        value: the statistic.
        draws: the statistic of each resample.
        left_out: the statistic with each value left out in turn, for the acceleration.
        count: the number of values.
        confidence: the nominal coverage.

    Returns:
        The interval; plain percentiles where all draws lie on one side of the value, or where so
        few values widen the levels to 0 and 1.
    """
    from scipy.special import ndtr, ndtri

    levels = widened_levels(confidence, count)
    below = float(np.mean(draws < value) + np.mean(draws == value) / 2)
    if not 0 < below < 1:
        return percentile_interval(draws, levels)
    bias = float(ndtri(below))
    pulls = left_out.mean() - left_out
    spread = float(np.sum(pulls**2))
    acceleration = float(np.sum(pulls**3)) / (6 * spread**1.5) if spread > 0 else 0.0
    shifted = bias + ndtri(levels)
    if not np.all(np.isfinite(shifted)):  # of two or three values: the whole range
        return percentile_interval(draws, levels)
    denominator = 1 - acceleration * shifted
    if np.any(denominator <= 0):
        return percentile_interval(draws, levels)
    return percentile_interval(draws, np.asarray(ndtr(bias + shifted / denominator)))


def along_rows(statistic: Callable[[Array], float], rows: Array) -> Array:
    """The statistic of each row of `[rows, n]`."""
    return np.array([float(statistic(row)) for row in rows])
