"""A statistic of means over seeds: what it says of curves, and of seeds that are lost."""

from __future__ import annotations

import math

import numpy as np
import polars as pl
import pytest
import scipy.stats

from undertow import lab
from undertow.lab import of, of_means

LEVELS = (1, 2, 4)


def records(
    seeds: int, noise: float = 0.5, generator: int | None = None
) -> dict[str, pl.DataFrame]:
    """Errors 1 / level with noise, which only the mean over seeds is free of by default."""
    draw = np.random.default_rng(generator or 0).normal(0, noise, (seeds, len(LEVELS)))
    if generator is None:
        draw -= draw.mean(0)
    rows = [
        {"seed": seed, "level": level, "error": 1 / level + draw[seed, place]}
        for seed in range(seeds)
        for place, level in enumerate(LEVELS)
    ]
    return {"runs": pl.DataFrame(rows)}


def slope(means: np.ndarray) -> float:
    return float(np.polyfit(np.log(LEVELS), np.log(np.abs(means)), 1)[0])


READINGS = [of("runs", "error", level=level) for level in LEVELS]


def test_the_statistic_is_taken_of_means_not_the_mean_of_the_statistic() -> None:
    effect = of_means(READINGS, slope)(records(20))
    assert effect.value == pytest.approx(-1)
    assert effect.interval[0] < -1 < effect.interval[1]


def test_curves_come_as_curves() -> None:
    curves = [READINGS, READINGS[::-1]]
    apart = of_means(curves, lambda means: float(np.abs(means[0] - means[1]).sum()))(records(20))
    assert apart.value == pytest.approx(2 * (1 - 1 / 4))
    flat = of_means([*READINGS, *READINGS[::-1]], lambda m: float(np.abs(m[:3] - m[3:]).sum()))
    assert flat(records(20)) == apart


def test_of_a_mean_it_is_students_interval() -> None:
    (reading,) = READINGS[:1]
    effect = of_means([reading], lambda means: float(means[0]))(records(12))
    expected = scipy.stats.ttest_1samp(list(reading(records(12)).values.values()), 0)
    assert effect.interval == pytest.approx(tuple(expected.confidence_interval(0.95)))
    assert effect.seeds == effect.count == 12


def test_it_covers_what_bends() -> None:
    """The power of the level that errors fall with, of noisy means."""
    hits = 0
    for seed in range(300):
        low, high = of_means(READINGS, slope)(records(12, 0.1, seed)).interval
        hits += low <= -1 <= high
    assert 0.92 <= hits / 300 <= 0.98


def test_seeds_that_one_reading_lacks_take_no_part_and_a_nan_leaves_it_unknown() -> None:
    whole = records(12)["runs"]
    first, last = pl.col("seed") == 0, pl.col("level") == 4
    fewer = of_means(READINGS, slope)({"runs": whole.filter(~(first & last))})
    assert fewer.count == 11
    odd = whole.with_columns(error=pl.when(first & last).then(math.nan).otherwise("error"))
    assert math.isnan(of_means(READINGS, slope)({"runs": odd}).value)
    known = [reading.then(lab.PerSeed.known) for reading in READINGS]
    assert of_means(known, slope)({"runs": odd}) == fewer


def test_few_seeds_have_a_value_without_an_interval_and_none_have_nothing() -> None:
    few = of_means(READINGS, slope)(records(3))
    assert few.value == pytest.approx(-1)
    assert math.isnan(few.interval[0])
    assert math.isnan(of_means(READINGS, slope)({"runs": records(3)["runs"][:2]}).value)
