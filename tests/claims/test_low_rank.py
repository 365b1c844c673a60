"""The claim low-rank: its world, and the laws of its runs."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import polars as pl
import pytest
import torch
from contract import Contract

from undertow import claims, models, predict
from undertow.claims import Records, networks, perceptrons
from undertow.claims.low_rank import CLAIM, LowRank, experiments
from undertow.claims.low_rank.experiments import (
    NETWORKS,
    RULES,
    Convolution,
    Training,
    cell,
    conv_cells,
    wide_cells,
)
from undertow.claims.low_rank.predictions import STRATA
from undertow.data import Images
from undertow.train import Member, rules

IMAGES = Images(train_size=160)
TINY = LowRank(
    images=IMAGES,
    widths=(24, 24),
    batch_sizes=(8, 16),
    lr=(0.1,),
    weight_decay=(0.0, 1e-3),
    epochs=2,
    fit=0.0,
    channels=4,
    conv_images=40,
    conv_batches=(8, 20),
    conv_epochs=1,
    wide=24,
    wide_epochs=1,
    seeds=2,
)
KNOBS = LowRank(batch_sizes=(4, 64), seeds=18)
SMALL, LARGE = conv_cells(KNOBS)["small"], conv_cells(KNOBS)["same steps"]
WIDE = {
    name: {key: at[key] for key in ("batch_size", "weight_decay", "lr")}
    for name, at in wide_cells(KNOBS).items()
}


def world(seeds: int = 18, *, where: dict[str, Any] | None = None, **facts: Any) -> Records:
    """Records of a world in which the law holds, but for facts of the rows `where`."""
    made = experiments.experiments(replace(KNOBS, seeds=seeds), 0)
    ideal = {"training": trained, "kernels": convolved, "wide": widened}
    frames = {}
    for name, rows in ideal.items():
        frame = pl.DataFrame([row for trial in made[name].trials for row in rows(trial)])
        for column in facts.keys() & set(frame.columns):
            given = facts[column] if isinstance(facts[column], pl.Expr) else pl.lit(facts[column])
            here = [pl.col(key) == value for key, value in (where or {}).items()]
            if all(key in frame.columns for key in where or {}):
                chosen = pl.all_horizontal(pl.lit(value=True), *here)
                changed = pl.when(chosen).then(given).otherwise(column).alias(column)
                frame = frame.with_columns(changed)
        frames[name] = frame
    return frames


def own(trial: Any) -> dict[str, Any]:
    fields = {field: getattr(trial, field) for field in trial.__dataclass_fields__}
    plain = {key: value for key, value in fields.items() if isinstance(value, int | float | str)}
    return plain | {"trial": repr(trial), "diverged": False, "train_accuracy": 1.0}


def trained(trial: Training) -> list[dict[str, Any]]:
    noise = np.random.default_rng(trial.seed + 1)
    rate = trial.lr * trial.weight_decay / (0.1 if trial.rule == "momentum" else 1)
    learned = 40.0 if trial.rule == "adamw" else 6.0
    rows = []
    for part in (0.1, 0.2, 0.5, 1.0):
        steps = round(part * 20 * trial.epochs * max(KNOBS.batch_sizes) / trial.steps_as)
        survivors = max(0.0, 120 * (1 - rate * steps / 5))
        rank = max(survivors, learned) + noise.uniform(-0.2, 0.2)
        made = {
            "step": steps,
            "final": part == 1.0,
            "test_accuracy": 0.96 + noise.normal() / 1000,
            "matrix": "3.weight",
            "rows": 128,
            "cols": 128,
            "decay_exponent": rate * steps,
            "rank": rank,
            "rank_law": max(survivors, learned),
            "rank_unforgotten": 120.0,
            "survivors": survivors,
            "learned_rank": learned,
            "kept_fine": 0.995,
        }
        rows.append(own(trial) | made)
    return rows


def convolved(trial: Convolution) -> list[dict[str, Any]]:
    rows = []
    for part in experiments.CONV_SNAPSHOTS:
        exponent = trial.weight_decay * part * max(KNOBS.conv_batches) / trial.steps_as
        rank = 32 - round(200 * exponent) - (trial.seed % 2)
        shape = {"rows": 32, "cols": 288, "matrix": "3.0.weight"}
        made = {"part": part, "final": part == 1.0, "decay_exponent": exponent, "rank": rank}
        made["norm"] = 2.0 if trial.batch_size == min(KNOBS.conv_batches) else 1.5
        rows.append(own(trial) | made | shape | {"kept": 1.0 if exponent == 0 else rank / 32})
    return rows


def widened(trial: Training) -> list[dict[str, Any]]:
    return [own(trial) | {"rank": 2 if trial.weight_decay else 437, "final": True, "step": 1}]


same_epochs, same_steps = {"batch_size": 64, "steps_as": 64}, {"batch_size": 64, "steps_as": 4}
surviving = {"rule": "sgd", "lr": 0.05, "weight_decay": 6e-3, "batch_size": 64, "steps_as": 4}
CONTRACT = Contract(
    claim="low-rank",
    tiny=TINY,
    world=world,
    knobs=KNOBS,
    refuted=[
        ({"where": same_epochs, "rank": 1.0}, "rank, small over large batch, same epochs"),
        ({"where": same_epochs, "rank_law": 1.0}, "that ratio, over the law's"),
        ({"where": {"lr": 0.08}, "rank": 500.0}, "rank, high over low lr"),
        ({"where": {"weight_decay": 1e-2}, "rank": 500.0}, "rank, high over low weight_decay"),
        ({"where": same_epochs, "test_accuracy": 0.5}, "test accuracy, small less large"),
        ({"where": surviving, "rank": pl.col("rank") + 30}, "rank, small less large batch, same E"),
        ({"where": {"rule": "sgd", "final": True}, "rank": 500.0}, "ranks apart at equal E, all"),
        *(
            (
                {
                    "where": {"rule": "sgd"},
                    "rank": 999.0 - 1e-3 * pl.col("step") * pl.col("lr") ** power,
                },
                f"that over ranks apart at equal {name}",
            )
            for name, power in {"steps": 0, "lr x steps": 1}.items()
        ),
        *(
            ({"where": {"rule": "sgd"}, "rank_law": 500.0}, f"error of the law, where {low:g} to")
            for low, _ in STRATA
        ),
        *(
            ({"where": {"rule": rule}, "rank_law": 500.0}, f"error of the law, {rule}")
            for rule in ("momentum", "adamw")
        ),
        ({"where": {"rule": "adamw"}, "learned_rank": 1.0}, "learned rank, SGD over AdamW"),
        ({"where": SMALL, "rank": 40}, "kernel rank, small less large batch, same epochs"),
        ({"where": LARGE, "rank": 40}, "share of that left at the same E"),
        ({"where": SMALL, "norm": 1.0}, "kernel norm, small over large batch, same E"),
        ({"where": WIDE["small"], "rank": 300}, "rank over the paper's bound"),
        ({"where": WIDE["large"], "rank": 300}, "rank, batch of 1 less batch of 32"),
    ],
    left_open=[
        ({"where": {"weight_decay": 0.0}, "kept_fine": 0.5}, "initial rank kept without decay"),
        ({"where": {"weight_decay": 0.0}, "kept": 0.5}, "initial kernel rank kept without decay"),
        ({"where": WIDE["undecayed"], "rank": 200}, "that without decay"),
        (
            {"where": {"rule": "sgd"}, "rank_unforgotten": pl.col("rank")},
            "error of the law without forgetting",
        ),
        (
            {"where": {"rule": "sgd"}, "survivors": pl.col("rank")},
            "error of the law without what was learned",
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
        ({"images": Images(train_size=150)}, "train_size must be at least 160, got 150"),
        ({"channels": 6}, "channels must be a multiple of 4, got 6"),
        ({"conv_batches": (4,)}, "conv_batches must be at least 2 values"),
        ({"conv_batches": (4, 4)}, "conv_batches"),
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
    trial = Training(IMAGES, (48, 48), "cpu", "sgd", 6, 0.1, 1e-2, 1, 40, 1e-5, None, 5)
    (rows,) = experiments.train([trial])
    (end,) = [row for row in rows if row["final"]]
    assert end["step"] == 4
    assert end["rank"] > 40
    assert end["learned_rank"] <= 4 * 6
    assert end["decay_exponent"] == pytest.approx(4 * 0.1 * 1e-2)


def test_a_network_that_diverged_has_no_ranks_and_its_neighbour_has() -> None:
    lost, kept = (
        Training(IMAGES, (8, 8), "cpu", "sgd", 8, lr, 0.0, 2, 8, 1e-2, None, 1)
        for lr in (1e30, 0.1)
    )
    first, second = experiments.train([lost, kept])
    assert first[-1]["diverged"]
    assert "rank" not in first[-1]
    assert second[-1]["rank"] == experiments.train([kept])[0][-1]["rank"]


@pytest.mark.parametrize("network", NETWORKS)
def test_every_kernel_behind_the_first_has_a_row_at_each_snapshot(network: str) -> None:
    trials = [
        Convolution(Images(train_size=40), network, 4, size, 0.05, 0.01, 2, 8, seed)
        for size, seed in ((8, 1), (8, 2))
    ]
    blocks, _ = NETWORKS[network]
    for rows in experiments.convolve(trials):
        assert len(rows) == 2 * blocks * len(experiments.CONV_SNAPSHOTS)
        assert {(row["rows"], row["cols"]) for row in rows} == {(4, 36)}
        assert rows[-1]["final"]
        assert rows[-1]["decay_exponent"] == pytest.approx(10 * 0.05 * 0.01)
        assert all(row["rank"] == 4 == pytest.approx(row["rank_law"], abs=0.1) for row in rows)


def test_only_without_decay_does_a_wide_network_keep_its_rank() -> None:
    knobs = LowRank(images=IMAGES, wide=300, wide_epochs=16, seeds=2)
    made = experiments.experiments(knobs, 0)["wide"].trials
    trials = [trial for trial in made if trial.seed == 0 and trial.batch_size == 1]
    ((decayed,), (kept,)) = experiments.train(trials)
    assert decayed["train_accuracy"] > 0.9
    assert decayed["rank"] < 20
    assert kept["rank"] > 240


@pytest.mark.parametrize("kind", ["mlp", "conv"])
def test_the_rank_identity_is_exact_for_sgd_and_broken_by_the_others(kind: str) -> None:
    """rank(W_T - (1 - lr weight_decay)^n W_(T-n)) <= n m_l B, of the last layer but one."""
    batch_size, steps, positions = (4, 5, 1) if kind == "mlp" else (1, 2, 4)
    hidden = (64, 64) if kind == "mlp" else (16, 64)

    def model(shape: tuple[int, int, int], classes: int) -> Any:
        return lambda generator: models.conv_net(shape, hidden, classes, generator=generator)

    found = {}
    for rule, beta in RULES.items():
        at = cell(LowRank(lr=(0.05,), weight_decay=(2e-3,)), rule)
        rates = {"lr": at["lr"], "weight_decay": at["weight_decay"]}
        options: dict[str, Any] = {"rule": getattr(rules, rule), "dtype": torch.float64}
        options |= {"members": [Member(1, momentum=beta, **rates)], "batch_size": batch_size}
        images = Images(train_size=200)
        if kind == "mlp":
            ensemble = perceptrons(images, hidden, **options).ensemble
        else:
            ensemble = networks(images, model, flat=False, path="loop", **options).ensemble
        name = [name for name in ensemble.parameters() if name.endswith("weight")][-2]
        earlier, later = (
            ensemble.parameters()[name][0].flatten(1).numpy()
            for _ in ensemble.read_at((20, 20 + steps))
        )
        sizes = {"steps": steps, "batch_size": batch_size, "patches": positions}
        identity = predict.rank_identity(later, earlier, **rates, **sizes)
        assert not identity.vacuous
        found[rule] = identity.holds
    assert found == {"sgd": True, "momentum": False, "adamw": False}


def test_what_is_cut_from_the_knobs_reads_unknown() -> None:
    cut = replace(KNOBS, batch_sizes=(4,), lr=(0.05,), weight_decay=(0.0, 6e-3))
    checks = {check.name: check for check in CLAIM.judge(world(), cut).checks}
    assert set(checks) == set(CLAIM.predictions(KNOBS))
    for start in ("rank, small over large", "rank, high over low", "test accuracy, small"):
        found = [check for name, check in checks.items() if name.startswith(start)]
        assert found
        assert all(np.isnan(check.value) and not check.passed for check in found)


def test_runs_that_did_not_fit_are_left_out_and_counted() -> None:
    spoiled = world(where={"seed": 0}, train_accuracy=0.1, rank=1.0)
    verdict = claims.get("low-rank").judge(spoiled, KNOBS)
    assert verdict.outcome == "supported"
    runs = spoiled["training"]["trial"].n_unique()
    assert f"{runs // 18} of {runs} perceptrons" in verdict.summary


def test_where_most_runs_did_not_fit_there_is_no_verdict() -> None:
    half = world(where={"weight_decay": 6e-3, "rule": "sgd"}, train_accuracy=0.1)
    assert CLAIM.judge(half, KNOBS).outcome == "inconclusive"


def test_with_nothing_fitted_no_figure_is_drawn_and_no_verdict_given() -> None:
    unfit = world(train_accuracy=0.2)
    assert CLAIM.figures(unfit, KNOBS) == ()
    assert CLAIM.judge(unfit, KNOBS).outcome == "inconclusive"
    assert (CLAIM.table(unfit, KNOBS)["fitted"] == 0).all()


def test_the_table_holds_every_rule_and_the_bound_says_nothing() -> None:
    table = CLAIM.table(world(), KNOBS)
    assert set(table["rule"]) == set(RULES)
    assert (table.filter(rule="sgd")["paper's bound"] > max(KNOBS.widths)).all()
    assert table.filter(pl.col("rule") != "sgd")["paper's bound"].is_null().all()
    names = [figure.name for figure in CLAIM.figures(world(), KNOBS)]
    assert names == ["batch-size", "collapse", "survivors", "kernels"]
