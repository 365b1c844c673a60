"""The claim local-sgd-flatness: its world, and the laws of its runs."""

from __future__ import annotations

from dataclasses import asdict, replace
from functools import cache
from typing import Any

import polars as pl
import pytest
import torch
from contract import Contract

from undertow import claims, predict
from undertow.claims import Records
from undertow.claims.local_sgd_flatness import LocalSGDFlatness, experiments, predictions
from undertow.claims.local_sgd_flatness.experiments import Diagonal, Path, Valley, follow
from undertow.claims.local_sgd_flatness.networks import Convolution, begin, flatten, member
from undertow.data import Images

pytestmark = pytest.mark.usefixtures("global_rng_untouched")

TINY = LocalSGDFlatness(
    num_workers=2,
    valley_periods=(2, 4),
    valley_steps=8,
    replicas=3,
    lrs=(0.2, 0.25, 0.5),
    samples=2,
    dimension=4,
    diagonal_lr=0.01,
    diagonal_periods=(2, 3),
    diagonal_steps=40,
    images=Images(train_size=10),
    channels=1,
    local_batch=2,
    first_steps=2,
    period=4,
    brief_period=2,
    base=2,
    steps=12,
    few_steps=2,
    seeds=2,
)
KNOBS = LocalSGDFlatness(seeds=12)
# Of an experiment a column, the number that it becomes, and in which runs.
Changed = tuple[str, str, float, dict[str, object]]
# tr H and test loss at the end, by rate, whether it falls, noise, and period.
ENDS = {
    (0.05, False, "flips", 1): (40.0, 0.62),
    (0.05, False, "flips", 32): (23.0, 0.6),
    (0.05, False, "flips", 256): (20.0, 0.59),
    (0.05, False, "smooth", 1): (70.0, 0.62),
    (0.05, False, "smooth", 256): (69.0, 0.62),
    (0.4, False, "flips", 1): (13.0, 0.69),
    (0.4, False, "flips", 32): (11.0, 0.79),
    (0.1, True, "flips", 1): (36.0, 0.61),
    (0.1, True, "flips", 4): (26.0, 0.61),
}
RATES = {1: (-0.52, -0.51), 10: (-1.33, -1.28), 100: (-3.6, -3.2), 1000: (-4.55, -3.98)}


def valley(trial: Valley, wobble: float) -> list[dict[str, Any]]:
    workers = 1 if trial.shared else trial.num_workers
    run = {"num_workers": workers, "period": trial.period}
    laws = {
        name: predict.local_drift_multiplier(trial.lr, 1.0, **run, continuous=name != "exact")
        for name in ("exact", "continuous")
    }
    return [laws | {"multiplier": laws["exact"] * wobble}]


def path(trial: Path, wobble: float) -> list[dict[str, Any]]:
    slow = -0.126 if trial.period == 1 else -0.55
    means = {"mean": slow + 0.4 * trial.lr * wobble, "slow": slow, "plain": -0.126}
    return [means | {"spread": 0.31 * wobble, "slow_spread": 0.31}]


def diagonal(trial: Diagonal, wobble: float) -> list[dict[str, Any]]:
    sampled, additive = RATES[trial.period]
    known = trial.noise > 0 and trial.batch_size == 1
    if trial.num_workers == 1:
        sampled, additive = (-4.7, -4.1) if known else RATES[1]
    facts: dict[str, Any] = {"rate": sampled * trial.noise * wobble}
    facts |= (
        {"sampled": sampled, "additive": additive}
        if known
        else dict.fromkeys(("sampled", "additive"))
    )
    steps = (500, 1_000, 10_000)
    return [
        facts | {"step": step, "early": step == 500, "log_trace": facts["rate"] * 4e-6 * step}
        for step in steps
    ]


def network(trial: Convolution, wobble: float) -> list[dict[str, Any]]:
    trace, test_loss = ENDS[trial.lr, trial.falling, trial.noise, trial.period]
    share = 1.0 if trial.method == "sgd" else 1 / trial.period
    if trial.method == "qsr":
        share = predictions.quadratic(KNOBS).share
    facts = {"diverged": False, "loss": 0.8, "log_loss": -0.2, "accuracy": 0.88}
    facts |= {"test_loss": test_loss + 0.1 * (wobble - 1)}
    late = facts | {"step": 2_750, "trace": None, "share": None}
    soon = facts | {"step": trial.few_steps, "trace": 60.0 * wobble, "share": share}
    return [soon, late, facts | {"step": trial.steps, "trace": trace * wobble, "share": share}]


