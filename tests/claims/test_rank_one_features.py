"""The claim rank-one-features: its world, and the laws of its runs."""

from __future__ import annotations

import math
from dataclasses import asdict, replace
from functools import cache
from typing import Any

import numpy as np
import polars as pl
import pytest
import torch
from contract import Contract

from undertow import claims, lab, predict
from undertow.claims import Records
from undertow.claims.rank_one_features import RankOneFeatures, experiments, predictions
from undertow.claims.rank_one_features.experiments import (
    Committee,
    closed_forms,
    follow,
    start,
)

pytestmark = pytest.mark.usefixtures("global_rng_untouched")

TINY = RankOneFeatures(
    samples=3,
    features=5,
    neurons=4,
    lr_curvatures=(0.125, 0.25),
    decay=0.02,
    far_time=0.05,
    digits=3,
    seeds=3,
)
COMMITTEE = Committee(0.005, 1.0, 16, 3, 5, 4, seed=100, inputs="independent")
# Of an experiment a column: a number that it becomes, or is multiplied with, and in which runs.
Changed = tuple[str, str, str, float, dict[str, object]]


@cache
def predicted(trial: Committee) -> dict[str, float | None]:
    _, gram, flattest, _ = start(trial)
    return closed_forms(trial, gram, flattest[0])[0]


def ideal(name: str, trial: Committee) -> list[dict[str, Any]]:
    """What the claim predicts, at the start and at the end, with a little spread over seeds."""
    wobble = 1 + 1e-3 * (trial.seed % 7)
    facts = {"diverged": False, "stable_rank": 1.1, "rank_ratio": 0.3, "trace": 5.0}
    found = predicted(trial)
    rate = found["predicted_at_lr"] or found["predicted"] or 0.0
    if trial.noise == "isotropic":
        rate = -1 / trial.steps
    collapses = trial.noise == "label" and (trial.activation != "tanh" or trial.target is not None)
    last = 0.01 if name == "collapse" and collapses else 0.7
    folds = 1.1 * (found["predicted_least"] or 0.0) * trial.steps
    return [
        facts
        | found
        | {
            "step": step,
            "rank_ratio": 0.7 * wobble if step == 0 else last * wobble,
            "bend_ratio": 0.7 if step == 0 else 0.001 * wobble,
            "flattest_ratio": 0.01,
            "trace": 2.0 if step == 0 else 1.001,
            "least_trace": 1.0,
            "widest": 0.01,
            "narrowest": 0.01,
            "apart": math.exp(-folds * wobble * step / trial.steps),
            "path_apart": math.exp(-folds * step / trial.steps),
            "log_spread": -rate * wobble * step,
            "log_spread_slowest": -(found["predicted_slowest"] or 0.0) * wobble * step,
        }
        for step in (0, trial.steps)
    ]


def changed_in(records: Records, change: Changed) -> Records:
    """The same with another value in the later readings of some runs."""
    name, column, how, number, where = change
    late = pl.all_horizontal(pl.col(key).eq_missing(given) for key, given in where.items())
    value = pl.lit(number) if how == "is" else pl.col(column) * number
    new = pl.when(late & (pl.col("step") > 0)).then(value).otherwise(pl.col(column))
    return {**records, name: records[name].with_columns(new.alias(column))}


def world(seeds: int = 12, *changes: Changed, changed: Changed | None = None) -> Records:
    """Records of a world in which every prediction holds, but for what is changed in it."""
    records: Records = {
        name: pl.DataFrame(
            [
                {"trial": str(trial)} | asdict(trial) | row
                for trial in experiment.trials
                for row in ideal(name, trial)
            ],
            infer_schema_length=None,
        )
        for name, experiment in experiments.experiments(RankOneFeatures(seeds=seeds), 0).items()
    }
    for change in (*changes, *([changed] if changed else [])):
        records = changed_in(records, change)
    return records


LABEL: dict[str, object] = {"noise": "label"}
CUBIC: dict[str, object] = {"activation": "cubic", "noise": "label"}
RATIO_LOST: Changed = ("collapse", "rank_ratio", "is", 0.05, {"noise": "none"})
KNOBS = RankOneFeatures(seeds=12)


def broken(name: str, column: str, how: str, number: float, **where: object) -> dict[str, Changed]:
    return {"changed": (name, column, how, number, where)}


def each_input(column: str, number: float, check: str) -> list[tuple[dict[str, Changed], str]]:
    return [
        (
            broken("collapse", column, "is", number, inputs=inputs, **CUBIC),
            f"{inputs} inputs, {check}",
        )
        for inputs in predictions.INPUTS
    ]


