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
from undertow.claims.rank_one_features import RankOneFeatures, experiments
from undertow.claims.rank_one_features.experiments import Committee, Net, follow, forecast, start

pytestmark = pytest.mark.usefixtures("global_rng_untouched")

TINY = RankOneFeatures(
    samples=3,
    features=5,
    neurons=4,
    lrs=(0.005, 0.01),
    decay=0.02,
    collapse_steps=200,
    sign_steps=160,
    digits=3,
    net_steps=40,
    seeds=3,
)
COMMITTEE = Committee(0.005, 16, 3, 5, 4, 1.0, seed=100, inputs="independent")
# Of an experiment a column: a number that it becomes, or is multiplied with, and in which runs.
Changed = tuple[str, str, str, float, dict[str, object]]


@cache
def predicted(trial: Committee) -> dict[str, float | None]:
    _, gram, goal = start(trial)
    return forecast(trial, gram.numpy(), goal.numpy())[1]


def ideal(name: str, trial: Committee | Net) -> list[dict[str, Any]]:
    """What the claim predicts, at the start and at the end, with a little spread over seeds."""
    wobble = 1 + 1e-3 * (trial.seed % 7)
    facts = {"diverged": False, "stable_rank": 1.1, "rank_ratio": 0.3, "trace": 5.0}
    if name in ("nets", "beyond"):
        return [{"step": step} | facts for step in (0, trial.steps)]
    found = predicted(trial)
    rate = found["predicted_at_lr"] or found["predicted"] or 0.0
    if trial.noise == "isotropic":
        rate = -1 / trial.steps
    last = 0.01 if name == "collapse" and trial.noise == "label" else 0.7
    return [
        facts
        | found
        | {
            "step": step,
            "rank_ratio": 0.7 * wobble if step == 0 else last * wobble,
            "trace": 2.0 if step == 0 else 1.001,
            "least_trace": 1.0,
            "log_spread": -rate * wobble * step,
            "log_spread_slowest": -(found["predicted_slowest"] or 0.0) * wobble * step,
        }
        for step in (0, trial.steps)
    ]


def changed_in(records: Records, change: Changed) -> Records:
    """The same with another value in the later readings of some runs."""
    name, column, how, number, where = change
    late = pl.all_horizontal(pl.col(key) == given for key, given in where.items())
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


LABEL = {"noise": "label"}
RATIO_LOST: Changed = ("collapse", "rank_ratio", "is", 0.1, {"noise": "none"})
KNOBS = RankOneFeatures(seeds=12)


def broken(name: str, column: str, how: str, number: float, **where: object) -> dict[str, Changed]:
    return {"changed": (name, column, how, number, where)}


