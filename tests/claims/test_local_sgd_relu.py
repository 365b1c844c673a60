"""The claim local-sgd-relu: its world, and the laws of its runs."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import asdict, replace
from typing import Any

import numpy as np
import polars as pl
import pytest
import torch
from contract import Contract

from undertow import claims, predict
from undertow.claims import Records
from undertow.claims.local_sgd_relu import LocalSgdRelu, experiments
from undertow.claims.local_sgd_relu.deep import Deep, follow_deep
from undertow.claims.local_sgd_relu.experiments import Network, follow, merged_kernel
from undertow.claims.local_sgd_relu.networks import samples, started
from undertow.claims.local_sgd_relu.predictions import pair_eigenvalue
from undertow.claims.local_sgd_relu.readings import read_at
from undertow.data import Images

pytestmark = pytest.mark.usefixtures("global_rng_untouched")

TINY = LocalSgdRelu(
    samples=8,
    features=6,
    widths=(6, 12, 24),
    rounds=6,
    period=2,
    periods=(1, 3),
    long=3,
    angles=(0.2, 0.4),
    depth=2,
    deep=(4, 8),
    seeds=2,
)
KNOBS = LocalSgdRelu(seeds=12)
NETWORK = Network("random", 64, 3, 3.0, 6, 12, 8, 3, Images(), 1_000)
# Of an experiment a column, by what it is multiplied, and in which runs.
Changed = tuple[str, str, float | pl.Expr, dict[str, object]]


def network(trial: Network) -> list[dict[str, Any]]:
    """What the claim predicts of a network, with a little spread over seeds."""
    wobble = 1 + 1e-3 * (trial.seed % 7)
    kernel = trial.scaling == "kernel"
    small = trial.width**-0.5 if kernel else 0.3
    opposite, angle = trial.data == "opposite", trial.angle
    late = angle**2 / 8 if opposite else 0.01
    wrong = trial.data in ("random", "images")
    parted = trial.data in ("clusters", "images")
    facts: dict[str, Any] = {
        "diverged": False,
        "error": 5 * small * wobble,
        "residual_error": small * wobble,
        "error_linear": 40 * small if wrong else None,
        "error_partition": 10 * small if parted else None,
        "error_parallel": 20 * small if parted else None,
        "error_full": 10 * small if trial.batch_size else None,
        "rate": -0.04 * wobble,
        "rate_expected": -0.04,
        "r_squared": 0.4 if opposite else 0.99,
        "late": -late * wobble,
        "late_expected": -0.01,
        "late_merged": -late if opposite else None,
        "first": pair_eigenvalue(angle) * wobble if opposite else None,
        "first_expected": pair_eigenvalue(angle) if opposite else None,
        "flips": small * wobble,
        "between": small * wobble / 4,
        "flips_expected": small if trial.counted else None,
        "between_expected": small / 4 if trial.counted else None,
    }
    return [
        facts
        | {"round": at, "loss": 0.5, "expected": 0.5 * wobble, "distance": 1.0}
        | {"distance_expected": 1.0, "drift_expected": 0.1}
        | {"drift": 0.1 * math.sqrt(1 + 30 * small * wobble)}
        | {"drift_forecast": 0.1 * math.sqrt(1 + 30 * small) if trial.counted else None}
        for at in (trial.rounds // 2, trial.rounds)
    ]


def deep(trial: Deep) -> list[dict[str, Any]]:
    small, wobble = trial.width**-0.5, 1 + 1e-3 * (trial.seed % 7)
    facts: dict[str, Any] = {"diverged": False, "error": small, "residual_error": small * wobble}
    facts |= {"rate": -0.03, "rate_expected": -0.03, "r_squared": 0.95}
    facts |= {"late": -0.02, "late_expected": -0.02}
    return [facts | {"round": trial.rounds, "loss": 0.5, "expected": 0.5}]


def world(seeds: int = 12, changed: Sequence[Changed] = ()) -> Records:
    """Records of a world in which every prediction holds, but for what is changed in it."""
    records: Records = {}
    made = experiments.experiments(LocalSgdRelu(seeds=seeds), 0)
    for name, experiment in made.items():
        ideal: Callable[[Any], list[dict[str, Any]]] = deep if name == "deep" else network
        rows = [
            {"trial": str(trial)} | {k: v for k, v in asdict(trial).items() if k != "images"} | row
            for trial in experiment.trials
            for row in ideal(trial)
        ]
        records[name] = pl.DataFrame(rows, infer_schema_length=None)
    for name, column, by, where in changed:
        hit = pl.all_horizontal(pl.col(key) == given for key, given in where.items())
        value = pl.when(hit).then(pl.col(column) * by).otherwise(pl.col(column))
        records = {**records, name: records[name].with_columns(value.alias(column))}
    return records


def broken(name: str, column: str, by: float | pl.Expr, **where: object) -> dict[str, Any]:
    return {"changed": [(name, column, by, where or {"diverged": False})]}


WIDTH = pl.col("width")
KERNEL: dict[str, object] = {"scaling": "kernel"}
ERRORS = ("residual_error", "error_linear")
FIELD: dict[str, object] = {"scaling": "mean-field"}
WIDE: dict[str, object] = {"width": 3200, "scaling": "kernel"}
NARROW: dict[str, object] = {"width": 800, "data": "opposite"}

CONTRACT = Contract(
    claim="local-sgd-relu",
    tiny=TINY,
    world=world,
    knobs=KNOBS,
    refuted=[
        (
            {"changed": [("widths", name, WIDTH, KERNEL) for name in ERRORS]},
            "error of the residuals, power",
        ),
        (broken("widths", "error", WIDTH, **KERNEL), "error of the log loss, power"),
        (broken("widths", "rate", 3.0, **WIDE), "m = 3200, slope of the log loss"),
        (broken("widths", "r_squared", 0.5, **WIDE), "m = 3200, R^2 of the log loss"),
        (broken("widths", "flips", WIDTH, **KERNEL), "signs flipped since the start, power"),
        (broken("widths", "flips", 2.0, **KERNEL), "signs flipped since the start over forecast"),
        (broken("widths", "between", WIDTH, **KERNEL), "signs flipped of clients from the aver"),
        (broken("widths", "between", 2.0, **KERNEL), "signs flipped of clients from the average o"),
        (broken("widths", "distance", 2.0, **WIDE), "m = 3200, ||w_k - w_bar||"),
        (broken("widths", "drift", 2.0, **WIDE), "m = 3200, gradient drift over forecast"),
        (broken("widths", "drift", WIDTH, **KERNEL), "squared gradient drift beyond"),
        (broken("periods", "rate", 0.3, period=50), "tau = 50, slope of the log loss"),
        (broken("periods", "loss", 3.0, period=50), "tau = 50, final loss"),
        (broken("pairs", "first", pl.col("angle"), width=3200), "near-duplicates, first rate"),
        (broken("pairs", "first", 2.0, width=3200), "angle 0.4, first rate over the map's"),
        (broken("pairs", "late", pl.col("angle"), **NARROW), "near-duplicates, late rate"),
        (broken("pairs", "late", 0.4, **NARROW), "angle 0.05, late rate over that of merged"),
        (broken("batches", "rate", 2.0), "small batches, slope of the log loss"),
        (broken("images", "residual_error", WIDTH, partition="iid"), "images iid, error"),
        (broken("images", "residual_error", WIDTH, partition="by_class"), "images by_class, er"),
        (broken("images", "rate", 2.0), "images, m = 800, slope of the log loss"),
        (broken("deep", "residual_error", WIDTH), "deep networks, error of the residuals"),
    ],
    left_open=[
        (broken("widths", "residual_error", 1 / WIDTH, **FIELD), "mean-field scaling, error"),
        (broken("widths", "error_linear", 0.1, **WIDE), "m = 3200, error with a linear"),
        (broken("widths", "flips", 1 / WIDTH, **FIELD), "mean-field scaling, signs flipped"),
        (
            broken("widths", "drift", 2 * WIDTH.pow(-0.25), **FIELD),
            "mean-field scaling, squared gradient",
        ),
        *(
            (broken("partitions", f"error_{name}", 0.1, partition=own), f"{own}, error with {word}")
            for own in ("iid", "by_class")
            for name, word in (("partition", "the other"), ("parallel", "averaging"))
        ),
        (broken("pairs", "late", 0.1, data="alike"), "angle 0.05, late rate with one label"),
        (broken("pairs", "r_squared", 2.4, data="opposite"), "angle 0.05, R^2"),
        (broken("batches", "error_full", 0.1), "small batches, error with the map of all"),
    ],
    bad_knobs=[
        ({"samples": 42}, "samples must be a multiple of clients = 4, got 42"),
        ({"samples": 2}, "samples must be at least 4"),
        ({"clients": 1}, "clients must be at least 2"),
        ({"widths": (50, 200)}, "widths must be at least 3 values"),
        ({"widths": (200, 50, 800)}, "widths must be ascending"),
        ({"period": 0}, "period must be at least 1"),
        ({"strength": 0.0}, "strength must be above 0"),
        ({"rounds": 2}, "rounds must be at least 4"),
        ({"angles": (0.1,)}, "angles must be at least 2 values"),
        ({"angles": (0.1, 2.0)}, "angles must be between 0 and"),
        ({"batch_size": 11}, "batch_size must be at most samples / clients = 10, got 11"),
        ({"depth": 1}, "depth must be at least 2"),
        ({"seeds": 1}, "seeds must be at least 2, got 1"),
    ],
)


# ---- runs


def test_wide_networks_are_nearer_to_their_map_than_narrow_ones() -> None:
    narrow, wide = (follow([replace(NETWORK, width=width)])[0][-1] for width in (50, 5_000))
    assert wide["residual_error"] < 0.3 * narrow["residual_error"]
    assert wide["error"] < 0.1


def test_units_start_in_directions_that_samples_say_nothing_of() -> None:
    trial = replace(NETWORK, samples=39, features=40)
    x, _, _ = samples(trial)
    weights, _ = started(200, 40, trial.seed)
    cosines = torch.nn.functional.normalize(weights) @ x.mT
    # Of independent directions in 40 dimensions; a unit along a sample has one of 1.
    assert float(cosines.abs().max()) < 0.8


def test_near_samples_are_near_and_the_first_clients() -> None:
    x, y, rows = samples(replace(NETWORK, data="opposite", angle=0.1))
    assert math.acos(float(x[0] @ x[1])) == pytest.approx(0.1)
    assert float(y[0]) == -float(y[1])
    assert {0, 1} <= set(rows[0].tolist())
    seen = merged_kernel(x.numpy())
    kernel = predict.arc_cosine_kernel(x.numpy())
    np.testing.assert_allclose(seen[2:, 2:], kernel[2:, 2:], atol=1e-12)
    pair = np.linalg.eigvalsh(seen[:2, :2])[0]
    assert pair == pytest.approx((1 - math.cos(0.1)) / 2)  # theta^2 / 4
    assert np.linalg.eigvalsh(kernel[:2, :2])[0] == pytest.approx(pair_eigenvalue(0.1))


@pytest.mark.parametrize("data", ["clusters", "images"])
def test_by_class_sorts_what_iid_mixes(data: str) -> None:
    trial = replace(NETWORK, data=data, samples=30, clients=3)
    x, y, mixed = samples(trial)
    same, labels, parted = samples(replace(trial, partition="by_class"))
    assert torch.equal(x, same)
    assert torch.equal(y, labels)
    assert sorted(parted.flatten().tolist()) == list(range(30)) == mixed.flatten().tolist()
    if data == "clusters":
        assert y[parted[0]].unique().numel() == 1


def test_a_deep_networks_first_round_is_near_that_of_its_kernel() -> None:
    trial = Deep(256, 3, 5, 3.0, 3, 12, 3, Images(), "by_class", 1_000)
    (rows,) = follow_deep([trial])
    assert rows[0]["round"] == read_at(3)[0]
    assert abs(math.log(rows[0]["loss"] / rows[0]["expected"])) < 0.05
    assert rows[-1]["loss"] < rows[0]["loss"]


def test_a_run_that_blows_up_is_recorded_and_leaves_the_others() -> None:
    calm, wild = follow([NETWORK, replace(NETWORK, strength=1e4)])
    assert wild == [{"round": 6, "diverged": True}]
    assert not calm[-1]["diverged"]


# ---- the verdict


def test_few_rounds_or_a_narrow_range_promise_nothing() -> None:
    claim = claims.get("local-sgd-relu")
    for knobs in (replace(KNOBS, rounds=50), replace(KNOBS, widths=(800, 1600, 3200))):
        assert claim.judge(world(), knobs).outcome == "inconclusive"


def test_a_short_fall_of_a_hand_set_bound_is_no_evidence() -> None:
    for name in ("partitions", "batches"):
        records = world(changed=[(name, "error", 30.0, {"diverged": False})])
        assert claims.get("local-sgd-relu").judge(records, KNOBS).outcome == "inconclusive"


def test_table_and_figures_hold_every_kind_of_run() -> None:
    claim, records = claims.get("local-sgd-relu"), world()
    assert set(claim.table(records, KNOBS)["part"]) == set(records)
    names = [drawn.name for drawn in claim.figures(records, KNOBS)]
    assert names == ["curves", "width", "pairs"]


@pytest.mark.parametrize("missing", ["widths", "pairs", "deep"])
def test_an_experiment_without_records_leaves_the_rest(missing: str) -> None:
    rest = {**world(), missing: pl.DataFrame(schema={"trial": pl.String})}
    claim = claims.get("local-sgd-relu")
    assert claim.judge(rest, KNOBS).outcome == "inconclusive"
    assert missing not in set(claim.table(rest, KNOBS)["part"])
    assert claim.figures(dict.fromkeys(rest, rest[missing]), KNOBS) == ()
