"""The claim momentum: its world, and the laws of its runs."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import polars as pl
import pytest
from contract import Contract

from undertow import claims, predict
from undertow.claims import Records
from undertow.claims.momentum import Momentum, experiments
from undertow.claims.momentum.experiments import CURVATURES, NOISES, Network, Recursion
from undertow.data import Images

TINY = Momentum(
    images=Images(train_size=120),
    replicas=200,
    path_exponents=(4, 5),
    width=8,
    batch_size=16,
    steps=24,
    lrs=(0.05, 0.5),
    large_lr=0.5,
    svag_levels=(2,),
    seeds=3,
)


def world(
    seeds: int = 12,
    *,
    half_order: float = 0.5,
    last_order: float = 0.0,
    ratio: float = 1.0,
    small_gap: float = 0.0,
    raw_gap: float = -0.14,
    large_gap: float = -1.5,
    svag_gap: float = 0.01,
    edge: float = 2.5,
    shuffled: float = 0.8,
    edge_ratio: float | None = None,
    lost: int = 0,
) -> Records:
    """Records of a world in which every prediction holds, but for what is given otherwise."""
    generator = np.random.default_rng(0)
    gaps = [
        (alpha, exponent, 0.5 * 2.0 ** (-exponent * order))
        for alpha, order in {0.0: 1.0, 0.5: half_order, 1.0: last_order}.items()
        for exponent in range(6, 11)
    ]
    recursions = [
        {"noise": noise, "alpha": alpha, "exponent": exponent, "exact_gap": gap}
        for alpha, exponent, gap in gaps
        for noise in NOISES
    ]
    paths = [
        {
            "alpha": alpha,
            "exponent": exponent,
            "seed": seed,
            "path_gaps": (gap * generator.normal(1, 0.05, 4)).tolist(),
        }
        for alpha, exponent, gap in gaps
        for seed in range(seeds)
    ]
    stationary, networks = [], []
    for seed in range(seeds):
        for curvature in CURVATURES:
            equal = predict.momentum_equivalent(curvature, 0.9, form="ema", sharpness=1.0)
            predicted = equal.variance_ratio
            kept = edge_ratio if edge_ratio and curvature == 1.0 else ratio * predicted
            stationary += [
                {
                    "seed": seed,
                    "order": order,
                    "curvature": curvature,
                    "measured_ratio": value * generator.normal(1, 0.01),
                    "predicted_ratio": predicted,
                }
                for order, value in (("replacement", kept), ("epochs", shuffled * predicted))
            ]
        for lr, level in [(0.05, 1), *((2.0, level) for level in (1, 2, 4, 8))]:
            base = 0.16 if lr == 0.05 else math.exp(-1 - math.log(level))
            own = small_gap if lr == 0.05 else base * (math.exp(large_gap) - 1)
            if level > 1:
                own = base * (math.exp(svag_gap) - 1)
            losses = {"sgd": base, "momentum": base + own}
            if level == 1:
                losses["raw"] = base + raw_gap
            networks += [
                {
                    "trial": f"{seed} {lr} {level} {method}",
                    "seed": seed,
                    "lr": lr,
                    "level": level,
                    "method": method,
                    "diverged": seed < lost and method == "sgd",
                    "loss": max(loss * generator.normal(1, 0.01), 1e-6),
                    "lagged_loss": base * 1.01 if method == "sgd" else None,
                    "accuracy": 0.95 + 0.001 * generator.normal(),
                    "edge": edge,
                }
                for method, loss in losses.items()
            ]
    return {
        "recursions": pl.DataFrame(recursions),
        "paths": pl.DataFrame(paths),
        "stationary": pl.DataFrame(stationary),
        "networks": pl.DataFrame(networks, infer_schema_length=None),
    }


CONTRACT = Contract(
    claim="momentum",
    tiny=TINY,
    world=world,
    knobs=Momentum(seeds=12),
    refuted=[
        ({"half_order": 0.25}, "order of the weak error, alpha = 0.5, exact"),
        ({"half_order": 0.25}, "order of the weak error, alpha = 0.5, simulated"),
        ({"ratio": 1.2}, "stationary variance ratio over its closed form"),
        ({"small_gap": 0.05}, "train loss, momentum - SGD, lr 0.05"),
        ({"large_gap": 0.1}, "train loss, momentum - SGD, lr 2"),
        ({"edge": 1.0}, "lr x sharpness of the momentum runs"),
        ({"svag_gap": -1.4}, "share of the log-loss gap left"),
        ({"svag_gap": 1.0}, "train loss, momentum - SGD, lr 2, SVAG"),
    ],
    left_open=[
        ({"last_order": 0.5}, "order of the weak error, alpha = 1, exact"),
        ({"last_order": 0.5}, "order of the weak error, alpha = 1, simulated"),
        ({"edge_ratio": 0.95}, "stationary variance ratio at lr x sharpness 1"),
        ({"shuffled": 1.0}, "stationary variance ratio over shuffled epochs"),
        ({"raw_gap": 0.0}, "train loss at the same raw lr"),
    ],
    bad_knobs=[
        ({"momentum": 1.0}, "momentum must be between 0 and 1"),
        ({"small_lr": 0.3}, "small_lr must be one of lrs"),
        ({"svag_levels": (1,)}, "svag_levels must be above 1"),
        ({"path_exponents": (2, 3)}, "path_exponents must be at least 3"),
        ({"path_exponents": (6, 6)}, "path_exponents must be values without one twice"),
        ({"path_exponents": (6,)}, "path_exponents must be at least 2 values"),
        ({"images": Images(train_size=20)}, "train_size must be at least 32"),
        ({"regression_size": 20}, "regression_size must be at least 32"),
        ({"replicas": 0}, "replicas must be at least 1"),
        ({"seeds": 1}, "seeds must be at least 2"),
    ],
)


def test_the_order_of_the_exact_gap_is_twice_the_guaranteed_one() -> None:
    rows = experiments.recursions(Recursion("additive", (10, 12)))
    found = {(row["alpha"], row["exponent"]): row["exact_gap"] for row in rows}
    for alpha in (0.0, 0.5, 1.0):
        order = math.log(found[alpha, 10] / found[alpha, 12]) / math.log(4)
        assert order == pytest.approx(1 - alpha, abs=0.06)


def test_a_lag_longer_than_the_rest_of_the_run_is_read_before_its_first_quarter_ends() -> None:
    short = Network(Images(train_size=64), 8, 16, 8, 0.99, 0.5, "sgd", 1, 3)
    ((row,),) = experiments.train((short,))
    # One minus what is left of a buffer that forgets 1% a step, over 8 steps: not yet one step.
    ((start,),) = experiments.train((replace(short, steps=1),))
    assert row["lagged_loss"] == pytest.approx(start["lagged_loss"])
    assert row["lagged_loss"] > row["loss"]
    assert row["edge"] > 0


def test_a_diverged_pair_is_left_out_and_counted() -> None:
    verdict = claims.get("momentum").judge(world(lost=1), Momentum(seeds=12))
    assert verdict.outcome == "supported", verdict
    assert verdict.summary.startswith("5 of ")


def test_what_diverged_altogether_leaves_no_empty_chart() -> None:
    lost = world(lost=12)
    figures = claims.get("momentum").figures(lost, Momentum(seeds=12))
    assert [figure.name for figure in figures] == ["order", "variances", "network"]
    assert claims.get("momentum").judge(lost, Momentum(seeds=12)).outcome == "inconclusive"
