"""The claim low-rank: its world, and the laws of its runs."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import numpy as np
import polars as pl
import pytest
from contract import Contract

from undertow import claims, predict
from undertow.claims import Records
from undertow.claims.low_rank import CLAIM, LowRank, experiments
from undertow.claims.low_rank.experiments import RULES, Identity, Training, cell
from undertow.data import Images

IMAGES = Images(train_size=120)
TINY = LowRank(
    images=IMAGES,
    widths=(24, 24),
    batch_sizes=(8, 16),
    lr=(0.1,),
    weight_decay=(0.0, 1e-3),
    epochs=2,
    fit=0.0,
    seeds=2,
)
KNOBS = LowRank(batch_sizes=(4, 64), seeds=10)


def world(seeds: int = 10, *, where: dict[str, Any] | None = None, **facts: Any) -> Records:
    """Records of a world in which the survivor law holds, but for facts of the rows `where`."""
    made = experiments.experiments(replace(KNOBS, seeds=seeds), 0)
    training = [row for trial in made["training"].trials for row in ideal(trial)]
    identity = [
        {
            "rule": trial.rule,
            "seed": trial.seed,
            "residual_rank": 20 if trial.rule == "sgd" else 128,
            "residual_bound": 20,
        }
        for trial in made["identity"].trials
    ]
    frames = {"training": pl.DataFrame(training), "identity": pl.DataFrame(identity)}
    for name, frame in frames.items():
        for column in facts.keys() & set(frame.columns):
            given = facts[column] if isinstance(facts[column], pl.Expr) else pl.lit(facts[column])
            here = [pl.col(name) == value for name, value in (where or {}).items()]
            chosen = pl.all_horizontal(pl.lit(value=True), *here)
            changed = pl.when(chosen).then(given).otherwise(column).alias(column)
            frames[name] = frames[name].with_columns(changed)
    return frames


def ideal(trial: Training) -> list[dict[str, Any]]:
    noise = np.random.default_rng(trial.seed + 1)
    fields = ("rule", "batch_size", "steps_as", "lr", "weight_decay", "seed")
    own = {name: getattr(trial, name) for name in fields}
    rate = trial.lr * trial.weight_decay / (0.1 if trial.rule == "momentum" else 1)
    learned = 40.0 if trial.rule == "adamw" else 6.0
    rows = []
    for part in (0.1, 0.25, 0.5, 1.0):
        exponent = rate * part * 20 * trial.epochs * max(KNOBS.batch_sizes) / trial.steps_as
        survivors = 120 * math.exp(-exponent)
        rows.append(
            own
            | {
                "trial": repr(trial),
                "step": round(100 * part),
                "final": part == 1.0,
                "diverged": False,
                "train_accuracy": 1.0,
                "test_accuracy": 0.96 + noise.normal() / 1000,
                "layer": 2,
                "decay_exponent": exponent,
                "rank": max(survivors, learned) * noise.uniform(0.99, 1.01),
                "survivors": survivors,
                "survivors_theory": survivors,
                "survivors_unforgotten": 120.0,
                "learned_rank": learned,
                "rank_fine": 126,
                "initial_rank_fine": 127,
                "spectrum": [0.5, 0.1],
            }
        )
    return rows


same_epochs, same_steps = {"batch_size": 64, "steps_as": 64}, {"batch_size": 64, "steps_as": 4}
CONTRACT = Contract(
    claim="low-rank",
    tiny=TINY,
    world=world,
    knobs=KNOBS,
    refuted=[
        ({"where": same_epochs, "rank": 10.0}, "rank, small over large batch, same epochs"),
        ({"where": {"lr": 0.06}, "rank": 500.0}, "rank, high over low learning rate"),
        ({"where": {"weight_decay": 4e-3}, "rank": 500.0}, "rank, high over low weight decay"),
        ({"where": same_epochs, "test_accuracy": 0.5}, "test accuracy, small less large batch"),
        ({"where": {"rule": "sgd", "seed": 4}, "residual_rank": 21}, "rank identity broken, sgd"),
        ({"where": same_steps, "rank": 500.0}, "rank, small over large batch, same E"),
        ({"where": {"rule": "sgd", "final": True}, "rank": 500.0}, "rank against E"),
        *(
            ({"where": {"rule": rule}, "survivors": 240.0}, f"survivor forecast error, {rule}")
            for rule in RULES
        ),
        ({"where": {"rule": "adamw"}, "learned_rank": 1.0}, "learned rank, SGD over AdamW"),
    ],
    left_open=[
        ({"where": {"weight_decay": 0.0}, "rank_fine": 60}, "initial rank kept without decay"),
        *(
            ({"where": {"rule": rule}, "residual_rank": 20}, f"rank identity broken, {rule}")
            for rule in ("momentum", "adamw")
        ),
        (
            {"where": {"rule": "sgd"}, "survivors_unforgotten": pl.col("rank")},
            "forecast error, forgetting left out",
        ),
    ],
    bad_knobs=[
        ({"batch_sizes": (0,)}, "batch_sizes must be at least 1, got"),
        ({"lr": (-0.1,)}, "lr must be above 0"),
        ({"weight_decay": (-1e-3, 1e-3)}, "weight_decay must be at least 0"),
        ({"weight_decay": (0.0,)}, "weight_decay needs at least one positive value"),
        ({"widths": (10,)}, "widths must be at least 2 values"),
        ({"epochs": 0}, "epochs must be at least 1"),
        ({"fit": 1.1}, "fit must be at most 1"),
        ({"seeds": 1}, "seeds must be at least 2"),
    ],
)


@pytest.mark.parametrize("preset", ["smoke", "small", "paper"])
def test_presets_compare_what_the_checks_need(preset: str) -> None:
    knobs = CLAIM.presets[preset]
    training = experiments.experiments(knobs, 0)["training"].trials
    assert {trial.rule for trial in training} == set(RULES)
    assert 0.0 in {trial.weight_decay for trial in training}
    assert {trial.batch_size for trial in training} == set(knobs.batch_sizes)
    settings: dict[Any, set[int]] = {}
    for trial in training:
        settings.setdefault(replace(trial, seed=0), set()).add(trial.seed)
    assert len({frozenset(seeds) for seeds in settings.values()}) == 1


def test_the_rules_forget_at_one_rate() -> None:
    for rule in RULES:
        at = cell(LowRank(lr=(0.04,), weight_decay=(2.5e-3,)), rule)
        beta = 0.9 if rule == "momentum" else 0.0
        exponent = predict.decay_exponent(at["lr"], at["weight_decay"], 1000, momentum=beta)
        assert exponent == pytest.approx(0.1)


def test_the_learned_part_of_a_few_steps_has_the_rank_of_their_batches() -> None:
    """After T steps of batch size B the learned part is a sum of T matrices of rank at most B."""
    trial = Training(IMAGES, (48, 48), "cpu", "sgd", 6, 0.1, 1e-2, 1, 40, 1e-5, 5)
    (rows,) = experiments.train([trial])
    (end,) = [row for row in rows if row["final"]]
    assert end["step"] == 3
    assert end["rank"] > 40
    assert end["learned_rank"] <= 3 * 6
    assert end["decay_exponent"] == pytest.approx(3 * 0.1 * 1e-2)


def test_a_network_that_diverged_has_no_ranks_and_its_neighbour_has() -> None:
    lost, kept = (
        Training(IMAGES, (8, 8), "cpu", "sgd", 8, lr, 0.0, 2, 8, 1e-2, 1) for lr in (1e30, 0.1)
    )
    first, second = experiments.train([lost, kept])
    assert first[-1]["diverged"]
    assert "rank" not in first[-1]
    assert second[-1]["rank"] == experiments.train([kept])[0][-1]["rank"]


@pytest.mark.parametrize("network", ["mlp", "conv"])
def test_the_identity_is_exact_for_sgd_and_broken_by_the_others(network: str) -> None:
    knobs = LowRank(lr=(0.05,), weight_decay=(2e-3,))
    batch_size, steps = (4, 5) if network == "mlp" else (1, 2)
    found = {}
    for rule in RULES:
        at = cell(knobs, rule)
        hyper = (batch_size, at["lr"], at["weight_decay"], steps, 1, 20)
        trial = Identity(Images(train_size=200), (64, 64), network, rule, *hyper)
        ((row,),) = experiments.residuals([trial])
        assert row["residual_bound"] == batch_size * steps * row["patches"]
        assert row["residual_bound"] < min(row["rows"], row["cols"])
        found[rule] = row["residual_rank"] <= row["residual_bound"]
    assert found == {"sgd": True, "momentum": False, "adamw": False}


def test_runs_that_did_not_fit_are_left_out_and_counted() -> None:
    spoiled = world(where={"seed": 0}, train_accuracy=0.1, rank=1.0)
    verdict = claims.get("low-rank").judge(spoiled, KNOBS)
    assert verdict.outcome == "supported"
    runs = spoiled["training"]["trial"].n_unique()
    assert f"{runs // 10} of {runs} runs" in verdict.summary


def test_where_most_runs_did_not_fit_there_is_no_verdict() -> None:
    half = world(where={"weight_decay": KNOBS.baseline_decay, "rule": "sgd"}, train_accuracy=0.1)
    assert CLAIM.judge(half, KNOBS).outcome == "inconclusive"


def test_with_nothing_fitted_no_figure_is_drawn_and_no_verdict_given() -> None:
    unfit = world(train_accuracy=0.2)
    assert CLAIM.figures(unfit, KNOBS) == ()
    assert CLAIM.judge(unfit, KNOBS).outcome == "inconclusive"
    assert (CLAIM.table(unfit, KNOBS)["fitted"] == 0).all()


def test_the_table_holds_every_rule_and_the_bound_says_nothing() -> None:
    table = CLAIM.table(world(), KNOBS)
    assert set(table["rule"]) == set(RULES)
    assert table.filter(rule="sgd")["paper's bound"].str.contains("vacuous").all()
    assert (table.filter(rule="adamw")["paper's bound"] == "does not apply").all()
    names = [figure.name for figure in CLAIM.figures(world(), KNOBS)]
    assert names == ["batch-size", "collapse", "survivors", "spectra", "accuracy"]
