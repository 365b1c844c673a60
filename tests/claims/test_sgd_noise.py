"""The claim sgd-noise: its world, and the laws of its runs."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import polars as pl
import pytest
from contract import Contract

from undertow import claims
from undertow.claims import Records
from undertow.claims.sgd_noise import SgdNoise, experiments
from undertow.claims.sgd_noise.experiments import Rest, Shrinking
from undertow.data import Images

TINY = SgdNoise(
    images=Images(train_size=30),
    width=12,
    weight_decay=(0.0, 5e-3, 2e-2),
    steps=300,
    fit_steps=200,
    late_epochs=3,
    shrink_samples=64,
    seeds=3,
)
KNOBS = SgdNoise(seeds=12)
SHRINKAGE = 25 * 0.1 * 1e-3  # of an epoch
CLAIM = claims.get("sgd-noise")


def world(
    seeds: int = 12,
    *,
    violations: int = 0,
    pairs: int = 100,
    tightness: float = 1.2,
    loudest: float = 1.0,
    undecayed_rms: float = 1e-6,
    residual: float = 1e-7,
    fit: float = 1.0,
    plateau: float = 0.98,
    descent_plateau: float = 0.98,
    undecayed: float = 0.02,
    early_noise: float = 0.01,
    sideways: float = 3.0,
    late_noise: float = 0.7,
    lost: int = 0,
) -> Records:
    """Records of a world in which every prediction holds, but for what is given otherwise."""
    generator = np.random.default_rng(0)

    def drawn(value: float) -> float:
        return value * generator.normal(1, 0.01)

    rest, moved = [], []
    for seed in range(seeds):
        for decay in KNOBS.weight_decay:
            strongest = decay == max(KNOBS.weight_decay)
            for layer, batch_size in ((la, b) for la in (1, 2, 3) for b in KNOBS.batch_sizes):
                floor = decay * 3
                rms = undecayed_rms if decay == 0 else decay * 30 * (loudest if strongest else 1)
                rest.append(
                    {
                        "trial": f"{decay} {seed}",
                        "seed": seed,
                        "weight_decay": decay,
                        "layer": layer,
                        "batch_size": batch_size,
                        "diverged": False,
                        "train_accuracy": fit if strongest else 1.0,
                        "pairs": pairs if decay else 0,
                        "violations": violations if seed == layer == 1 and strongest else 0,
                        "floor": floor,
                        "least": drawn(floor * tightness) if decay else 1e-6,
                        "rms": drawn(rms),
                        "residual": drawn(residual),
                    }
                )
        early, late = SHRINKAGE, 6e-4  # displacements
        for method, decay, epoch, total, tangential, noise in (
            ("SGD", 0.0, 0, early * undecayed, 1e-5, 0.0),
            ("GD", 0.0, 0, early * undecayed, 1e-5, None),
            ("SGD", 1e-3, 0, early * plateau, 1e-5, early * early_noise),
            ("GD", 1e-3, 0, early * descent_plateau, 1e-5, None),
            ("SGD", 1e-3, 600, late, 1e-4 * sideways, late * late_noise),
            ("GD", 1e-3, 600, late, 1e-4, None),
        ):
            moved.append(
                {
                    "trial": f"{decay} {seed}",
                    "seed": seed,
                    "weight_decay": decay,
                    "method": method,
                    "epoch": epoch,
                    "diverged": seed < lost,
                    "displacement": drawn(total),
                    "radial": -drawn(total),
                    "tangential": drawn(tangential),
                    "noise": None if noise is None else drawn(noise),
                    "shrinkage": SHRINKAGE if decay else 0.0,
                }
            )
    return {
        "rest": pl.DataFrame(rest),
        "displacement": pl.DataFrame(moved, infer_schema_length=None),
    }


CONTRACT = Contract(
    claim="sgd-noise",
    tiny=TINY,
    world=world,
    knobs=KNOBS,
    refuted=[
        ({"violations": 1}, "guaranteed floor violated"),
        ({"tightness": 1.8}, "measured minimum over floor"),
        ({"loudest": 1e-3}, "noise rises with decay"),
        ({"plateau": 0.5, "descent_plateau": 0.5}, "displacement over shrinkage"),
        ({"early_noise": 0.3}, "noise over displacement, after fitting"),
        ({"sideways": 1.0}, "tangential displacement, SGD over GD, late"),
        ({"late_noise": 1e-3}, "noise over displacement, late"),
    ],
    left_open=[
        ({"undecayed_rms": 0.01}, "noise without decay over weakest decay"),
        ({"residual": 0.01}, "full-batch gradient over least batch gradient"),
        ({"tightness": 2.5}, "twice the floor broken, hidden matrix"),
        ({"descent_plateau": 0.5}, "displacement, SGD over GD, after fitting"),
        ({"undecayed": 0.5}, "displacement without decay over shrinkage"),
    ],
    bad_knobs=[
        ({"weight_decay": (0.0,)}, "weight_decay must be at least 2 values"),
        ({"weight_decay": (1e-3, 1e-2)}, "weight_decay must hold 0"),
        ({"weight_decay": (0.0, -1e-3)}, "weight_decay must be at least 0"),
        ({"weight_decay": (0.0, 1e-3, 1e-3)}, "weight_decay must be values without one twice"),
        ({"weight_decay": (0.0, 10.0)}, "weight_decay must be below 10"),
        ({"batch_sizes": (1, 100)}, "batch_sizes must lie below train_size = 100"),
        ({"batch_sizes": (4,)}, "batch_sizes must hold 1"),
        ({"batch_sizes": (1, 4, 4)}, "batch_sizes must be values without one twice"),
        ({"shrink_decay": 0.0}, "shrink_decay must be between"),
        ({"shrink_decay": 10.0}, "shrink_decay must be between"),
        ({"shrink_samples": 8}, "shrink_samples must be at least 16"),
        ({"width": 1}, "width must be at least 2"),
        ({"late_epochs": 0}, "late_epochs must be at least 1"),
        ({"fit": 1.5}, "fit must be at most 1"),
    ],
)


REST = Rest(Images(train_size=30), 12, 5e-3, 5, (1, 12), 100, 7)


def test_no_batch_goes_below_the_floor_wherever_training_stands() -> None:
    trials = [replace(REST, weight_decay=decay, steps=100) for decay in (0.0, 5e-3, 2e-2)]
    for trial, rows in zip(trials, experiments.come_to_rest(trials), strict=True):
        for row in rows:
            assert row["violations"] == 0
            assert row["least"] >= row["floor"] * (1 - 1e-9)
            assert (row["floor"] > 0) == (trial.weight_decay > 0 and row["batch_size"] == 1)


def test_pairs_count_only_where_there_is_a_floor() -> None:
    (rows,) = experiments.come_to_rest([REST])
    # A batch of 12 can have every matrix's rank.
    assert [row["pairs"] for row in rows] == [30] * 3 + [0] * 3


def test_a_displacement_that_diverges_is_said_to(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(experiments, "LR", 1e200)
    rows = experiments.displace(Shrinking(Images(train_size=64), 0.0, 20, 3, 5))
    assert [row["method"] for row in rows] == ["SGD", "GD"]
    assert all(row["diverged"] for row in rows)


@pytest.mark.parametrize("what", ["collapsed", "missing", "diverged"])
def test_a_verdict_needs_nine_in_ten_runs(what: str) -> None:
    records = world(fit=0.1 if what == "collapsed" else 1.0, lost=9 if what == "diverged" else 0)
    if what == "missing":
        rest = records["rest"].filter(pl.col("weight_decay") < max(KNOBS.weight_decay))
        records = {**records, "rest": rest}
    verdict = CLAIM.judge(records, KNOBS)
    assert verdict.outcome == "inconclusive"
    assert verdict.summary.startswith(f"{66 if what == 'diverged' else 72} of 84 runs were kept")
    (trend,) = [check for check in verdict.checks if check.name == "noise rises with decay"]
    assert trend.passed == (what == "diverged")


def test_one_decay_has_no_trend() -> None:
    one = replace(KNOBS, weight_decay=(0.0, 2e-2))
    records = world()
    kept = records["rest"].filter(pl.col("weight_decay").is_in([0.0, 2e-2]))
    assert CLAIM.judge({**records, "rest": kept}, one).outcome == "inconclusive"


def test_few_pairs_leave_it_open_unless_one_breaks_the_floor() -> None:
    assert CLAIM.judge(world(pairs=1), KNOBS).outcome == "inconclusive"
    assert CLAIM.judge(world(pairs=1, violations=1), KNOBS).outcome == "refuted"
