"""The claim sgd-noise: its world, and the laws of its runs."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import polars as pl
import pytest
import torch
from contract import Contract

from undertow import claims, measure
from undertow.claims import Records
from undertow.claims.sgd_noise import KINDS, SgdNoise, experiments
from undertow.claims.sgd_noise.experiments import Rest, Training
from undertow.data import Images

TINY = SgdNoise(
    images=Images(train_size=30),
    width=12,
    weight_decay=(0.0, 5e-3, 2e-2),
    steps=300,
    samples=64,
    decay_exponent=0.02,
    seeds=3,
)
KNOBS = SgdNoise(seeds=12)
CLAIM = claims.get("sgd-noise")


def world(
    seeds: int = 12,
    *,
    tightness: float = 1.2,
    loudest: float = 1.0,
    undecayed_rms: float = 1e-6,
    residual: float = 1e-7,
    fit: float = 1.0,
    of_rank_one: float = 2.0,
    single_floor: float = 1e-6,
    epochs: float = 0.5,
    epochs_normed: float = 1.0,
    epochs_undecayed: float = 1.0,
    steps: float = 1.1,
    noise_left: float = 0.02,
    noise_left_normed: float = 0.6,
    undecayed_move: float = 0.01,
    lost: int = 0,
) -> Records:
    """Records of a world in which every prediction holds, but for what is given otherwise."""
    generator = np.random.default_rng(0)

    def drawn(value: float) -> float:
        return value * generator.normal(1, 0.01)

    rest, trained = [], []
    cells = [(10, decay) for decay in KNOBS.weight_decay] + [(2, experiments.middle(KNOBS))]
    for seed in range(seeds):
        for classes, decay in cells:
            strongest = decay == max(KNOBS.weight_decay)
            for layer, batch_size in ((la, b) for la in (1, 2, 3) for b in KNOBS.batch_sizes):
                floor = decay * (3 if classes == 10 else single_floor)
                rms = undecayed_rms if decay == 0 else decay * 30 * (loudest if strongest else 1)
                rest.append(
                    {
                        "trial": f"{classes} {decay} {seed}",
                        "seed": seed,
                        "classes": classes,
                        "weight_decay": decay,
                        "layer": layer,
                        "batch_size": batch_size,
                        "diverged": False,
                        "train_accuracy": fit if strongest else 1.0,
                        "floor": floor,
                        "decay": decay * 30 / of_rank_one,
                        "least": drawn(decay * 3 * tightness) if decay else 1e-6,
                        "rms": drawn(rms),
                        "residual": drawn(residual),
                    }
                )
        for kind, (_, most) in KINDS.items():
            normed = kind == "batch norm"
            for decay, batch_size, equal in (
                (decay, size, when)
                for decay in (most, 0.0)
                for size, when in ((4, "both"), (32, "epochs"), (32, "steps"))
            ):
                over = epochs_undecayed if not decay else epochs_normed if normed else epochs
                small = batch_size == 4
                rank = 15.0 if small else 15.0 / (over if equal == "epochs" else steps)
                left = 1.0 if decay else noise_left_normed if normed else noise_left
                row = {
                    "trial": f"{kind} {decay} {batch_size} {seed}",
                    "seed": seed,
                    "kind": kind,
                    "weight_decay": decay,
                    "batch_size": batch_size,
                    "equal_epochs": equal != "steps",
                    "equal_steps": equal != "epochs",
                    "diverged": seed < lost,
                    "train_accuracy": 1.0,
                    "layer": "2.weight",
                    "rank": drawn(rank),
                    "floor": decay if small else None,
                    "least": 1.1 * decay if small else None,
                    "rms": drawn(left) if small else None,
                    "displacement": drawn(1.0 if decay else undecayed_move) if small else None,
                    "radial": -drawn(0.04) if small else None,
                    "noise": drawn(0.7) if small else None,
                    "shrinkage": 2.0 if small else None,
                }
                trained.append(row)
    return {
        "training": pl.DataFrame(trained, infer_schema_length=None),
        "rest": pl.DataFrame(rest),
    }


CONTRACT = Contract(
    claim="sgd-noise",
    tiny=TINY,
    world=world,
    knobs=KNOBS,
    refuted=[
        ({"loudest": 1e-3}, "noise rises with decay"),
        ({"epochs": 1.2}, "rank, batch 4 over 32, equal epochs, perceptron"),
        ({"epochs": 1.2}, "rank, batch 4 over 32, equal epochs, convolutions"),
        ({"epochs": 1.2}, "rank, batch 4 over 32, equal epochs, residual"),
        ({"noise_left": 1.5}, "noise without decay over with, perceptron"),
        ({"noise_left": 1.5}, "noise without decay over with, convolutions"),
        ({"noise_left": 1.5}, "noise without decay over with, residual"),
    ],
    left_open=[
        ({"undecayed_rms": 0.01}, "noise without decay over weakest decay"),
        ({"residual": 0.01}, "full-batch gradient over least batch gradient"),
        ({"tightness": 2.5}, "twice the floor broken, hidden matrix"),
        ({"of_rank_one": 0.5}, "noise over weight_decay x ||W||, hidden matrix of two classes"),
        ({"single_floor": 3.0}, "floor over noise, hidden matrix of two classes"),
        ({"epochs_normed": 0.5}, "rank, batch 4 over 32, equal epochs, batch norm"),
        ({"epochs_undecayed": 0.5}, "rank, batch 4 over 32, equal epochs, no decay"),
        ({"steps": 0.6}, "rank, batch 4 over 32, equal steps, perceptron"),
        ({"steps": 0.6}, "rank, batch 4 over 32, equal steps, convolutions"),
        ({"steps": 0.6}, "rank, batch 4 over 32, equal steps, residual"),
        ({"noise_left_normed": 0.01}, "noise without decay over with, batch norm"),
        ({"undecayed_move": 0.5}, "displacement in an epoch without decay over with"),
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
        ({"small_batch": 1}, "small_batch must be at least 2"),
        ({"small_batch": 32}, "large_batch must be above small_batch = 32"),
        ({"samples": 20}, "samples must be at least large_batch = 32"),
        ({"decay_exponent": 0.0}, "decay_exponent must be above 0"),
        ({"threshold": 1.0}, "threshold must be between"),
        ({"width": 10}, "width must be a multiple of 4"),
        ({"fit": 1.5}, "fit must be at most 1"),
    ],
)


REST = Rest(Images(train_size=30), 12, 10, 5e-3, 5, (1, 12), 100, 7)


def test_no_batch_goes_below_the_floor_wherever_training_stands() -> None:
    trials = [replace(REST, weight_decay=decay, steps=100) for decay in (0.0, 5e-3, 2e-2)]
    for trial, rows in zip(trials, experiments.come_to_rest(trials), strict=True):
        for row in rows:
            assert row["least"] >= row["floor"] * (1 - 1e-9)
            # A batch of 12 can have every matrix's rank.
            assert (row["floor"] > 0) == (trial.weight_decay > 0 and row["batch_size"] == 1)


@pytest.mark.parametrize("kind", KINDS)
def test_nor_does_it_under_sgd_in_any_kind_of_network(kind: str) -> None:
    trial = Training(Images(train_size=64), 12, kind, 4, 4, 0.1, 1e-2, 6, 0.02, 1_001)
    other = replace(trial, seed=1_002, weight_decay=0.0)
    for own, rows in zip((trial, other), experiments.train([trial, other]), strict=True):
        assert rows
        assert all(row["equal_epochs"] and row["equal_steps"] for row in rows)
        assert all(row["least"] >= row["floor"] * (1 - 1e-4) for row in rows)
        assert all(row["shrinkage"] == pytest.approx(16 * 0.1 * own.weight_decay) for row in rows)
        assert all(0 <= row["noise"] <= row["displacement"] for row in rows)


def test_a_large_batch_is_read_after_as_many_epochs_and_as_many_steps() -> None:
    trial = Training(Images(train_size=64), 12, "perceptron", 32, 4, 0.1, 1e-2, 80, 0.02, 1_001)
    (rows,) = experiments.train([trial])
    assert [(row["equal_epochs"], row["equal_steps"]) for row in rows] == [
        (True, False),
        (False, True),
    ]
    after = experiments.of_kind([trial])
    for row, steps in zip(rows, (10, 80), strict=True):
        after.ensemble.train(steps - after.ensemble.steps_taken)
        weights = after.ensemble.parameters()["3.weight"][0]
        assert row["rank"] == int(measure.matrix_ranks(weights, 0.02).threshold_rank)


def test_gradients_of_single_samples_are_those_of_evaluation_without_batch_norm() -> None:
    trial = Training(Images(train_size=40), 12, "residual", 4, 4, 0.1, 1e-2, 3, 0.02, 1_001)
    trained = experiments.of_kind([trial])
    module, data = trained.ensemble.module(0), trained.data_of(0)
    single = torch.arange(5)[:, None]
    ours = experiments.gradient_norms(module.train(), (data[0][single], data[1][single]), 1e-2)
    theirs = measure.batch_gradient_norms(trained.objective(0), single, weight_decay=1e-2)
    for name, norms in theirs.items():
        torch.testing.assert_close(ours[name], norms, rtol=1e-4, atol=1e-6)


def test_what_diverges_is_said_to() -> None:
    trial = Training(Images(train_size=64), 12, "perceptron", 4, 4, 1e30, 0.0, 10, 0.02, 1_001)
    (rows,) = experiments.train([trial])
    assert all(row["diverged"] and row["rank"] is None for row in rows)


@pytest.mark.parametrize("what", ["collapsed", "missing", "diverged"])
def test_a_verdict_needs_nine_in_ten_runs(what: str) -> None:
    records = world(fit=0.1 if what == "collapsed" else 1.0, lost=4 if what == "diverged" else 0)
    if what == "missing":
        few = records["training"].filter(pl.col("batch_size") == 4)
        records = {**records, "training": few}
    verdict = CLAIM.judge(records, KNOBS)
    assert verdict.outcome == "inconclusive"
    kept = {"collapsed": 252, "missing": 168, "diverged": 200}[what]
    assert verdict.summary.startswith(f"{kept} of 264 runs were kept")


def test_a_floor_far_below_leaves_it_open_and_refutes_nothing() -> None:
    verdict = CLAIM.judge(world(tightness=1.8), KNOBS)
    assert verdict.outcome == "inconclusive"
    (missed,) = [check for check in verdict.checks if not check.passed]
    assert missed.name == "measured minimum over floor, hidden matrix"
    assert not missed.refuted


def test_one_decay_has_no_trend() -> None:
    one = replace(KNOBS, weight_decay=(0.0, 2e-2))
    records = world()
    kept = records["rest"].filter(pl.col("weight_decay").is_in([0.0, 2e-2]))
    assert CLAIM.judge({**records, "rest": kept}, one).outcome == "inconclusive"