CONTRACT = Contract(
    claim="rank-one-features",
    tiny=TINY,
    world=world,
    knobs=KNOBS,
    refuted=[
        (
            broken("collapse", "rank_ratio", "is", 0.3, inputs=inputs, noise="label"),
            f"{inputs} inputs, s2 / s1",
        )
        for inputs in ("orthonormal", "independent")
    ]
    + [
        (
            broken("collapse", "trace", "is", 1.1, inputs=inputs, noise="label"),
            f"{inputs} inputs, F over its minimum",
        )
        for inputs in ("orthonormal", "independent")
    ]
    + [
        (
            broken("rates", "log_spread", "times", 1.3, inputs="orthonormal"),
            "orthonormal inputs, r",
        ),
        (
            broken("rates", "log_spread_slowest", "times", 0.5, inputs="independent"),
            "independent inputs, slowest rate",
        ),
        (broken("rates", "log_spread", "times", 1.1, lr=0.01), "rate over prediction that knows"),
        (
            broken("signs", "log_spread", "times", -1.0, activation="tanh", target=0.3),
            "tanh near 0",
        ),
        (broken("signs", "log_spread", "times", -1.0, activation="gelu"), "the other signs"),
        (
            broken("signs", "log_spread", "times", 1.3, activation="softplus", target=1.0),
            "rate against prediction, worst",
        ),
    ],
    left_open=[
        ({"changed": RATIO_LOST}, "without noise, s2 / s1"),
        (broken("collapse", "log_spread", "is", -0.01, noise="none"), "without noise, e-folds"),
        (broken("signs", "log_spread", "is", -0.5, noise="isotropic"), "noise on the weights"),
        (broken("signs", "log_spread", "is", -0.5, activation="quadratic"), "phi''' = 0"),
    ],
    bad_knobs=[
        ({"samples": 9}, "samples must be at most features = 8, got 9"),
        ({"samples": 1}, "samples must be at least 2"),
        ({"neurons": 1}, "neurons must be at least 2"),
        ({"noise_std": 0.0}, "noise_std must be between 0 and inf"),
        ({"lrs": (0.01,)}, "lrs must be at least 2 values"),
        ({"lrs": (0.01, 0.005)}, "lrs must be ascending"),
        ({"decay": 0.0}, "decay must be between 0 and inf, got 0"),
        ({"sign_steps": 10}, "sign_steps must be at least 160, got 10"),
        ({"collapse_steps": 7}, "collapse_steps must be at least 8"),
        ({"digits": -1}, "digits must be at least 0"),
        ({"seeds": 1}, "seeds must be at least 2, got 1"),
    ],
)


def judged(*changes: Changed, knobs: RankOneFeatures = KNOBS) -> lab.Verdict:
    return claims.get("rank-one-features").judge(world(12, *changes), knobs)


# ---- runs


def test_rates_of_correlated_inputs_are_eigenvalues_slowest_first() -> None:
    _, gram, goal = start(COMMITTEE)
    modes, facts = forecast(COMMITTEE, gram.numpy(), goal.numpy())
    rates = predict.rank_one_rate(0.005, 1.0, activation="cubic", preactivation=goal.numpy())
    matrix = gram.numpy() @ np.diag(np.asarray(rates))
    assert facts["predicted_slowest"] == pytest.approx(np.linalg.eigvals(matrix).real.min())
    np.testing.assert_allclose(modes[0] @ matrix, facts["predicted_slowest"] * modes[0], atol=1e-15)
    assert facts["predicted"] == pytest.approx(np.trace(matrix) / 3)
    assert facts["predicted_at_lr"] is None


def test_starts_are_what_they_say() -> None:
    z, gram, goal = start(replace(COMMITTEE, inputs="orthonormal", spread=0.01))
    torch.testing.assert_close(gram, torch.eye(3).double(), rtol=0, atol=1e-12)
    assert (z - goal).abs().max() < 0.1
    assert ((goal.abs() >= 0.3) & (goal.abs() <= 0.8)).all()
    z, gram, goal = start(replace(COMMITTEE, inputs="crowded", samples=9))
    assert torch.linalg.matrix_rank(torch.cat([z, goal[None]])) == 5
    z, gram, goal = start(replace(COMMITTEE, inputs="digits", features=64, target=0.5))
    torch.testing.assert_close(gram.diagonal(), torch.ones(3).double())
    assert (goal.abs() == 0.5).all()


def test_the_runs_that_look_for_a_sign_have_one_lr_times_curvature() -> None:
    signs = experiments.experiments(KNOBS, 0)["signs"].trials
    for trial in signs:
        slope, _ = predict.activation_derivatives(trial.activation, trial.target)
        assert 2 * trial.neurons * trial.lr * float(slope) ** 2 == pytest.approx(0.1)


def test_neurons_near_one_another_meet_at_the_predicted_rate_and_stay_without_noise() -> None:
    near = Committee(0.01, 4_000, 3, 5, 4, 1.0, 7, "cubic", "orthonormal", "label", 0.5, 0.02)
    noisy, still = follow([near, replace(near, noise="none")])
    fell = noisy[0]["log_spread"] - noisy[-1]["log_spread"]
    assert fell / 4_000 == pytest.approx(noisy[0]["predicted_at_lr"], rel=0.05)
    assert still[0]["log_spread"] == pytest.approx(still[-1]["log_spread"], abs=1e-9)
    assert still[0]["predicted"] == 0


