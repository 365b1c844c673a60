"""The claim momentum: recursions and runs on small problems, and what judge makes of records."""

from __future__ import annotations

import math
from dataclasses import asdict, replace

import numpy as np
import polars as pl
import pytest
import torch

from undertow import lab, predict
from undertow.claims import momentum
from undertow.claims.momentum import Config, Moments, Paths, Stationary, Training

CONFIG = Config(
    samples=120,
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


@pytest.fixture(scope="module")
def records() -> pl.DataFrame:
    """A whole study at a size that takes seconds: only exact laws hold."""
    trials = tuple(momentum.trials(CONFIG, 7))
    study = lab.Study("momentum", trials, momentum.run, momentum.group, 24)
    rows = []
    for positions in study.groups():
        own_trials = [study.trials[position] for position in positions]
        for trial, own in zip(own_trials, momentum.run(own_trials), strict=True):
            fields = {
                key: value for key, value in asdict(trial).items() if not isinstance(value, tuple)
            }
            rows += [{"trial": lab.trial_hash(trial), **fields, **row} for row in own]
    return pl.DataFrame(rows, infer_schema_length=None)


def world(seeds: int = 12, **broken: float) -> pl.DataFrame:
    """Records of a world in which every prediction holds, but for what `broken` says."""
    facts = {
        "half_order": 0.5,
        "last_order": 0.0,
        "ratio": 1.0,
        "small_gap": 0.0,
        "raw_gap": -0.14,
        "large_gap": -1.5,
        "svag_gap": 0.01,
        "edge": 2.5,
        "shuffled": 0.8,
    } | broken
    generator = np.random.default_rng(0)
    orders = {0.0: 1.0, 0.5: facts["half_order"], 1.0: facts["last_order"]}
    rows: list[dict[str, object]] = []
    for alpha, order in orders.items():
        for exponent in range(6, 11):
            gap = 0.5 * 2.0 ** (-exponent * order)
            rows += [
                {"noise": noise, "alpha": alpha, "exponent": exponent, "exact_gap": gap}
                for noise in ("additive", "state-dependent")
            ]
            rows += [
                {
                    "alpha": alpha,
                    "exponent": exponent,
                    "seed": seed,
                    "path_gaps": (gap * generator.normal(1, 0.05, 4)).tolist(),
                }
                for seed in range(seeds)
            ]
    levels = [(0.05, 1), *((2.0, level) for level in (1, 2, 4, 8))]
    for seed in range(seeds):
        for curvature in (0.1, 0.5, 1.0, 1.5):
            predicted = predict.momentum_equivalent(
                curvature, 0.9, form="ema", sharpness=1.0
            ).variance_ratio
            rows += [
                {
                    "seed": seed,
                    "order": order,
                    "curvature": curvature,
                    "measured_ratio": share * predicted * generator.normal(1, 0.01),
                    "predicted_ratio": predicted,
                }
                for order, share in (
                    ("replacement", facts["ratio"]),
                    ("epochs", facts["shuffled"]),
                )
            ]
        for lr, level in levels:
            base = 0.16 if lr == 0.05 else math.exp(-1 - math.log(level))
            gap = facts["small_gap"] if lr == 0.05 else facts["large_gap"]
            own = gap if lr == 0.05 else base * (math.exp(gap) - 1)
            if level > 1:
                own = base * (math.exp(facts["svag_gap"]) - 1)
            losses = {"sgd": base, "momentum": base + own}
            if level == 1:
                losses["raw"] = base + facts["raw_gap"]
            rows += [
                {
                    "trial": f"{seed} {lr} {level} {method}",
                    "seed": seed,
                    "lr": lr,
                    "level": level,
                    "method": method,
                    "diverged": False,
                    "loss": max(loss * generator.normal(1, 0.01), 1e-6),
                    "lagged_loss": base * 1.01 if method == "sgd" else None,
                    "accuracy": 0.95 + 0.001 * generator.normal(),
                    "edge": facts["edge"],
                }
                for method, loss in losses.items()
            ]
    return pl.DataFrame(rows, infer_schema_length=None)


def named(verdict, name: str):
    return next(check for check in verdict.checks if check.name.startswith(name))


# ---- the pieces


def test_trials_are_distinct_and_of_every_kind():
    trials = momentum.trials(CONFIG, 3)
    assert len({lab.trial_hash(trial) for trial in trials}) == len(trials)
    assert {type(trial) for trial in trials} == {Moments, Paths, Stationary, Training}


@pytest.mark.parametrize("spread", [0.0, 0.5])
def test_exact_recursion_is_the_mean_over_simulated_paths(spread: float):
    """Gaussian noise of variance (1 + spread x^2) / lr, 200,000 paths of both methods."""
    lr, alpha, scale = 1 / 16, 0.5, 2.0
    generator = np.random.default_rng(3)
    kept = np.array([[1 - scale * lr**alpha], [0.0]])
    place, velocity = np.ones((2, 200_000)), np.zeros((2, 200_000))
    gaps = []
    for step in range(1, 33):
        noise = generator.standard_normal(place.shape[1]) / math.sqrt(lr)
        gradient = place + np.sqrt(1 + spread * place**2) * noise
        velocity = kept * velocity + (1 - kept) * gradient
        place = place - lr * velocity
        if step % 8 == 0:
            squares = (place**2).mean(1)
            gaps.append(abs(squares[0] - squares[1]))
    exact = momentum.exact_gap(lr, alpha, scale, spread=spread)
    assert max(gaps) == pytest.approx(exact, rel=0.05)


def test_no_momentum_leaves_no_gap():
    assert momentum.exact_gap(1 / 64, 0.0, 1.0) == 0


def test_the_order_of_the_exact_gap_is_twice_the_guaranteed_one():
    (rows,) = momentum.run([Moments("additive", (10, 12))])
    found = {(row["alpha"], row["exponent"]): row["exact_gap"] for row in rows}
    for alpha in (0.0, 0.5, 1.0):
        order = math.log(found[alpha, 10] / found[alpha, 12]) / math.log(4)
        assert order == pytest.approx(1 - alpha, abs=0.06)


def test_an_epoch_visits_no_sample_twice():
    generator = torch.Generator().manual_seed(0)
    batches = momentum._epochs(23, 5, 3, generator)
    for _ in range(2):
        epoch = torch.cat([next(batches) for _ in range(4)], dim=1)
        assert epoch.shape == (3, 20)
        assert all(len(set(own.tolist())) == 20 for own in epoch)


def test_no_svag_level_and_no_method_is_lost(records):
    trained = records.filter(pl.col("loss").is_not_null())
    assert not trained["diverged"].any()
    assert trained["loss"].is_finite().all()
    assert set(trained["method"]) == {"sgd", "momentum", "raw"}
    assert (trained.filter(method="sgd", level=1)["lagged_loss"].is_not_null()).all()
    assert (trained.filter(level=1)["edge"] > 0).all()


def test_paths_start_from_the_same_noise_whatever_the_neighbours(records):
    trial = Paths(CONFIG.replicas, CONFIG.path_exponents, 70_001)
    (alone,) = momentum.run([trial])
    stored = records.filter(pl.col("trial") == lab.trial_hash(trial))["path_gaps"].to_list()
    assert [row["path_gaps"] for row in alone] == stored


# ---- the verdict rule


def test_a_world_in_which_everything_holds_is_supported():
    verdict = momentum.judge(world(), Config(seeds=12))
    assert verdict.outcome == "supported", verdict


@pytest.mark.parametrize(
    ("broken", "check"),
    [
        ({"half_order": 0.25}, "order of the weak error, alpha = 0.5, exact"),
        ({"half_order": 0.25}, "order of the weak error, alpha = 0.5, simulated"),
        ({"ratio": 1.2}, "stationary variance ratio over its closed form"),
        ({"small_gap": 0.05}, "train loss, momentum - SGD, lr 0.05"),
        ({"large_gap": 0.1}, "train loss, momentum - SGD, lr 2"),
        ({"edge": 1.0}, "lr x sharpness of the momentum runs"),
        ({"svag_gap": -1.4}, "share of the log-loss gap left"),
        ({"svag_gap": 1.0}, "train loss, momentum - SGD, lr 2, SVAG"),
    ],
)
def test_evidence_against_a_prediction_refutes_it(broken, check):
    verdict = momentum.judge(world(**broken), Config(seeds=12))
    assert verdict.outcome == "refuted"
    assert named(verdict, check).refuted


@pytest.mark.parametrize(
    ("broken", "check"),
    [
        ({"last_order": 0.5}, "order of the weak error, alpha = 1, exact"),
        ({"last_order": 0.5}, "order of the weak error, alpha = 1, simulated"),
        ({"shuffled": 1.0}, "stationary variance ratio over shuffled epochs"),
        ({"raw_gap": 0.0}, "train loss at the same raw lr"),
    ],
)
def test_a_control_that_does_not_fail_leaves_it_open(broken, check):
    verdict = momentum.judge(world(**broken), Config(seeds=12))
    assert verdict.outcome == "inconclusive"
    control = named(verdict, check)
    assert control.control
    assert not control.passed


def test_few_seeds_promise_no_verdict():
    assert momentum.judge(world(), Config(seeds=3)).outcome == "inconclusive"


def test_a_diverged_pair_is_left_out_and_counted():
    frame = world().with_columns(
        (pl.col("trial") == "3 2.0 1 sgd").fill_null(value=False).alias("lost")
    )
    lost = frame.with_columns(
        pl.when("lost").then(pl.lit(value=True)).otherwise(pl.col("diverged")).alias("diverged"),
        pl.when("lost").then(math.nan).otherwise(pl.col("loss")).alias("loss"),
    )
    verdict = momentum.judge(lost, Config(seeds=12))
    assert verdict.outcome == "supported", verdict
    assert "1 of" in verdict.summary


def test_a_lag_longer_than_the_rest_of_the_run_is_read_before_its_first_quarter_ends():
    short = Training("digits", None, 64, 8, 16, 8, 0.99, 0.5, "sgd", 1, 3)
    ((row,),) = momentum.run([short])
    # One minus what is left of a buffer that forgets 1% a step, over 8 steps: not yet one step.
    ((start,),) = momentum.run([replace(short, steps=1)])
    assert row["lagged_loss"] == pytest.approx(start["lagged_loss"])
    assert row["lagged_loss"] > row["loss"]
    assert row["edge"] > 0


def test_what_diverged_altogether_leaves_no_empty_chart(records, tmp_path):
    lost = records.with_columns(pl.col("diverged") | (pl.col("method") == "sgd"))
    figures = momentum.figures(lost, CONFIG)
    assert [figure.name for figure in figures] == ["order", "variance", "network"]
    assert momentum.judge(lost, CONFIG).outcome == "inconclusive"
    for figure in figures:  # an empty panel has no size to draw
        lab.save_chart(figure.chart, tmp_path / f"{figure.name}.png")


def test_table_and_figures_can_be_drawn(records):
    columns = momentum.table(records, CONFIG).columns
    assert {"train loss", "lr x sharpness"} <= set(columns)
    names = [figure.name for figure in momentum.figures(records, CONFIG)]
    assert names == ["order", "variance", "network", "svag"]


@pytest.mark.parametrize(
    ("knob", "name"),
    [
        ({"momentum": 1.0}, "momentum"),
        ({"small_lr": 0.3}, "small_lr"),
        ({"svag_levels": (1,)}, "svag_levels"),
        ({"path_exponents": (2, 3)}, "path_exponents"),
        ({"path_exponents": (6, 6)}, "path_exponents"),
        ({"svag_levels": (2, 2)}, "svag_levels"),
        ({"samples": 20}, "samples must be at least 32"),
        ({"regression_samples": 20}, "regression_samples must be at least 32"),
        ({"replicas": 0}, "replicas"),
        ({"seeds": 1}, "seeds must be at least 2"),
    ],
)
def test_a_knob_out_of_range_is_named(knob, name):
    with pytest.raises(ValueError, match=name):
        replace(Config(), **knob)
