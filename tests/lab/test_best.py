"""Tuned against tuned: what is best is chosen by the other seeds."""

from __future__ import annotations

import polars as pl

from undertow.lab import best_elsewhere, of

RUNS = pl.DataFrame(
    [
        {"seed": seed, "lr": lr, "loss": loss}
        for lr, losses in {
            0.1: (5.0, 2.0, 2.0),
            0.2: (1.0, 3.0, 3.0),
            0.4: (0.0, 0.0, None),
        }.items()
        for seed, loss in enumerate(losses)
    ]
)
RATES = [of("runs", "loss", lr=lr) for lr in (0.1, 0.2, 0.4)]


def test_no_seed_chooses_for_itself() -> None:
    # For seed 0 the others say 0.1 (2 against 3); for each other they say 0.2 (2 against 3.5).
    assert best_elsewhere(RATES)({"runs": RUNS}).values == {0: 5.0, 1: 3.0, 2: 3.0}


def test_the_largest_is_the_smallest_of_the_negatives() -> None:
    negated = best_elsewhere([-rate for rate in RATES], "largest")
    assert (-negated)({"runs": RUNS}).values == {0: 5.0, 1: 3.0, 2: 3.0}


def test_a_rate_at_which_a_run_is_lost_is_never_the_best() -> None:
    assert 0.0 not in best_elsewhere(RATES)({"runs": RUNS}).values.values()


def test_one_seed_has_no_others() -> None:
    assert not len(best_elsewhere(RATES)({"runs": RUNS.filter(seed=0)}))
