"""The claim momentum: its world, and the laws of its runs."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import polars as pl
import pytest
from contract import Contract

from undertow import claims, predict
from undertow.claims import Records
from undertow.claims.momentum import Momentum, experiments
from undertow.claims.momentum.experiments import CURVATURES, Network
from undertow.data import Images, Text

Noise = np.random.Generator

TINY = Momentum(
    images=Images(train_size=120),
    replicas=200,
    path_exponents=(4, 5),
    long_exponents=(3, 4),
    width=8,
    batch_size=16,
    steps=24,
    lrs=(0.05, 0.5),
    large_lr=0.5,
    levels=(2,),
    tuned_batches=(16,),
    tuned_lrs=(0.1, 0.2, 0.4),
    epochs=1,
    text=Text(windows=32, context=4),
    tuning_windows=16,
    pretrain_steps=2,
    seeds=3,
)
KNOBS = replace(
    TINY,
    path_exponents=(6, 7, 8),
    long_exponents=(5, 6),
    lrs=(0.05, 2.0),
    large_lr=2.0,
    levels=(2, 8),
    tuned_batches=(8, 16),
    tuned_lrs=(0.2, 0.4, 0.8),
    seeds=16,
)


@dataclass(frozen=True)
class Broken:
    """What differs from a world in which every prediction holds."""

    half_order: float = 0.5
    last_order: float = 0.0
    drift: float = 1.0  # of momentum along minima, over the exact one
    drift_order: float = 1.0
    raw_drift: float = 7.0
    ratio: float = 1.0
    edge_ratio: float | None = None
    shuffled: float = 0.8
    small_gap: float = 0.0
    raw_gap: float = -0.14
    large_gap: float = -1.5  # of log losses, as all that follow
    edge: float = 2.5
    full_gap: float = -2.0
    fine_gap: float = 0.01
    svag_gap: float = -1.0  # at the coarsest level
    tuned_gap: float = 0.0  # of the train and test loss, and a fifth of it of the accuracy
    clean_gap: float = -1.0
    text_gap: float = 0.0
    text_raw: float = -0.2
    lost: int = 0

    def paths(self, trial: Any, noise: Noise) -> list[dict[str, Any]]:
        orders = {0.0: 1.0, 0.5: self.half_order, 1.0: self.last_order}
        return [
            {
                "alpha": alpha,
                "exponent": n,
                "path_gaps": (0.5 * 2.0 ** (-n * order) * noise.normal(1, 0.02, 4)).tolist(),
            }
            for alpha, order in orders.items()
            for n in trial.path_exponents
        ]

    def long(self, trial: Any, noise: Noise) -> list[dict[str, Any]]:
        rows = []
        for n in trial.long_exponents:
            law = {"sgd": -1 - 2.0 ** (-n * self.drift_order), "momentum": -1.0, "raw": -1.0}
            left = law | {"momentum": -self.drift, "raw": -self.raw_drift}
            for method, own in left.items():
                jitter = noise.normal(0, 1e-4)
                row = {"method": method, "lr": 2.0**-n, "log_left": own + jitter}
                rows.append(row | {"predicted": law[method]})
        return rows

    def stationary(self, trial: Any, noise: Noise) -> list[dict[str, Any]]:
        rows = []
        for curvature in CURVATURES:
            equal = predict.momentum_equivalent(curvature, 0.9, form="ema", sharpness=1.0)
            law = equal.variance_ratio
            kept = self.edge_ratio if self.edge_ratio and curvature == 1 else self.ratio * law
            value = self.shuffled * law if trial.order == "epochs" else kept
            found = {"measured_ratio": value * noise.normal(1, 0.01), "predicted_ratio": law}
            rows.append({"curvature": curvature} | found)
        return rows

    def networks(self, trial: Any, noise: Noise) -> list[dict[str, Any]]:
        log_loss, added = math.log(0.2), 0.0
        if trial.lr == 0.05:
            added = {"sgd": 0.0, "momentum": self.small_gap, "raw": self.raw_gap}[trial.method]
        elif trial.method == "momentum":
            if trial.kind == "plain":
                log_loss += {1: self.large_gap, 2: -0.2, 8: self.fine_gap}[trial.level]
            else:
                log_loss += self.full_gap if trial.kind == "full batch" else self.svag_gap
        loss = (math.exp(log_loss) + added) * noise.normal(1, 0.005)
        facts = {"loss": loss, "log_loss": math.log(loss), "test_loss": loss, "edge": self.edge}
        diverged = trial.seed < 30_000 + self.lost and trial.method == "sgd"
        accuracy = 0.95 + 0.001 * noise.normal() + added / 5 * (trial.method == "momentum")
        return [facts | {"accuracy": accuracy, "diverged": diverged}]

    def tuned(self, trial: Any, noise: Noise) -> list[dict[str, Any]]:
        own, far = trial.method == "momentum", abs(math.log2(trial.lr / 0.4))
        gap = self.tuned_gap if trial.label_noise else 0.5 * (math.exp(self.clean_gap) - 1)
        loss = 0.5 + 0.1 * far + own * gap + 0.002 * noise.normal()
        accuracy = 0.9 - 0.1 * far + 0.001 * noise.normal()
        accuracy += own * self.tuned_gap / 5
        facts = {"loss": loss, "log_loss": math.log(loss), "test_loss": loss, "accuracy": accuracy}
        return [facts | {"diverged": False}]

    def language(self, trial: Any, noise: Noise) -> list[dict[str, Any]]:
        cells = [(m, lr) for lr in trial.tuning_lrs for m in ("sgd", "momentum")]
        added = {"sgd": 0.0, "momentum": self.text_gap, "raw": self.text_raw}
        rows = []
        for method, lr in [*cells, ("raw", trial.tuning_lrs[0])]:
            loss = 2.0 + abs(math.log(lr / 0.1)) + added[method] + 0.002 * noise.normal()
            facts = {"loss": loss, "test_loss": loss, "diverged": False}
            rows.append({"method": method, "lr": lr} | facts)
        return rows


def world(seeds: int = 16, **broken: Any) -> Records:
    """Records of a world in which every prediction holds, but for what is given otherwise."""
    own, noise = Broken(**broken), np.random.default_rng(0)
    knobs = replace(KNOBS, seeds=seeds)
    return {
        name: pl.DataFrame(
            [
                {"trial": f"{name} {place}", **_plain(trial), **row}
                for place, trial in enumerate(experiment.trials)
                for row in getattr(own, name)(trial, noise)
            ],
            infer_schema_length=None,
        )
        for name, experiment in experiments.experiments(knobs, 3).items()
    }


def _plain(trial: Any) -> dict[str, Any]:
    return {k: v for k, v in vars(trial).items() if isinstance(v, int | float | str)}


CONTRACT = Contract(
    claim="momentum",
    tiny=TINY,
    world=world,
    knobs=KNOBS,
    refuted=[
        ({"half_order": 0.2}, "order of the weak error, alpha = 0.5"),
        ({"drift": 1.6}, "drift along minima over the exact one, momentum"),
        ({"drift_order": -0.5, "raw_drift": 90.0}, "order in lr of the difference"),
        ({"ratio": 0.4}, "stationary variance ratio over its exact moments"),
        ({"small_gap": 0.15}, "train loss, momentum - SGD, lr 0.05"),
        ({"small_gap": 0.3}, "test accuracy, momentum - SGD, lr 0.05"),
        ({"large_gap": 0.1}, "log train loss, momentum - SGD, lr 2"),
        ({"edge": 1.0}, "lr x sharpness of the momentum runs"),
        ({"full_gap": 0.2}, "log train loss, momentum - SGD, lr 2, full batches"),
        ({"fine_gap": -1.4}, "log train loss, momentum - SGD, 8 times as many steps"),
        ({"tuned_gap": -0.2}, "train loss, tuned, momentum - SGD, noisy labels, batch 16"),
        ({"tuned_gap": -0.2}, "test loss, tuned, momentum - SGD, noisy labels, batch 16"),
        ({"tuned_gap": 0.3}, "test accuracy, tuned, momentum - SGD, noisy labels, batch 16"),
        ({"tuned_gap": 0.3}, "test accuracy, tuned, momentum - SGD, clean labels, batch 16"),
        ({"text_gap": 0.2}, "language model, train loss, momentum - SGD"),
        ({"text_gap": 0.2}, "language model, test loss, momentum - SGD"),
        ({"text_gap": -0.2}, "language model, test loss, tuned"),
    ],
    left_open=[
        ({"last_order": 0.5}, "order of the weak error, alpha = 1"),
        ({"raw_drift": 1.0}, "drift along minima at the same raw lr"),
        ({"edge_ratio": 0.95}, "stationary variance ratio at lr x sharpness 1"),
        ({"shuffled": 1.0}, "stationary variance ratio over shuffled epochs"),
        ({"raw_gap": 0.0}, "train loss, momentum - SGD, the same raw lr"),
        ({"svag_gap": -0.02}, "what SVAG leaves of the gap"),
        ({"clean_gap": 0.0}, "log train loss, tuned, momentum - SGD, clean labels"),
        ({"text_raw": 0.0}, "language model, train loss at the same raw lr"),
    ],
    bad_knobs=[
        ({"momentum": 1.0}, "momentum must be between 0 and 1"),
        ({"small_lr": 0.3}, "small_lr must be one of lrs"),
        ({"levels": (1,)}, "levels must be above 1"),
        ({"path_exponents": (2, 3)}, "path_exponents must be at least 3"),
        ({"path_exponents": (6, 6)}, "path_exponents must be values without one twice"),
        ({"path_exponents": (6,)}, "path_exponents must be at least 2 values"),
        ({"images": Images(train_size=20)}, "train_size must be at least 32"),
        ({"regression_size": 20}, "regression_size must be at least 32"),
        ({"replicas": 0}, "replicas must be at least 1"),
        ({"seeds": 1}, "seeds must be at least 2"),
    ],
)


def test_a_seed_does_not_depend_on_how_long_its_networks_are_together() -> None:
    trial = Network(
        images=TINY.images,
        width=8,
        batch_size=16,
        momentum=0.9,
        lr=0.5,
        method="sgd",
        seed=3,
        steps=8,
    )
    ((row,),) = experiments.train((trial,))
    ((finer,),) = experiments.train((replace(trial, level=2),))
    assert row["edge"] > 0
    assert "edge" not in finer
    assert row["loss"] != finer["loss"]


def test_a_language_model_is_tuned_at_every_rate_from_one_start() -> None:
    (trial, *_) = experiments.experiments(TINY, 3)["language"].trials
    (rows,) = experiments.fine_tune((replace(trial, tuning_lrs=(1e-9, 0.1)),))
    cells = {(row["method"], row["lr"]): row["test_loss"] for row in rows}
    assert len(cells) == 5
    assert cells["sgd", 1e-9] == pytest.approx(cells["momentum", 1e-9], rel=1e-6)
    assert cells["sgd", 0.1] < cells["sgd", 1e-9]


def test_a_diverged_pair_is_left_out_and_counted() -> None:
    verdict = claims.get("momentum").judge(world(lost=1), KNOBS)
    assert verdict.outcome == "supported", verdict
    assert verdict.summary.startswith("7 of ")


def test_what_diverged_altogether_leaves_no_empty_chart() -> None:
    lost = world(lost=120_000)
    figures = claims.get("momentum").figures(lost, KNOBS)
    assert [figure.name for figure in figures] == ["order", "variances", "network", "tuned"]
    assert claims.get("momentum").judge(lost, KNOBS).outcome == "inconclusive"
