"""Confidence intervals from few values: Student's, the studentised bootstrap, and widened BCa."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]
Interval = tuple[float, float]


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


def studentised_interval(values: Array, rows: Array, confidence: float) -> Interval:
    """The bootstrap-t interval of the mean, from resampled `rows` (`[resamples, n]`).

    A resample of equal values has no standard error; it is left out.
    """
    errors = rows.std(axis=1, ddof=1) / math.sqrt(len(values))
    usable = np.ptp(rows, axis=1) > 0
    mean = float(values.mean())
    pivots = (rows.mean(axis=1) - mean)[usable] / errors[usable]
    upper, lower = np.quantile(pivots, [(1 + confidence) / 2, (1 - confidence) / 2])
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


def along_rows(statistic: str | Callable[[Array], float], rows: Array) -> Array:
    """The statistic of each row of `[rows, n]`."""
    if statistic == "mean":
        return np.asarray(rows.mean(axis=1))
    if statistic == "median":
        return np.asarray(np.median(rows, axis=1))
    assert callable(statistic)
    return np.array([float(statistic(row)) for row in rows])
