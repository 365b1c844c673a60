"""How one quantity goes with another, for points that come in clusters (the points of one seed)."""

from __future__ import annotations

import math
from collections.abc import Hashable, Sequence

import numpy as np
from numpy.typing import ArrayLike

from undertow.lab._effect import UNKNOWN, Effect, cluster_members, paired_values
from undertow.lab._intervals import Array, percentile_interval, student_quantile, widened_levels


def spearman(
    x: ArrayLike,
    y: ArrayLike,
    *,
    clusters: Sequence[Hashable] | None = None,
    resamples: int = 2000,
    seed: int = 0,
) -> Effect:
    """Spearman's rank correlation of y with x.

    Without clusters: Fisher's z with Bonett and Wright's standard error, and scipy's p-value.
    Points of one seed are not independent: give each point's seed as `clusters`, and the interval
    comes from resampling whole clusters (percentiles, widened for few clusters); there is no
    p-value then.

    Args:
        x: `[n]`, finite.
        y: `[n]`, finite.
        clusters: `[n]` labels.
        resamples: how many times the clusters are resampled.
        seed: of the generator that resamples them.

    Returns:
        The correlation; NaN, with a note, when x or y is constant.

    Raises:
        ValueError: unequal lengths, no points, a value that is not finite.
    """
    first, second = paired_values(x, y, names=("x", "y"))
    count = len(first)
    value = _rank_correlation(first, second)
    if math.isnan(value):
        return Effect(value, UNKNOWN, None, count, "Spearman", "x or y is constant")
    perfect = "a perfect ranking has no sampling error to estimate" if abs(value) == 1 else ""
    if clusters is not None:
        members = cluster_members(clusters, count)
        method = f"Spearman, bootstrap over {len(members)} clusters"
        if len(members) < 2:
            return Effect(value, UNKNOWN, None, count, method, "one cluster has no interval")
        generator = np.random.default_rng(seed)
        draws = []
        for chosen in generator.integers(0, len(members), (resamples, len(members))):
            points = np.concatenate([members[cluster] for cluster in chosen])
            draws.append(_rank_correlation(first[points], second[points]))
        known = np.array([draw for draw in draws if not math.isnan(draw)])
        if len(known) == 0:
            return Effect(value, UNKNOWN, None, count, method, "x or y is constant within clusters")
        interval = percentile_interval(known, widened_levels(0.95, len(members)))
        return Effect(value, interval, None, count, method, perfect)
    if count < 4:
        few = "fewer than 4 points have no interval"
        return Effect(value, UNKNOWN, None, count, "Spearman", few)
    from scipy.stats import spearmanr

    p_value = float(spearmanr(first, second).pvalue)
    if perfect:
        return Effect(value, (value, value), p_value, count, "Spearman, Fisher's z", perfect)
    half = student_quantile(0.95, math.inf) * math.sqrt((1 + value**2 / 2) / (count - 3))
    interval = (math.tanh(math.atanh(value) - half), math.tanh(math.atanh(value) + half))
    return Effect(value, interval, p_value, count, "Spearman, Fisher's z")


def slope(x: ArrayLike, y: ArrayLike, *, clusters: Sequence[Hashable] | None = None) -> Effect:
    """The least-squares slope of y on x, with its t interval and the test of whether it is zero.

    With `clusters` (each point's seed), the standard error adds up residuals within clusters first
    and the degrees of freedom are those of the clusters. Where all clusters share the same x this
    is the t interval of the clusters' own slopes.

    Raises:
        ValueError: unequal lengths, no points, a value that is not finite, or x all equal.
    """
    from scipy.special import stdtr

    first, second = paired_values(x, y, names=("x", "y"))
    count = len(first)
    if np.ptp(first) == 0:
        raise ValueError("x: all values are equal; a slope needs at least two different ones")
    centred = first - first.mean()
    spread = float(centred @ centred)
    value = float(centred @ (second - second.mean())) / spread
    residuals = second - second.mean() - value * centred
    if clusters is None:
        method, freedom = "least squares", count - 2
        variance = math.nan
        if freedom > 0:
            variance = float(residuals @ residuals) / freedom / spread
    else:
        members = cluster_members(clusters, count)
        method, freedom = f"least squares, {len(members)} clusters", len(members) - 1
        summed = np.array([centred[points] @ residuals[points] for points in members])
        variance = math.nan
        if freedom > 0:
            variance = float(summed @ summed) / spread**2 * len(members) / freedom
    if math.isnan(variance):
        return Effect(value, UNKNOWN, None, count, method, "too few points for an interval")
    if variance == 0:
        return Effect(value, (value, value), 0.0 if value else 1.0, count, method, "an exact fit")
    error = math.sqrt(variance)
    half = error * student_quantile(0.95, freedom)
    p_value = float(2 * stdtr(freedom, -abs(value) / error))
    return Effect(value, (value - half, value + half), p_value, count, method)


def _rank_correlation(x: Array, y: Array) -> float:
    from scipy.stats import rankdata

    if np.ptp(x) == 0 or np.ptp(y) == 0:
        return math.nan
    first, second = (rank - rank.mean() for rank in (rankdata(x), rankdata(y)))
    norm = math.sqrt(float(first @ first) * float(second @ second))
    return max(-1.0, min(1.0, float(first @ second) / norm))