CONTRACT = Contract(
    claim="rank-one-features",
    tiny=TINY,
    world=world,
    knobs=KNOBS,
    refuted=[
        *each_input("rank_ratio", 0.9, "s2 / s1"),
        *each_input("trace", 3.0, "F - F_min"),
        *each_input("apart", 2.0, "e-folds of the distance over forecast"),
        *each_input("apart", 3.0, "e-folds over 2 lr^2 s^2"),
        (
            broken("collapse", "rank_ratio", "is", 0.9, activation="tanh", target=1.2),
            "tanh, all neurons where",
        ),
        (
            broken("collapse", "bend_ratio", "is", 1.1, weights="unequal"),
            "unequal output weights, s2 / s1 of phi''",
        ),
        (
            broken("collapse", "rank_ratio", "is", 0.1, weights="unequal"),
            "unequal output weights, s2 / s1 of the features",
        ),
        (
            broken("rates", "log_spread", "times", -1.0, inputs="orthonormal"),
            "orthonormal inputs, rate",
        ),
        (
            broken("rates", "log_spread_slowest", "times", -1.0, inputs="independent"),
            "independent inputs, slowest rate",
        ),
        (
            broken("signs", "log_spread", "times", -1.0, activation="tanh", target=0.3),
            "tanh near 0",
        ),
        (broken("signs", "log_spread", "times", -1.0, activation="gelu"), "the other signs"),
    ],
    left_open=[
        ({"changed": RATIO_LOST}, "without noise, s2 / s1"),
        (
            broken("collapse", "rank_ratio", "is", 0.1, activation="tanh", target=None),
            "tanh, neurons on both sides",
        ),
        (broken("signs", "log_spread", "is", -0.5, noise="isotropic"), "noise on the weights"),
        (broken("signs", "log_spread", "is", -0.5, activation="quadratic"), "phi''' = 0"),
    ],
    bad_knobs=[
        ({"samples": 9}, "samples must be at most features = 8, got 9"),
        ({"samples": 1}, "samples must be at least 2"),
        ({"neurons": 1}, "neurons must be at least 2"),
        ({"fluctuation": 0.0}, "fluctuation must be between 0 and"),
        ({"lr_curvature": 1.0}, "lr_curvature must be between 0 and"),
        ({"lr_curvatures": (0.1,)}, "lr_curvatures must be at least 2 values"),
        ({"lr_curvatures": (0.2, 0.1)}, "lr_curvatures must be ascending"),
        ({"decay": 0.0}, "decay must be between 0 and 2, got 0"),
        ({"far_time": 0.0}, "far_time must be between 0 and"),
        ({"digits": 1}, "digits must be at least 2"),
        ({"seeds": 1}, "seeds must be at least 2, got 1"),
    ],
)


def judged(*changes: Changed, knobs: RankOneFeatures = KNOBS) -> lab.Verdict:
    return claims.get("rank-one-features").judge(world(12, *changes), knobs)


# ---- runs


def test_rates_of_correlated_inputs_are_eigenvalues_slowest_first() -> None:
    _, gram, flattest, _ = start(COMMITTEE)
    goal = flattest[0]
    facts, modes = closed_forms(COMMITTEE, gram, goal)
    directions = modes.numpy()
    rates = predict.rank_one_rate(0.005, 1.0, activation="cubic", preactivation=goal.numpy())
    matrix = gram.numpy() @ np.diag(np.asarray(rates))
    slowest = facts["predicted_slowest"]
    assert slowest == pytest.approx(np.linalg.eigvals(matrix).real.min())
    np.testing.assert_allclose(directions[0] @ matrix, slowest * directions[0], atol=1e-15)
    assert facts["predicted"] == pytest.approx(np.trace(matrix) / 3)
    assert facts["predicted_at_lr"] is None
    assert slowest is not None
    assert slowest >= (facts["predicted_least"] or math.inf)


def test_starts_are_what_they_say() -> None:
    z, gram, flattest, _ = start(replace(COMMITTEE, inputs="orthonormal", spread=0.01))
    torch.testing.assert_close(gram, torch.eye(3).double(), rtol=0, atol=1e-12)
    assert (z - flattest).abs().max() < 0.1
    assert ((flattest.abs() >= 0.3) & (flattest.abs() <= 0.8)).all()
    z, gram, flattest, _ = start(replace(COMMITTEE, inputs="digit", features=64, target=0.5))
    torch.testing.assert_close(gram.diagonal(), torch.ones(3).double())
    assert (flattest.abs() == 0.5).all()


def test_with_unequal_weights_it_is_phi_second_that_has_rank_one() -> None:
    _, _, flattest, weights = start(replace(COMMITTEE, activation="sinh", weights="unequal"))
    assert (weights < 0).any() or (weights > 0).all()
    assert weights.abs().min() >= 0.5
    assert torch.linalg.matrix_rank(flattest.sinh()) == 1
    assert torch.linalg.matrix_rank(flattest) > 1
    each = weights[:, None] * flattest.sinh()  # c, alike for all neurons
    torch.testing.assert_close(each, each[:1].expand_as(each))


