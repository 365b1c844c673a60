"""How one quantity goes with another, for points that come in clusters (the points of one seed)."""

from __future__ import annotations

import math
from collections.abc import Callable, Hashable, Sequence
from dataclasses import replace

import numpy as np
from numpy.typing import ArrayLike

from undertow.lab._effect import UNKNOWN, Effect, cluster_members, paired_values
from undertow.lab._intervals import Array, student_quantile
from undertow.lab._statistics import median_interval


def spearman(x: ArrayLike, y: ArrayLike, *, clusters: Sequence[Hashable] | None = None) -> Effect:
    """Spearman's rank correlation of y with x.

    Points of one seed are not independent: give each point's seed as `clusters`, and it is the
    median of the clusters' own correlations, with the interval of `median_interval`. Without
    clusters: Fisher's z with Bonett and Wright's standard error, and scipy's p-value.

    Args:
        x: `[n]`, finite.
        y: `[n]`, finite.
        clusters: `[n]` labels.

    Returns:
        The correlation; NaN, with a note, when x or y is constant, or is so within a cluster.

    Raises:
        ValueError: unequal lengths, no points, a value that is not finite.
    """
    first, second = paired_values(x, y, names=("x", "y"))
    count = len(first)
    if clusters is not None:
        return _over_clusters(_rank_correlation, first, second, clusters, "Spearman")
    value = _rank_correlation(first, second)
    if math.isnan(value):
        return Effect(value, UNKNOWN, None, count, "Spearman", "x or y is constant")
    if count < 4:
        few = "fewer than 4 points have no interval"
        return Effect(value, UNKNOWN, None, count, "Spearman", few)
    from scipy.stats import spearmanr

    p_value = float(spearmanr(first, second).pvalue)
    if abs(value) == 1:
        perfect = "a perfect ranking has no sampling error to estimate"
        return Effect(value, (value, value), p_value, count, "Spearman, Fisher's z", perfect)
    half = student_quantile(0.95, math.inf) * math.sqrt((1 + value**2 / 2) / (count - 3))
    interval = (math.tanh(math.atanh(value) - half), math.tanh(math.atanh(value) + half))
    return Effect(value, interval, p_value, count, "Spearman, Fisher's z")


def slope(x: ArrayLike, y: ArrayLike, *, clusters: Sequence[Hashable] | None = None) -> Effect:
    """The least-squares slope of y on x.

    With `clusters` (each point's seed) it is the median of the clusters' own slopes, with the
    interval of `median_interval`, whether or not they share their x; NaN, with a note, where a
    cluster has fewer than two x. Without: one line, with its t interval and the test of whether it
    is zero, for points that are independent.

    Raises:
        ValueError: unequal lengths, no points, a value that is not finite, or x all equal.
    """
    first, second = paired_values(x, y, names=("x", "y"))
    count = len(first)
    if np.ptp(first) == 0:
        raise ValueError("x: all values are equal; a slope needs at least two different ones")
    if clusters is not None:
        return _over_clusters(_own_slope, first, second, clusters, "least squares")
    value = _own_slope(first, second)
    centred, freedom = first - first.mean(), count - 2
    residuals = second - second.mean() - value * centred
    if freedom < 1:
        few = "too few points for an interval"
        return Effect(value, UNKNOWN, None, count, "least squares", few)
    variance = float(residuals @ residuals) / freedom / float(centred @ centred)
    if variance == 0:
        p_value = 0.0 if value else 1.0
        return Effect(value, (value, value), p_value, count, "least squares", "an exact fit")
    from scipy.special import stdtr

    error = math.sqrt(variance)
    half = error * student_quantile(0.95, freedom)
    p_value = float(2 * stdtr(freedom, -abs(value) / error))
    return Effect(value, (value - half, value + half), p_value, count, "least squares")


def _over_clusters(
    statistic: Callable[[Array, Array], float],
    x: Array,
    y: Array,
    clusters: Sequence[Hashable],
    name: str,
) -> Effect:
    """The median of what each cluster gives; unknown where one of them gives nothing."""
    members = cluster_members(clusters, len(x))
    found = np.array([statistic(x[points], y[points]) for points in members])
    count, method = len(found), f"{name}, median of {len(found)} clusters"
    constant = int(np.isnan(found).sum())
    if constant:
        note = f"constant within {constant} of {count} clusters"
        return Effect(math.nan, UNKNOWN, None, count, method, note, count)
    return replace(median_interval(found), method=method, seeds=count)


def _own_slope(x: Array, y: Array) -> float:
    if np.ptp(x) == 0:
        return math.nan
    centred = x - x.mean()
    return float(centred @ (y - y.mean())) / float(centred @ centred)


def _rank_correlation(x: Array, y: Array) -> float:
    from scipy.stats import rankdata

    if np.ptp(x) == 0 or np.ptp(y) == 0:
        return math.nan
    first, second = (rank - rank.mean() for rank in (rankdata(x), rankdata(y)))
    norm = math.sqrt(float(first @ first) * float(second @ second))
    return max(-1.0, min(1.0, float(first @ second) / norm))
