"""Readings: from records to one number a seed, or to an effect."""

from __future__ import annotations

import math

import polars as pl
import pytest

from undertow.lab import greatest, of, slope_of, worst

RECORDS = {
    "one": pl.DataFrame({"seed": [1, 1, 2, 3], "x": [1.0, 5.0, 2.0, math.nan]}),
    "other": pl.DataFrame({"seed": [1, 2, 3, 4], "x": [3.0, 7.0, 1.0, 4.0]}),
}


def test_the_greatest_of_several_readings_is_taken_within_seeds() -> None:
    found = greatest(of(name, "x", how="max") for name in RECORDS)
    for _ in range(2):  # it can be read again
        values = found(RECORDS).values
        assert {seed: values[seed] for seed in (1, 2, 4)} == {1: 5, 2: 7, 4: 4}
        assert math.isnan(values[3])
    assert not greatest([])(RECORDS).values


def test_the_worst_reading_can_be_read_again() -> None:
    farthest = worst((of("other", "x") + shift for shift in (0.0, 10.0)), target=3.0)
    assert farthest(RECORDS).value == farthest(RECORDS).value == pytest.approx(13.75)


def test_a_slope_over_seeds_is_the_mean_of_their_own_and_may_be_unknown() -> None:
    rows = pl.DataFrame(
        [
            {"seed": seed, "lr": lr, "gap": 3 * lr**power}
            for seed, power in enumerate((1.9, 2.0, 2.1))
            for lr in (0.1, 0.2, 0.4)
        ]
    )
    log_lr, log_gap = pl.col("lr").log(), pl.col("gap").log()
    order = slope_of("runs", log_lr, log_gap)
    found = order.effect({"runs": rows})
    assert found.value == pytest.approx(2)
    assert found.interval[0] < 1.9 < 2.1 < found.interval[1]
    for where in ({"seed": 1}, {"lr": 0.1}, {"lr": 7.0}):  # one seed, one point, nothing
        assert math.isnan(slope_of("runs", log_lr, log_gap, **where).effect({"runs": rows}).value)
    lost = rows.with_columns(gap=pl.when(pl.col("lr") == 0.1).then(0.0).otherwise("gap"))
    assert math.isnan(order.effect({"runs": lost}).value)
    kept = slope_of("runs", log_lr, log_gap, pl.col("gap") > 0)
    assert kept.effect({"runs": lost}).value == pytest.approx(2)