@cache
def ideal(seeds: int) -> Records:
    rows_of = {"valley": valley, "paths": path, "diagonal": diagonal, "networks": network}
    found = {}
    for name, experiment in experiments.experiments(replace(KNOBS, seeds=seeds), 0).items():
        rows: list[dict[str, Any]] = []
        for trial in experiment.trials:
            facts = {key: value for key, value in asdict(trial).items() if key != "images"}
            # Pairs are not alike, so that intervals have a width.
            wobble = 1 + 1e-3 * ((trial.seed + len(str(trial))) % 7)
            made: Any = rows_of[name]
            rows += [{"trial": str(trial)} | facts | row for row in made(trial, wobble)]
        found[name] = pl.DataFrame(rows, infer_schema_length=None)
    return found


def world(seeds: int = 12, changed: Changed | None = None) -> Records:
    """Records of a world in which every prediction holds, but for what is changed in it."""
    records = ideal(seeds)
    if changed:
        name, column, number, where = changed
        chosen = pl.all_horizontal(
            pl.col(column).is_not_null(), *(pl.col(key) == value for key, value in where.items())
        )
        new = pl.when(chosen).then(pl.lit(number)).otherwise(pl.col(column))
        records = {**records, name: records[name].with_columns(new.alias(column))}
    return records


def broken(name: str, column: str, number: float, **where: object) -> dict[str, Changed]:
    return {"changed": (name, column, number, where)}


STEEP: dict[str, Any] = {"lr": 0.8, "num_workers": 8, "shared": False}
EIGHT: dict[str, Any] = {"num_workers": 8, "noise": 1.0}
SMALL: dict[str, Any] = {"lr": 0.05, "noise": "flips", "method": "local"}
FALLING: dict[str, Any] = {"falling": True, "step": 3_000}
RATE = "diagonal network, d log tr H / dt,"
CONTRACT = Contract(
    claim="local-sgd-flatness",
    tiny=TINY,
    world=world,
    knobs=KNOBS,
    refuted=[
        (
            broken("valley", "multiplier", 5.2, period=2, **STEEP),
            "drift over the exact multiplier's, lr lambda 0.8",
        ),
        (
            broken("valley", "multiplier", 5.6, lr=0.02, period=50),
            "drift over the exact multiplier's, lr lambda 0.02",
        ),
        (broken("paths", "mean", -0.9, lr=1 / 64, period=64), "order in lr of the slow equation's"),
        (broken("paths", "mean", -0.9, lr=1 / 64, period=64), "drift over the slow equation's"),
        (broken("paths", "spread", 0.7, along=0.5, period=32), "spread along the floor"),
        (broken("diagonal", "rate", -1.3, period=1000, **EIGHT), f"{RATE} H = 1000 over H = 1"),
        (broken("diagonal", "rate", -1.5, num_workers=1, period=1), f"{RATE} H = 1000 over one"),
        (broken("diagonal", "rate", -1.5, period=100, **EIGHT), f"{RATE} over the forecast"),
        (broken("diagonal", "rate", -1.5, period=100, **EIGHT), f"{RATE} over H = 1, and over"),
        (
            broken("networks", "trace", 45.0, period=256, step=3_000, **SMALL),
            "tr H, Local SGD over SGD, lr 0.05",
        ),
        (
            broken("networks", "trace", 19.0, period=32, step=3_000, **SMALL),
            "tr H, H = 256 over H = 32",
        ),
        (
            broken("networks", "trace", 40.0, method="local", **FALLING),
            "tr H, falling rates, H = 4",
        ),
        (broken("networks", "trace", 40.0, method="qsr", **FALLING), "tr H, falling rates, QSR"),
        (broken("networks", "share", 0.2, method="qsr"), "share of communication"),
        (
            broken("networks", "test_loss", 0.7, period=256, **SMALL),
            "test loss, Local SGD - SGD, lr 0.05, H = 256",
        ),
        (
            broken("networks", "test_loss", 0.7, period=32, **SMALL),
            "test loss, Local SGD - SGD, lr 0.05, H = 32",
        ),
    ],
    left_open=[
        (broken("valley", "continuous", 4.36, period=2, **STEEP), "drift over the continuous"),
        (broken("valley", "multiplier", 7.9, num_workers=1), "drift over SGD's, one worker"),
        (broken("valley", "multiplier", 7.9, shared=True), "drift over SGD's, workers with one"),
        (broken("paths", "plain", -0.55), "order in lr of the error of SGD's own"),
        (broken("diagonal", "rate", -2.0, noise=0.0), f"{RATE} without label noise"),
        (broken("diagonal", "rate", -4.5, batch_size=8), f"{RATE} one worker of all"),
        (
            broken("diagonal", "log_trace", -0.3, period=1000, early=True),
            "diagonal network, log tr",
        ),
        (
            broken("networks", "trace", 30.0, step=10, period=256, **SMALL),
            "tr H, Local SGD over SGD, lr 0.05, after",
        ),
        (
            broken("networks", "trace", 35.0, noise="smooth", period=256),
            "tr H, Local SGD over SGD, lr 0.05, labels",
        ),
        (
            broken("networks", "test_loss", 0.6, lr=0.4, period=32),
            "test loss, Local SGD - SGD, lr 0.4",
        ),
    ],
    bad_knobs=[
        ({"num_workers": 1}, "num_workers must be at least 2"),
        ({"valley_lr": 2.0}, "valley_lr must be between 0 and 2"),
        ({"valley_periods": (8, 2)}, "valley_periods must be ascending"),
        ({"lrs": (0.1, 0.2)}, "lrs must be at least 3 values"),
        ({"samples": 50}, "samples must be at most dimension = 40, got 50"),
        ({"diagonal_periods": (10, 2_000)}, "diagonal_periods must be at most diagonal_steps / 10"),
        ({"flips": 1.0}, "flips must be between 0 and 1"),
        ({"large_lr": 0.01}, "large_lr must be above lr = 0.05, got 0.01"),
        ({"period": 16}, "period must be above brief_period = 32, got 16"),
        ({"few_steps": 0}, "few_steps must be at least 1"),
        ({"seeds": 1}, "seeds must be at least 2, got 1"),
    ],
)


