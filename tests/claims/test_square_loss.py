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
from undertow.claims.square_loss.experiments import (
    ALL,
    FLOW_READINGS,
    Bound,
    Collapse,
    Flow,
    Network,
)
from undertow.data import Images

TINY = SquareLoss(
    samples=12,
    width=8,
    initial_rho=(1.0, 20.0),
    rho_decay=(0.0, 1e-3, 1e-2),
    horizon=1.0,
    network_steps=100,
    collapse_per_class=3,
    collapse_width=12,
    collapse_steps=60,
    bound_per_class=2,
    bound_channels=(4, 4),
    bound_noise=(0.0, 0.5, 1.0),
    bound_scales=(1.0, 2.0),
    bound_steps=20,
    seeds=2,
)
FLOW = Flow(Images(), (3, 8), 16, 12, 1.0, 1e-2, 300.0, 5, flipped=0.0)


def wobble(seed: int) -> float:
    """A little that differs between seeds."""
    return 1 + 0.01 * math.sin(seed)


def flows_world(seeds: int, **broken: Any) -> pl.DataFrame:
    """Flows whose rho ends where lambda says, or near its start without."""
    free = {1.0: 16.0, 50.0: 57.0, 500.0: broken.get("largest", 502.0)}
    decayed = {1e-4: 10.7, 1e-3: 6.8, 1e-2: 4.0}
    kinds = [(start, decay, 0.0) for start in free for decay in (0.0, *decayed)]
    kinds += [(1.0, 0.0, 0.2), (500.0, 0.0, 0.2), (1.0, 1e-3, 0.2), (1.0, 1e-2, 0.2)]
    errors = {0.0: 0.2, 1e-3: 0.15, 1e-2: broken.get("noisy_error", 0.05)}
    rows = []
    for start, decay, flipped in kinds:
        end = decayed[decay] * start ** broken.get("memory", 0.0) if decay else free[start]
        end *= broken.get("noisy_rho", 1.35) if flipped else 1.0
        error = errors[decay] if flipped else broken.get("clean", 0.02)
        error *= broken.get("far_error", 0.6) if start == 500 and flipped else 1.0
        error *= broken.get("clean_error", 1.0) if decay == 1e-2 and not flipped else 1.0
        late_cv = broken.get("late_cv", 0.06) if decay else broken.get("free_cv", 0.012)
        fall = 2 * 4 * (broken.get("fall", 1.0) if decay else broken.get("free_fall", 0.0))
        for seed in range(seeds):
            shared = {
                "trial": f"{start} {decay} {flipped} {seed}",
                "seed": seed,
                "initial_rho": start,
                "rho_decay": decay,
                "flipped": flipped,
                "diverged": seed < broken.get("lost", 0),
                "moved": broken.get("moved", 1e-3),
                "margin": 1 / end,
                "least_margin": 0.01,
                "stable_rank": broken.get("small_rank", 1.4) if start == 1 else 12.0,
                "end_error": error * wobble(seed),
            }
            for fraction, cv in ((FLOW_READINGS[0], 0.3), (0.1, 0.2), (1.0, late_cv)):
                at = fraction * 4 / (decay or 1e-4)
                early = start * math.exp(-fall * fraction)
                own = {
                    "fraction": fraction,
                    "at": at,
                    "rho": wobble(seed) * (early if fraction < 1 else end),
                    "margin_cv": cv * wobble(seed),
                    "fitted": broken.get("fitted_early", 1.0) if fraction < 1 else 1.0,
                }
                rows.append(shared | own)
    return pl.DataFrame(rows)


def networks_world(seeds: int, **broken: Any) -> pl.DataFrame:
    """Networks by SGD and full batch: readings soon and late."""
    late = {
        (4, 1e-2): broken.get("noise", 0.1),
        (4, 0.0): broken.get("free_noise", 0.004),
        (ALL, 1e-2): broken.get("full_noise", 0.008),
        (ALL, 0.0): 1e-4,
    }
    ranks = {
        (4, 1e-2): broken.get("rank", 10),
        (4, 0.0): 62,
        (ALL, 1e-2): broken.get("full_rank", 10),
        (ALL, 0.0): 62,
    }
    rows = []
    for (size, decay), unrest in late.items():
        soon = broken.get("soon", 0.1) if decay else broken.get("free_soon", 0.01)
        spread = broken.get("spread", 0.006) if decay else broken.get("free_spread", 1.7)
        for seed in range(seeds):
            for fraction, length in ((0.3, soon), (1.0, unrest)):
                rows.append(
                    {
                        "trial": f"{size} {decay} {seed}",
                        "seed": seed,
                        "batch_size": size,
                        "weight_decay": decay,
                        "fraction": fraction,
                        "step": round(10_000 * fraction),
                        "diverged": False,
                        "unrest": length * wobble(seed),
                        "rank": ranks[size, decay],
                        "norm_spread": spread * wobble(seed),
                        "fitted": broken.get("networks_fitted", 1.0),
                    }
                )
    return pl.DataFrame(rows)


