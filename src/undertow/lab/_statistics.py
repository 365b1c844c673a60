"""Differences and averages with their uncertainty: the numbers that verdicts are made of.

Every interval is a 95% confidence interval unless another level is asked for. Few values are the
normal case here (a handful of seeds), so each function says how well its interval covers then.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import ArrayLike

from undertow.lab._effect import UNKNOWN, Effect, finite_values, paired_values
from undertow.lab._intervals import (
    Array,
    Interval,
    along_rows,
    standard_error,
    student_interval,
    student_quantile,
    studentised_interval,
    widened_bca_interval,
)

Alternative = Literal["two-sided", "less", "greater"]

_FEW_FOR_STUDENTISED = 8
_FEW_FOR_QUANTILES = 6


@dataclass(frozen=True, repr=False)
class Equivalence(Effect):
    """A mean difference tested for being within +-`margin`.

    `p_value` below 0.05 says that it is, and then `test_interval` (90%) lies within the margin;
    `interval` is the 95% interval of the difference.
    """

    margin: float = math.nan
    test_interval: Interval = UNKNOWN


def bootstrap_interval(
    values: ArrayLike,
    statistic: Literal["mean", "median"] | Callable[[Array], float] = "mean",
    *,
    confidence: float = 0.95,
    resamples: int = 5000,
    seed: int = 0,
) -> Effect:
    """A statistic of independent values, with a bootstrap confidence interval.

    The textbook intervals are too short for few values. For the mean, 95% BCa intervals of 8 values
    covered the truth in 90, 92, 87 and 84% of 1,500 simulated samples (normal, uniform,
    exponential, lognormal with sigma 0.5). Used here instead:

    - mean of 8 values or more: the studentised bootstrap; it covered 95, 97, 95 and 91% at 8
    values,
      95, 97, 95 and 94% at 20;
    - mean of fewer: Student's t interval; 96, 92, 88 and 93% at 6 values (600 samples). At 4
      values the studentised bootstrap covers too, but some of its intervals are many times as wide;
    - anything else: BCa at levels widened from the normal to Student's distribution, after
      Hesterberg's expanded percentiles; for the median of 8 values it covered 97 to 98%, of 20
      values 95 to 97%. It falls back to percentiles where BCa is not defined.

    Args:
        values: `[n]`, finite.
        statistic: "mean", "median", or a function from an array `[n]` to a number.
        confidence: the nominal coverage, between 0 and 1.
        resamples: how many bootstrap samples are drawn.
        seed: of the generator that draws them.

    Returns:
        The statistic and its interval. Equal values give an interval of no width; fewer than two
        values a NaN interval and a note.

    Raises:
        ValueError: no values, one that is not finite, or an argument out of range.
    """
    sample = finite_values("values", values)
    if not 0 < confidence < 1:
        raise ValueError(f"confidence: expected a number between 0 and 1, got {confidence}")
    if resamples < 100:
        raise ValueError(f"resamples: expected at least 100, got {resamples}")
    if not (callable(statistic) or statistic in ("mean", "median")):
        raise ValueError(
            f"statistic: {statistic!r} is not 'mean' or 'median'; give one of them or a function"
        )
    name = statistic if isinstance(statistic, str) else getattr(statistic, "__name__", "statistic")
    count = len(sample)
    if np.ptp(sample) == 0 and count > 1:
        value = float(sample[0] if isinstance(statistic, str) else statistic(sample))
        return Effect(value, (value, value), None, count, name, "all values are equal")
    value = float(along_rows(statistic, sample[None, :])[0])
    if count < 2:
        return Effect(value, UNKNOWN, None, count, name, "one value has no interval")
    if statistic == "mean" and count < _FEW_FOR_STUDENTISED:
        interval = student_interval(sample, confidence)
        return Effect(value, interval, None, count, "mean, Student's t")
    rows = sample[np.random.default_rng(seed).integers(0, count, (resamples, count))]
    if statistic == "mean":
        interval = studentised_interval(sample, rows, confidence)
        return Effect(value, interval, None, count, "mean, studentised bootstrap")
    draws = along_rows(statistic, rows)
    left_out = np.stack([np.delete(sample, index) for index in range(count)])
    interval = widened_bca_interval(
        value, draws, along_rows(statistic, left_out), count, confidence
    )
    few = "too few values for the stated confidence" if count < _FEW_FOR_QUANTILES else ""
    return Effect(value, interval, None, count, f"{name}, widened BCa bootstrap", few)


def proportion(count: int, total: int) -> Effect:
    """A share of independent cases with its exact (Clopper and Pearson) interval.

    No cases at all have an unknown share.

    Raises:
        ValueError: a count outside 0..total.
    """
    if not 0 <= count <= total:
        raise ValueError(f"count: expected 0 to {total}, got {count}")
    method = "proportion, exact binomial"
    if total == 0:
        return Effect(math.nan, UNKNOWN, None, 0, method, "no cases")
    from scipy.stats import binomtest

    interval = binomtest(count, total).proportion_ci()
    return Effect(count / total, (float(interval.low), float(interval.high)), None, total, method)


def paired_sign_test(
    a: ArrayLike, b: ArrayLike, *, alternative: Alternative = "two-sided"
) -> Effect:
    """The median of a - b, with the exact sign test of whether it is zero.

    Assumes nothing but independent pairs. The interval is always two-sided and lies between order
    statistics of the differences, the narrowest pair that covers at least 95% for any distribution:
    99% at 8 pairs, 96% at 12 and at 20. Fewer than 6 pairs have no such interval: it is infinite
    then. Ties take no part in the test and are counted in the note; median and interval include
    them.

    Raises:
        ValueError: unequal lengths, no pairs, a value that is not finite, an unknown alternative.
    """
    if alternative not in ("two-sided", "less", "greater"):
        raise ValueError(
            f"alternative: {alternative!r} is not one of 'two-sided', 'less', 'greater'"
        )
    from scipy.stats import binom, binomtest

    first, second = paired_values(a, b)
    differences = np.sort(first - second)
    count = len(differences)
    untied = int(np.count_nonzero(differences))
    positive = int(np.count_nonzero(differences > 0))
    p_value = float(binomtest(positive, untied, alternative=alternative).pvalue) if untied else 1.0
    rank = int(binom.ppf(0.025, count, 0.5))
    interval = (-math.inf, math.inf)
    if rank > 0:
        interval = (float(differences[rank - 1]), float(differences[count - rank]))
    notes = []
    if untied < count:
        notes.append(f"{count - untied} tied pairs dropped from the test")
    if rank == 0:
        notes.append("fewer than 6 pairs have no 95% interval")
    value = float(np.median(differences))
    return Effect(value, interval, p_value, count, "paired sign test", "; ".join(notes))


def paired_ratio(a: ArrayLike, b: ArrayLike) -> Effect:
    """The geometric mean of a / b over pairs, and the paired t test of whether it is one.

    The interval is Student's t on log(a / b): exact for lognormal ratios at any number of pairs,
    where a bootstrap of the logarithms would be too short for few seeds, and equivariant
    (exchanging a and b inverts it). It covered 95% of samples of 8 lognormal ratios, 94% when log(a
    / b) was uniform and 90% when it was exponential.

    Raises:
        ValueError: a value that is not positive and finite, unequal lengths, no pairs.
    """
    first, second = paired_values(a, b)
    for name, values in (("a", first), ("b", second)):
        if np.any(values <= 0):
            raise ValueError(f"{name}: a ratio needs positive values, got {values.min():g}")
    logs = np.log(first) - np.log(second)
    value, count, method = math.exp(logs.mean()), len(logs), "paired ratio, t on logs"
    error = standard_error(logs)
    if math.isnan(error):
        return Effect(value, UNKNOWN, None, count, method, "one pair has no interval")
    if error == 0:
        p_value = 0.0 if logs[0] else 1.0
        return Effect(value, (value, value), p_value, count, method, "all ratios are equal")
    from scipy.special import stdtr

    low, high = student_interval(logs, 0.95)
    p_value = float(2 * stdtr(count - 1, -abs(logs.mean()) / error))
    bounds = (_exponential(low), _exponential(high))
    return Effect(value, bounds, p_value, count, method)


def equivalence_test(
    a: ArrayLike, b: ArrayLike, *, margin: float, paired: bool = True
) -> Equivalence:
    """Whether mean(a) - mean(b) lies within +-margin: two one-sided t tests (TOST).

    A large p-value of an ordinary test does not show that two things are alike; a small one here
    does. Unpaired samples use Welch's degrees of freedom.

    Raises:
        ValueError: a margin that is not positive, a value that is not finite, no values, or unequal
            lengths of paired samples.
    """
    if not (margin > 0 and math.isfinite(margin)):
        raise ValueError(f"margin: expected a positive number, got {margin}")
    if paired:
        first, second = paired_values(a, b)
        differences = first - second
        mean, count = float(differences.mean()), len(differences)
        error = standard_error(differences)
        freedom = float(count - 1)
    else:
        first, second = finite_values("a", a), finite_values("b", b)
        mean, count = float(first.mean() - second.mean()), len(first) + len(second)
        one, two = standard_error(first), standard_error(second)
        error = math.hypot(one, two)
        freedom = math.nan
        if error > 0:
            freedom = error**4 / (one**4 / (len(first) - 1) + two**4 / (len(second) - 1))
    method = f"equivalence within ±{margin:g}, {'paired' if paired else 'Welch'} t"
    if math.isnan(error):
        note = "one value has no interval"
        return Equivalence(mean, UNKNOWN, None, count, method, note, margin=margin)
    if error == 0:
        p_value = 0.0 if abs(mean) < margin else 1.0
        point, note = (mean, mean), "no spread between values"
        return Equivalence(
            mean, point, p_value, count, method, note, margin=margin, test_interval=point
        )
    from scipy.special import stdtr

    p_value = float(stdtr(freedom, (abs(mean) - margin) / error))
    half, test_half = (
        error * student_quantile(0.95, freedom),
        error * student_quantile(0.90, freedom),
    )
    return Equivalence(
        mean,
        (mean - half, mean + half),
        p_value,
        count,
        method,
        margin=margin,
        test_interval=(mean - test_half, mean + test_half),
    )


def _exponential(logarithm: float) -> float:
    """Infinite where no number is as large: of a zero among ratios that are not."""
    try:
        return math.exp(logarithm)
    except OverflowError:
        return math.inf