def test_methods_of_one_seed_go_on_from_one_start() -> None:
    trials = experiments.experiments(TINY, 1000)["networks"].trials
    starts = begin({trial.seed: trial for trial in trials})
    assert len(starts) == 2
    first, second = (
        torch.nn.utils.parameters_to_vector(own.parameters()) for own in starts.values()
    )
    assert not first.equal(second)


def test_workers_with_rounds_of_one_step_have_the_samples_of_sgd() -> None:
    """In mean and count, not one by one: their streams are their own."""
    trials = experiments.experiments(TINY, 1000)["networks"].trials
    local = next(trial for trial in trials if trial.method == "local")
    found = member(local).workers
    assert found is not None
    assert found.num == TINY.num_workers
    assert member(next(trial for trial in trials if trial.method == "sgd")).workers is None


def test_shares_of_communication_are_those_of_the_rounds() -> None:
    trials = [t for t in experiments.experiments(TINY, 1000)["networks"].trials if t.falling]
    ends = {t.method: rows[-1] for t, rows in zip(trials, flatten(trials), strict=True)}
    assert ends["sgd"]["share"] == 1
    assert ends["local"]["share"] == 1 / TINY.base
    assert ends["qsr"]["share"] == pytest.approx(predictions.quadratic(TINY).share)


def test_without_noise_along_it_the_slow_equation_is_the_same_for_every_seed() -> None:
    trials = [Path(0.25, 4, 2, 3, seed) for seed in (1, 2)]
    first, second = (rows[0] for rows in follow(trials))
    assert first["slow"] == second["slow"] != first["plain"]
    assert first["mean"] != second["mean"]


def test_table_and_figures_hold_every_experiment() -> None:
    claim, records = claims.get("local-sgd-flatness"), world()
    assert set(claim.table(records, KNOBS)["method"]) == {"sgd", "local", "qsr"}
    names = [drawn.name for drawn in claim.figures(records, KNOBS)]
    assert names == ["multiplier", "diagonal", "networks"]
