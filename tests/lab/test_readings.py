"""Readings: one number a seed, and what becomes of what is not there."""

from __future__ import annotations

import math

import polars as pl

from undertow.lab import KEPT, kept, lost, no_less, of


def test_an_experiment_without_records_has_no_seeds() -> None:
    records = {"runs": pl.DataFrame(schema={"trial": pl.String})}
    read = of("runs", "loss", ~pl.col("diverged"), lr=0.1)
    assert len(read(records)) == 0
    check = no_less(1, read).check("loss", records)
    assert math.isnan(check.value)
    assert not check.passed
    assert not check.refuted


def test_a_trial_that_diverges_anywhere_is_lost_whole() -> None:
    runs = pl.DataFrame(
        {
            "trial": ["a", "a", "b", "b"],
            "seed": [1, 1, 2, 2],
            "diverged": [False, True, False, False],
            "loss": [1.0, None, 3.0, 5.0],
        }
    )
    exact = pl.DataFrame({"trial": ["c"], "gap": [0.1]})  # what cannot diverge
    records = {"runs": runs, "exact": exact, "none": pl.DataFrame(schema={"trial": pl.String})}
    assert of("runs", "loss", KEPT)(records).values == {2: 4.0}
    assert kept(runs)["trial"].to_list() == ["b", "b"]
    assert kept(exact).equals(exact)
    assert lost(records) == (1, 3)
    assert lost(records, "exact", "none") == (0, 1)
