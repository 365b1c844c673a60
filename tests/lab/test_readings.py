"""Readings: from records to one number a seed, or to an effect."""

from __future__ import annotations

import math

import polars as pl

from undertow.lab import greatest, of

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