@pytest.mark.parametrize("knobs", [KNOBS, replace(KNOBS, neurons=3), replace(KNOBS, neurons=90)])
def test_near_runs_are_as_long_and_as_linear_at_any_size_and_activation(
    knobs: RankOneFeatures,
) -> None:
    for trial in experiments.experiments(knobs, 1000)["signs"].trials:
        slope, third = predict.activation_derivatives(trial.activation, trial.target)
        curvature = 2 * trial.neurons * trial.lr * float(slope) ** 2
        assert curvature == pytest.approx(0.125)
        fluctuation = trial.noise_std * math.sqrt(curvature / 2) / (trial.neurons * float(slope))
        assert fluctuation == pytest.approx(knobs.fluctuation)
        if trial.noise == "label" and float(third):
            rate = predict.rank_one_rate(
                trial.lr, trial.noise_std, derivatives=(float(slope), float(third))
            )
            assert trial.steps * abs(rate) == pytest.approx(knobs.decay, rel=1e-3)


def test_neurons_near_one_another_meet_at_the_predicted_rate_and_stay_without_noise() -> None:
    near = Committee(0.01, 1.0, 4_000, 3, 5, 4, 7, target=0.5, spread=0.02)
    noisy, still = follow([near, replace(near, noise="none")])
    fell = noisy[0]["log_spread"] - noisy[-1]["log_spread"]
    assert fell / 4_000 == pytest.approx(noisy[0]["predicted_at_lr"], rel=0.05)
    assert still[0]["log_spread"] == pytest.approx(still[-1]["log_spread"], abs=1e-9)
    assert still[0]["predicted"] is None


def test_a_run_that_blows_up_is_recorded_and_leaves_the_others() -> None:
    calm, wild = follow([COMMITTEE, replace(COMMITTEE, lr=0.2)])
    assert wild[-1]["diverged"]
    assert math.isnan(wild[-1]["rank_ratio"])
    assert not calm[-1]["diverged"]


# ---- the verdict


def test_a_broken_control_leaves_it_open_even_beside_a_refutation() -> None:
    far: Changed = ("collapse", "rank_ratio", "is", 0.9, CUBIC)
    assert judged(far).outcome == "refuted"
    assert judged(RATIO_LOST, far).outcome == "inconclusive"


def test_short_of_rank_one_is_no_evidence_against_it() -> None:
    assert judged(("collapse", "rank_ratio", "is", 0.5, CUBIC)).outcome == "inconclusive"


def test_a_rate_is_read_neither_far_from_one_another_nor_in_rounding() -> None:
    for column, number in (("widest", 0.5), ("narrowest", 0.0)):
        verdict = judged(
            ("rates", column, "is", number, LABEL), ("rates", "log_spread", "is", -9.0, LABEL)
        )
        assert verdict.outcome == "inconclusive"


def test_a_distance_that_sank_into_rounding_is_not_read() -> None:
    sunk: Changed = ("collapse", "apart", "is", 0.0, {"seed": 10_000_003})
    assert judged(sunk).outcome == "supported"


def test_runs_that_diverged_are_left_out_and_counted() -> None:
    verdict = judged(("collapse", "diverged", "is", True, CUBIC | {"seed": 3}))
    assert verdict.outcome == "supported"
    assert verdict.summary.startswith("3 of ")


def test_few_steps_promise_nothing() -> None:
    assert judged(knobs=replace(KNOBS, far_time=5.0)).outcome == "inconclusive"


def test_table_and_figures_hold_every_kind_of_run() -> None:
    claim, records = claims.get("rank-one-features"), world()
    table = claim.table(records, KNOBS)
    assert table.filter(part="signs", activation="tanh", target=0.3)["predicted"].item() < 0
    names = [drawn.name for drawn in claim.figures(records, KNOBS)]
    assert names == ["forecast", "collapse", "sign"]


@pytest.mark.parametrize("missing", ["collapse", "rates", "signs"])
def test_an_experiment_without_records_leaves_the_rest(missing: str) -> None:
    rest = {**world(), missing: pl.DataFrame(schema={"trial": pl.String})}
    claim = claims.get("rank-one-features")
    assert claim.judge(rest, KNOBS).outcome == "inconclusive"
    assert len(claim.figures(rest, KNOBS)) >= 1
    assert missing not in claim.table(rest, KNOBS)["part"]
    nothing = dict.fromkeys(rest, rest[missing])
    assert claim.figures(nothing, KNOBS) == ()
    assert claim.table(nothing, KNOBS).is_empty()
