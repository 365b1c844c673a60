"""The claim square-loss: its world, and the laws of its runs."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import polars as pl
import pytest
import torch
from contract import Contract

from undertow import claims, lab
from undertow.claims import Records
from undertow.claims.square_loss import SquareLoss, experiments
from undertow.claims.square_loss.experiments import FLOW_READINGS, Collapse, Flow, Norms, Toeplitz
from undertow.data import Images

TINY = SquareLoss(
    samples=12,
    width=8,
    initial_rho=(1.0, 20.0),
    rho_decay=(0.0, 1e-2),
    horizon=2.0,
    norms_steps=100,
    collapse_per_class=3,
    collapse_width=12,
    collapse_steps=60,
    seeds=3,
)
FLOW = Flow(Images(), (3, 8), 16, 12, 1.0, 1e-2, 300.0, seed=5)


def wobble(seed: int) -> float:
    """A little that differs between seeds."""
    return 1 + 0.01 * math.sin(seed)


def flows_world(seeds: int, **broken: Any) -> pl.DataFrame:
    """Flows whose rho ends where lambda says, or near its start without."""
    free = {1.0: 16.0, 50.0: 57.0, 500.0: broken.get("largest", 502.0)}
    decayed = {1e-4: 10.7, 1e-3: 6.8, 1e-2: 4.0}
    kinds = [(start, decay, False, "scaled") for start in free for decay in (0.0, *decayed)]
    kinds += [(1.0, 1e-3, True, "scaled"), (1.0, 1e-2, False, "own")]
    rows = []
    for start, decay, shuffled, speed in kinds:
        apart = start ** broken.get("memory", 0.0)
        rho = decayed[decay] * apart if decay else free[start]
        rho *= broken.get("shuffled", 1.74) if shuffled else 1.0
        rho *= broken.get("own", 1.0) if speed == "own" else 1.0
        late_cv = broken.get("late_cv", 0.06) if decay else broken.get("free_cv", 0.012)
        for seed in range(seeds):
            own = rho * wobble(seed)
            cell = {"initial_rho": start, "rho_decay": decay, "shuffled": shuffled, "speed": speed}
            for fraction, cv in ((FLOW_READINGS[0], 0.3), (1.0, late_cv)):
                fitted = broken.get("fitted_early", 1.0) if fraction < 1 else 1.0
                rows.append(
                    cell
                    | {
                        "trial": f"{start} {decay} {shuffled} {speed} {seed}",
                        "seed": seed,
                        "fraction": fraction,
                        "diverged": seed < broken.get("lost", 0),
                        "moved": broken.get("moved", 1e-3),
                        "rho": own,
                        "equilibrium": own / (1 + broken.get("error", 0.005)),
                        "margin": own ** broken.get("power", -1.0),
                        "margin_cv": cv * wobble(seed),
                        "fitted": fitted,
                        "least_margin": 0.01,
                        "stable_rank": broken.get("small_rank", 1.4) if start == 1 else 12.0,
                    }
                )
    return pl.DataFrame(rows)


def world(seeds: int = 12, **broken: Any) -> Records:
    """Records of a world in which every prediction holds, but for what is given otherwise."""
    norms, collapse, convolutions = [], [], []
    for seed in range(seeds):
        for decay in (0.0, 1e-2):
            spread = broken.get("spread", 0.006) if decay else broken.get("free_spread", 1.7)
            norms.append(
                {
                    "trial": f"{decay} {seed}",
                    "seed": seed,
                    "weight_decay": decay,
                    "diverged": False,
                    "norm_spread": spread * wobble(seed),
                    "rho": 4.0,
                    "equilibrium": 4.0 * (1 + broken.get("norms_error", 1e-3)),
                    "fitted": broken.get("norms_fitted", 1.0),
                    **{f"square_{layer}": 2.0 + layer for layer in (1, 2, 3)},
                }
            )
        for decay in (0.0, 1e-3):
            for fraction in (0.05, 1.0):
                late = {"nc1": 0.2, "nc2": 0.65, "nc3": 0.35} | broken.get("collapse", {})
                if not decay:
                    late["nc3"] = broken.get("free_nc3", 1.2)
                values = late if fraction == 1 else dict.fromkeys(late, 1.0)
                collapse.append(
                    {
                        "trial": f"{decay} {seed}",
                        "seed": seed,
                        "weight_decay": decay,
                        "fraction": fraction,
                        "step": round(6_000 * fraction),
                        "diverged": False,
                        "accuracy": broken.get("accuracy", 1.0),
                        "nc4": broken.get("nc4", 0.0),
                        **{name: value * wobble(seed) for name, value in values.items()},
                    }
                )
        for padding, ratio in ((0, broken.get("full", 1.0)), (1, broken.get("padded", 0.92))):
            convolutions.append(
                {
                    "trial": f"{padding} {seed}",
                    "seed": seed,
                    "padding": padding,
                    "ratio": ratio,
                    "measured_ratio": ratio,
                }
            )
    frames = {"norms": norms, "collapse": collapse, "convolutions": convolutions}
    return {"flows": flows_world(seeds, **broken)} | {
        name: pl.DataFrame(rows) for name, rows in frames.items()
    }


KNOBS = SquareLoss(seeds=12)
CONTRACT = Contract(
    claim="square-loss",
    tiny=TINY,
    world=world,
    knobs=KNOBS,
    refuted=[
        ({"error": 0.1}, "rho against mu"),
        ({"memory": 0.3}, "log-gap of rho, no decay over"),
        ({"memory": 0.3}, "log-gap of rho from 500 and 1, lambda"),
        ({"late_cv": 0.25}, "spread of the margins, end over early"),
        ({"power": -0.5}, "normalised margin's power of rho"),
        ({"own": 1.1}, "rho, V at its own speed"),
        ({"spread": 0.2}, "squared layer norms"),
        ({"norms_error": 0.1}, "rho of trained networks"),
        ({"collapse": {"nc1": 0.9}}, "NC1, end over early"),
        ({"collapse": {"nc2": 0.9}}, "NC2, end over early"),
        ({"collapse": {"nc3": 0.9}}, "NC3, end over early"),
        ({"nc4": 0.05}, "NC4 at the end"),
        ({"full": 1.001}, "Toeplitz norm over"),
    ],
    left_open=[
        ({"largest": 100.0}, "log-gap of rho from 500 and 50 kept"),
        ({"free_cv": 0.1}, "spread of the margins, decay over none"),
        ({"shuffled": 1.0}, "rho, shuffled labels"),
        ({"small_rank": 11.0}, "stable rank without decay"),
        ({"free_spread": 0.05}, "the same without decay"),
        ({"free_nc3": 0.3}, "NC3 without decay"),
        ({"padded": 1.0}, "the same ratio with zero padding"),
    ],
    bad_knobs=[
        ({"initial_rho": (5.0,)}, "initial_rho must be at least 2 values"),
        ({"initial_rho": (0.5, 5.0)}, "initial_rho must be at least 1"),
        ({"initial_rho": (5.0, 5.0)}, "initial_rho must be ascending"),
        ({"rho_decay": (1e-4, 1e-3)}, "rho_decay must begin with 0"),
        ({"rho_decay": (0.0,)}, "rho_decay must be at least 2 values"),
        ({"samples": 7}, "samples must be even"),
        ({"samples": 2}, "samples must be at least 4"),
        ({"classes": (3, 3)}, "classes must be values without one twice"),
        ({"horizon": 0.0}, "horizon must be between 0 and inf"),
        ({"norms_decay": math.inf}, "norms_decay must be between 0 and inf"),
        ({"width": 0}, "width must be at least 1"),
        ({"seeds": 0}, "seeds must be at least 2"),
        ({"collapse_per_class": 1}, "collapse_per_class must be at least 2"),
        ({"collapse_steps": 5}, "collapse_steps must be at least 20"),
    ],
)


def judged(**broken: Any) -> lab.Verdict:
    return claims.get("square-loss").judge(world(**broken), KNOBS)


def named(verdict: lab.Verdict, start: str) -> lab.Check:
    (check,) = [check for check in verdict.checks if check.name.startswith(start)]
    return check


# ---- runs


def test_a_flow_with_decay_forgets_its_start_and_one_without_does_not() -> None:
    starts = [replace(FLOW, initial_rho=rho) for rho in (5.0, 50.0)]
    low, high = experiments.follow(starts)
    assert high[-1]["rho"] == pytest.approx(low[-1]["rho"], rel=0.05)
    assert low[-1]["rho"] == pytest.approx(low[-1]["equilibrium"], rel=0.02)
    free = [replace(trial, rho_decay=0.0) for trial in starts]
    low, high = experiments.follow(free)
    assert high[-1]["rho"] > 3 * low[-1]["rho"]


def test_readings_are_taken_at_their_times() -> None:
    (rows,) = experiments.follow([replace(FLOW, time=50.0)])
    assert [row["fraction"] for row in rows] == list(FLOW_READINGS)
    assert [row["at"] for row in rows] == [50.0 * fraction for fraction in FLOW_READINGS]
    assert rows[-1]["moved"] == pytest.approx(abs(math.log(rows[-1]["rho"] / rows[-2]["rho"])))
    assert rows[0]["moved"] == math.inf


def test_a_flow_that_runs_out_of_steps_counts_as_lost(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(experiments, "MAX_STEPS", 3)
    (rows,) = experiments.follow([FLOW])
    assert rows[-1]["diverged"]
    assert rows[-1]["steps_taken"] == 3


def test_shuffling_changes_labels_and_not_images() -> None:
    inputs, labels = experiments.two_classes([FLOW, replace(FLOW, shuffled=True)])
    assert torch.equal(inputs[0], inputs[1])
    assert not torch.equal(labels[0], labels[1])
    assert labels.sum(1).tolist() == [0, 0]


def test_trained_layers_are_equal_at_the_derived_equilibrium() -> None:
    trials = [Norms(Images(), (3, 8), 16, 12, decay, 6_000, 4) for decay in (3e-2, 0.0)]
    (decayed,), (free,) = experiments.train_norms(trials)
    assert decayed["norm_spread"] < 0.02
    assert free["norm_spread"] > 0.1
    assert decayed["rho"] == pytest.approx(decayed["equilibrium"], rel=1e-2)


def test_the_written_out_convolution_has_the_measured_toeplitz_norm() -> None:
    plain, padded = (experiments.write_out(Toeplitz(padding, 1)) for padding in (0, 1))
    assert plain["positions"] == 36
    assert plain["ratio"] == pytest.approx(1, abs=1e-12)
    assert padded["ratio"] < 0.99
    for row in (plain, padded):
        assert row["measured_ratio"] == pytest.approx(row["ratio"], abs=1e-12)


@pytest.mark.usefixtures("global_rng_untouched")
def test_global_random_state_is_left_alone() -> None:
    experiments.follow([replace(FLOW, time=5.0)])
    experiments.train_collapse([Collapse(Images(), 2, 4, 1e-3, 20, 1)])
    experiments.write_out(Toeplitz(0, 1))


def test_more_images_than_there_are_says_how_many_there_are() -> None:
    with pytest.raises(ValueError, match="samples of class 3, got 500"):
        experiments.follow([replace(FLOW, samples=1000)])


# ---- the verdict


def test_a_spread_that_falls_only_because_the_fit_begins_is_not_read() -> None:
    check = named(judged(fitted_early=0.6), "spread of the margins, end over early")
    assert math.isnan(check.value)
    assert not check.passed
    assert not check.refuted


def test_nets_that_have_not_fitted_are_no_evidence_of_collapse_or_equal_norms() -> None:
    verdict = judged(accuracy=0.5, norms_fitted=0.5)
    for name in ("NC1", "NC3, end", "NC4", "squared layer norms", "rho of trained networks"):
        check = named(verdict, name)
        assert not check.passed, check
        assert not check.refuted, check


def test_runs_that_failed_count_as_lost() -> None:
    records = world()
    assert claims.get("square-loss").judge(records, KNOBS).outcome == "supported"
    flows = records["flows"].filter((pl.col("seed") < 8) | (pl.col("rho_decay") == 0))
    some = dict(records) | {"flows": flows}
    assert claims.get("square-loss").judge(some, KNOBS).outcome == "inconclusive"


def test_flows_that_never_come_to_rest_promise_no_verdict() -> None:
    assert judged(power=-0.5).outcome == "refuted"
    assert judged(moved=0.5, power=-0.5).outcome == "inconclusive"


def test_a_verdict_needs_nine_in_ten_of_the_runs() -> None:
    verdict = judged(lost=1)
    assert verdict.outcome == "supported"
    assert verdict.summary.startswith("14 of 240 runs")
    assert judged(lost=3, power=-0.5).outcome == "inconclusive"


@pytest.mark.parametrize("missing", ["flows", "norms", "collapse", "convolutions"])
def test_an_experiment_without_records_leaves_the_rest(missing: str) -> None:
    rest = world() | {missing: pl.DataFrame(schema={"trial": pl.String})}
    claim = claims.get("square-loss")
    verdict = claim.judge(rest, KNOBS)
    assert verdict.outcome == "inconclusive"
    assert any(check.passed for check in verdict.checks)
    assert {"rho", "layer-norms"} & {drawn.name for drawn in claim.figures(rest, KNOBS)}
    claim.table(rest, KNOBS)