def test_a_run_that_blows_up_is_recorded_and_leaves_the_others() -> None:
    calm, wild = follow([COMMITTEE, replace(COMMITTEE, lr=0.1)])
    assert wild[-1]["diverged"]
    assert math.isnan(wild[-1]["rank_ratio"])
    assert not calm[-1]["diverged"]


def test_ordinary_networks_in_miniature() -> None:
    net = Net("tanh", "label", 0.1, 16, 20, 4, 0.5, seed=100)
    first, second = experiments.train_nets([net, replace(net, seed=101)])
    assert [row["step"] for row in first] == [2 * index for index in range(9)]
    assert first[-1]["rank_ratio"] != second[-1]["rank_ratio"]
    assert all(row["stable_rank"] >= 1 and row["trace"] > 0 for row in (*first, *second))


def test_what_decides_nothing_can_be_left_out() -> None:
    bare = experiments.experiments(replace(KNOBS, digits=0, net_steps=0), 0)
    assert not bare["nets"].trials
    assert {trial.inputs for trial in bare["beyond"].trials} == {"crowded"}


# ---- the verdict


def test_a_broken_control_leaves_it_open_even_beside_a_refutation() -> None:
    far: Changed = ("collapse", "rank_ratio", "is", 0.5, LABEL)
    assert judged(far).outcome == "refuted"
    assert judged(RATIO_LOST, far).outcome == "inconclusive"


def test_what_lies_beyond_decides_nothing() -> None:
    verdict = judged(
        ("beyond", "diverged", "is", True, {"inputs": "crowded"}),
        ("nets", "rank_ratio", "is", 0.9, LABEL),
    )
    assert verdict.outcome == "supported"
    assert verdict.summary.startswith("0 of ")


def test_runs_that_diverged_are_left_out_and_counted() -> None:
    verdict = judged(("collapse", "diverged", "is", True, LABEL | {"seed": 3}))
    assert verdict.outcome == "supported"
    assert verdict.summary.startswith("2 of ")


def test_a_share_is_one_of_seeds_and_not_of_their_runs() -> None:
    verdict = judged(("signs", "log_spread", "is", 9.0, {"activation": "cubic", "seed": 2}))
    (check,) = [check for check in verdict.checks if check.name.startswith("the other signs")]
    expected = lab.proportion(11, 12)
    assert (check.value, check.interval) == (expected.value, expected.interval)


def test_few_steps_promise_nothing() -> None:
    assert judged(knobs=replace(KNOBS, collapse_steps=1_000)).outcome == "inconclusive"


def test_table_and_figures_hold_every_kind_of_run() -> None:
    claim, records = claims.get("rank-one-features"), world()
    table = claim.table(records, KNOBS)
    assert table.filter(part="signs", activation="tanh", target=0.3)["predicted"].item() < 0
    assert table.filter(part="nets").height == 6
    assert [drawn.name for drawn in claim.figures(records, KNOBS)] == [
        "sign",
        "rate",
        "collapse",
        "net",
    ]


@pytest.mark.parametrize("missing", ["collapse", "beyond", "rates", "signs", "nets"])
def test_an_experiment_without_records_leaves_the_rest(missing: str) -> None:
    rest = {**world(), missing: pl.DataFrame(schema={"trial": pl.String})}
    claim = claims.get("rank-one-features")
    decides = missing in ("collapse", "rates", "signs")
    assert claim.judge(rest, KNOBS).outcome == ("inconclusive" if decides else "supported")
    assert len(claim.figures(rest, KNOBS)) >= 3
    assert missing not in claim.table(rest, KNOBS)["part"]
    nothing = dict.fromkeys(rest, rest[missing])
    assert claim.figures(nothing, KNOBS) == ()
    assert claim.table(nothing, KNOBS).is_empty()