def collapse_world(seeds: int, **broken: Any) -> pl.DataFrame:
    """Neural collapse with decay, and without it but for NC3."""
    rows = []
    for seed in range(seeds):
        for decay in (0.0, 1e-3):
            for fraction in (0.05, 1.0):
                late = {"nc1": 0.2, "nc2": 0.65, "nc3": 0.35} | broken.get("collapse", {})
                if not decay:
                    late |= {"nc2": 0.95, "nc3": broken.get("free_nc3", 1.2)}
                values = late if fraction == 1 else dict.fromkeys(late, 1.0)
                rows.append(
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
    return pl.DataFrame(rows)


def bounds_world(seeds: int, **broken: Any) -> pl.DataFrame:
    """CNNs whose bound goes with label noise, scale and decay as the error does."""
    cells = [(0.0, scale, decay) for scale in KNOBS.bound_scales for decay in (0.0, 1e-3)]
    cells += [(noise, 1.0, 0.0) for noise in KNOBS.bound_noise[1:]]
    rows = []
    for noise, scale, decay in cells:
        bound = broken.get("noise_slope", 1.0) * noise
        bound += broken.get("scale_slope", 1.2) * (scale - 1) * (0.5 if decay else 1.0)
        bound -= broken.get("decay_slope", 0.5) * (decay > 0)
        error = 0.1 + 0.8 * noise + broken.get("scale_error", 0.05) * (scale - 1)
        error *= broken.get("decayed_error", 0.8) if decay else 1.0
        for seed in range(seeds):
            rows.append(
                {
                    "trial": f"{noise} {scale} {decay} {seed}",
                    "seed": seed,
                    "label_noise": noise,
                    "scale": scale,
                    "weight_decay": decay,
                    "diverged": False,
                    "log_kernel": broken.get("log_bound", 6.0) + bound,
                    "log_toeplitz": 7.0 + bound,
                    "log_untrained": broken.get("untrained", 3.0) * math.log(scale)
                    + broken.get("told", 0.0) * noise,
                    "margin": 0.9 * wobble(seed),
                    "fitted": broken.get("bounds_fitted", 1.0),
                    "error": error * wobble(seed),
                }
            )
    return pl.DataFrame(rows)


def world(seeds: int = 13, **broken: Any) -> Records:
    """Records of a world in which every prediction holds, but for what is given otherwise."""
    makers = {
        "flows": flows_world,
        "networks": networks_world,
        "collapse": collapse_world,
        "bounds": bounds_world,
    }
    return {name: make(seeds, **broken) for name, make in makers.items()}


KNOBS = SquareLoss(seeds=13)
CONTRACT = Contract(
    claim="square-loss",
    tiny=TINY,
    world=world,
    knobs=KNOBS,
    refuted=[
        ({"fall": 2.1}, "rate at which rho falls"),
        ({"memory": 0.7}, "log-gap of rho, no decay over"),
        ({"memory": 1.1}, "log-gap of rho from 500 and 1, lambda"),
        ({"noisy_error": 0.3}, "test error, lambda = 0.01 over none, 20%"),
        ({"late_cv": 0.35}, "spread of the margins, end over early"),
        ({"noise": 0.003, "soon": 0.003, "full_noise": 1e-4}, "steps of SGD late in training"),
        ({"soon": 0.5}, "steps of SGD, late over soon"),
        ({"rank": 64}, "ranks under SGD"),
        ({"collapse": {"nc1": 1.1}}, "NC1, end over early"),
        ({"collapse": {"nc2": 1.1}}, "NC2 falls further"),
        ({"collapse": {"nc3": 1.4}}, "NC3 at the end, decay"),
        ({"noise_slope": -0.3}, "rank correlation of bound and error, label noise"),
        (
            {"scale_error": -0.03, "decayed_error": 1.3},
            "rank correlation of bound and error, t",
        ),
        (
            {"scale_error": -0.03, "decayed_error": 1.3, "noise_slope": -1.0},
            "rank correlation of bound and error, all",
        ),
        ({"decay_slope": -2.5}, "pairs from one start"),
        ({"noise_slope": -0.3}, "bound, random labels over"),
        ({"decayed_error": 1.1}, "test error, decay over none, true labels, from 2.5"),
    ],
    left_open=[
        ({"free_fall": 0.5}, "the same rate without decay"),
        ({"largest": 100.0}, "log-gap of rho from 500 and 50 kept"),
        ({"noisy_rho": 1.0}, "rho, 20% of the labels"),
        ({"small_rank": 11.0}, "stable rank without decay"),
        ({"far_error": 1.5}, "test error without decay, from 500"),
        ({"clean": 0.2, "clean_error": 0.1}, "what lambda = 0.01 takes off"),
        ({"free_cv": 0.1}, "spread of the margins, decay over none"),
        ({"free_soon": 0.005}, "steps of SGD without decay"),
        ({"full_noise": 0.1}, "steps of full-batch descent"),
        ({"full_rank": 60}, "the same under the full batch"),
        ({"free_spread": 0.05}, "spread of the squared layer norms without"),
        ({"free_nc3": 0.75}, "NC3 without decay"),
        ({"untrained": 0.0, "told": 1.0}, "rank correlation of the untrained bound"),
        ({"scale_slope": 0.1}, "bound, true labels from 2.5 over"),
        ({"log_bound": -2.0}, "size of the bound, true labels"),
    ],
    bad_knobs=[
        ({"initial_rho": (5.0,)}, "initial_rho must be at least 2 values"),
        ({"initial_rho": (0.5, 5.0)}, "initial_rho must be at least 1"),
        ({"initial_rho": (5.0, 5.0)}, "initial_rho must be ascending"),
        ({"rho_decay": (1e-4, 1e-3, 1e-2)}, "rho_decay must begin with 0"),
        ({"rho_decay": (0.0, 1e-3)}, "rho_decay must be at least 3 values"),
        ({"samples": 7}, "samples must be even"),
        ({"samples": 2}, "samples must be at least 4"),
        ({"classes": (3, 3)}, "classes must be values without one twice"),
        ({"horizon": 0.0}, "horizon must be between 0 and inf"),
        ({"flipped": 0.6}, "flipped must be between 0 and 0.5"),
        ({"network_decay": math.inf}, "network_decay must be between 0 and inf"),
        ({"width": 0}, "width must be at least 1"),
        ({"seeds": 0}, "seeds must be at least 2"),
        ({"collapse_per_class": 1}, "collapse_per_class must be at least 2"),
        ({"collapse_steps": 5}, "collapse_steps must be at least 20"),
        ({"bound_noise": (0.0, 0.5, 0.9)}, "bound_noise must be from 0"),
        ({"bound_scales": (1.0,)}, "bound_scales must be at least 2 values"),
        ({"bound_channels": ()}, "bound_channels must be at least 1 value"),
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


def test_flipping_changes_labels_and_neither_images_nor_those_to_test_on() -> None:
    trials = [FLOW, replace(FLOW, flipped=0.5)]
    inputs, labels, unseen, truth = experiments.two_classes(trials)
    assert torch.equal(inputs[0], inputs[1])
    assert labels.sum(1).tolist() == [0, 0]
    assert set(truth.unique().tolist()) == {-1.0, 1.0}
    seen = {tuple(image) for image in inputs[0].tolist()}
    assert not seen & {tuple(image) for image in unseen[0].tolist()}
    assert len(seen) + unseen.shape[1] == 183 + 174  # threes and eights that there are
    ends = {
        share: sum(own[-1]["end_error"] for own in experiments.follow(each))
        for share in (0.0, 0.5)
        if (each := [replace(FLOW, flipped=share, seed=seed) for seed in range(8)])
    }
    assert ends[0.0] < ends[0.5]


def test_full_batch_descent_nears_rest_and_sgd_does_not() -> None:
    trial = Network(Images(), (3, 8), 16, 12, ALL, 2e-2, 2_000, 4)
    (full,) = experiments.train_networks([trial])
    (noisy,) = experiments.train_networks([replace(trial, batch_size=2)])
    assert noisy[-1]["unrest"] > 3 * full[-1]["unrest"]
    assert full[-1]["norm_spread"] < 0.02 < noisy[-1]["norm_spread"]
    assert full[-1]["rank"] < full[0]["rank"] / 2


def test_a_bound_is_read_of_the_network_that_was_trained() -> None:
    trial = Bound(Images(), 2, (4, 4), 20, 0.0, 1.0, 0.0, seed=3)
    ((plain,),) = experiments.train_bounds([trial])
    ((larger,),) = experiments.train_bounds([replace(trial, scale=2.0)])
    # Three layers without biases: rho goes as the third power of the scale.
    assert larger["log_untrained"] - plain["log_untrained"] == pytest.approx(3 * math.log(2))
    assert plain["log_kernel"] != pytest.approx(plain["log_untrained"], rel=1e-3)
    assert plain["log_kernel"] < plain["log_toeplitz"]
    assert 0 < plain["error"] < 1


@pytest.mark.usefixtures("global_rng_untouched")
def test_global_random_state_is_left_alone() -> None:
    experiments.follow([replace(FLOW, time=5.0)])
    experiments.train_networks([Network(Images(), (3, 8), 4, 4, 2, 1e-3, 20, 1)])
    experiments.train_collapse([Collapse(Images(), 2, 4, 1e-3, 20, 1)])
    experiments.train_bounds([Bound(Images(), 2, (4,), 2, 0.5, 1.0, 1e-3, 1)])


def test_more_images_than_there_are_says_how_many_there_are() -> None:
    with pytest.raises(ValueError, match="183 samples of class 3, got 500"):
        experiments.follow([replace(FLOW, samples=1000)])


# ---- the verdict


def test_a_spread_that_falls_only_because_the_fit_begins_is_not_read() -> None:
    check = named(judged(fitted_early=0.6), "spread of the margins, end over early")
    assert math.isnan(check.value)
    assert not check.passed
    assert not check.refuted


def test_nets_that_have_not_fitted_are_no_evidence() -> None:
    verdict = judged(accuracy=0.5, networks_fitted=0.5, bounds_fitted=0.5)
    readings = ("squared layer norms", "steps of SGD late", "bound, random labels")
    for name in ("NC1", "NC2", "NC3 at", "NC4", *readings):
        check = named(verdict, name)
        assert not check.passed, check
        assert not check.refuted, check


def test_one_network_whose_norms_differ_leaves_it_open() -> None:
    records = dict(world())
    apart = pl.when(pl.col("seed") == 3).then(0.2).otherwise(pl.col("norm_spread"))
    held = pl.col("weight_decay") > 0
    records["networks"] = records["networks"].with_columns(
        norm_spread=pl.when(held).then(apart).otherwise("norm_spread")
    )
    verdict = claims.get("square-loss").judge(records, KNOBS)
    assert verdict.outcome == "inconclusive"
    assert not named(verdict, "squared layer norms").passed


def test_runs_that_failed_count_as_lost() -> None:
    records = world()
    assert claims.get("square-loss").judge(records, KNOBS).outcome == "supported"
    flows = records["flows"].filter((pl.col("seed") < 8) | (pl.col("rho_decay") == 0))
    some = dict(records) | {"flows": flows}
    assert claims.get("square-loss").judge(some, KNOBS).outcome == "inconclusive"


def test_flows_that_never_come_to_rest_promise_no_verdict() -> None:
    assert judged(late_cv=0.35).outcome == "refuted"
    assert judged(moved=0.5, late_cv=0.35).outcome == "inconclusive"


def test_a_verdict_needs_nine_in_ten_of_the_runs() -> None:
    verdict = judged(lost=1)
    assert verdict.outcome == "supported"
    assert verdict.summary.startswith("16 of 442 runs")
    assert judged(lost=4, late_cv=0.35).outcome == "inconclusive"


@pytest.mark.parametrize("missing", ["flows", "networks", "collapse", "bounds"])
def test_an_experiment_without_records_leaves_the_rest(missing: str) -> None:
    rest = world() | {missing: pl.DataFrame(schema={"trial": pl.String})}
    claim = claims.get("square-loss")
    verdict = claim.judge(rest, KNOBS)
    assert verdict.outcome == "inconclusive"
    assert any(check.passed for check in verdict.checks)
    assert {"rho", "rest"} & {drawn.name for drawn in claim.figures(rest, KNOBS)}
    claim.table(rest, KNOBS)
