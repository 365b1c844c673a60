"""The claim greedy-low-rank: its world, and the laws of its flows."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import polars as pl
import pytest
import torch
from contract import Contract

from undertow import claims, lab, predict
from undertow.claims import Records
from undertow.claims.greedy_low_rank import GreedyLowRank, completions, experiments
from undertow.claims.greedy_low_rank.completions import METHODS, Completion
from undertow.claims.greedy_low_rank.experiments import (
    SCALES,
    Counterexample,
    Descent,
    Product,
    Stepped,
    Trajectory,
)
from undertow.claims.greedy_low_rank.predictions import ALIKE, APART

TINY = GreedyLowRank(
    scales=(1e-1, 1e-2, 1e-3),
    deep_scales=(1e-1, 1e-2, 1e-3),
    step_sizes=(0.9,),
    descent_scales=(1e-1, 1e-2, 1e-3),
    wide_scales=(1e-2, 1e-4, 1e-5),
    matrices=("low-rank",),
    rows=10,
    columns=8,
    seeds=2,
    rank_two=2,
    exact=2,
)
KNOBS = GreedyLowRank(
    scales=(1e-4, 1e-8, 1e-12),
    deep_scales=(1e-2, 1e-6, 1e-10),
    wide_scales=(1e-2, 1e-4, 1e-32),
    seeds=8,
    rank_two=8,
    exact=8,
)
GAP = 1 - math.log1p(0.63) / math.log1p(0.9)  # of steps of 0.9 at depth 2


def world(
    seeds: int = 8,
    *,
    first: float = 1.0,
    second: float = 1.2,
    escape: float = 1.0,
    no_gap: float = 0.9,
    shallow: float = 0.3,
    ungapped: float = 0.0,
    deep: float = 1.0,
    blow_up: float = 1.0,
    stepped_gap: float = GAP,
    stepped_deep: float = 1.0,
    stepped_blow_up: float = 1.0,
    stepped_trace: float = 18.0,
    stepped_loss: float = 1e-16,
    trace: float = 18.0,
    weak_trace: float = 4.25,
    ordinary_trace: float = 13.0,
    wide_trace: float = 20.0,
    collapse: float = 1.2,
    large_start: float = 0.05,
    loss: float = 1e-16,
    rank: float = 0.8,
    error: float = 2.0,
    best: float = 1.05,
    low_rank_error: float = 0.5,
    missed: float = 0.01,
) -> Records:
    """Records of a world in which every prediction holds, but for what is given otherwise."""
    found: dict[str, list[dict[str, Any]]] = {
        name: []
        for name in (
            "trajectories",
            "no_gap",
            "products",
            "descents",
            "stepped",
            "counterexamples",
            "completions",
        )
    }
    for seed in range(seeds):
        jitter, predicted = 1 + 0.001 * seed, 0.2 + 0.005 * seed
        for scale in KNOBS.scales:
            shared = {"seed": seed, "scale": scale, "rate": 8.0}
            shared["time"] = escape * math.log(1 / scale) / 8
            found["trajectories"] += [
                shared
                | {"phase": phase, "predicted": predicted, "distance": scale ** (power * predicted)}
                for phase, power in ((1, first), (2, second))
            ]
            found["no_gap"].append(shared | {"phase": 1, "distance": no_gap * jitter})
        powers = {(2, 0.7): shallow, (2, 1.0): ungapped}
        found["products"] += [
            {
                "seed": seed,
                "depth": depth,
                "ratio": ratio,
                "scale": scale,
                "second": scale ** powers.get((depth, ratio), deep) * jitter,
                "time": scale ** (blow_up * (2 / depth - 1)) * jitter,
            }
            for depth in (2, 3, 4)
            for ratio in KNOBS.ratios
            for scale in KNOBS.deep_scales
        ]
        found["descents"] += [
            {
                "seed": seed,
                "depth": depth,
                "step": 0.9,
                "scale": scale,
                "second": scale ** (stepped_gap if depth == 2 else stepped_deep) * jitter,
                "time": scale ** (stepped_blow_up * (2 / depth - 1)) * jitter,
            }
            for depth in (2, 3, 4)
            for scale in KNOBS.descent_scales
        ]
        found["stepped"] += [
            {
                "seed": seed,
                "step": step,
                "trace": stepped_trace * jitter,
                "second_over_first": 1e-9,
                "loss": stepped_loss,
            }
            for step in KNOBS.step_sizes
        ]
        found["counterexamples"] += [
            {
                "seed": seed,
                "problem": problem,
                "strength": strength,
                "scale": scale,
                "trace": own * jitter,
                "second_over_first": (large_start if scale == 0.1 else scale**collapse) * jitter,
                "loss": loss,
                "first_gap": 1.2,
            }
            for problem, strength, scale, own in [
                *(("3x3", 4.0, scale, trace) for scale in SCALES),
                ("3x3", 1.5, SCALES[-1], weak_trace),
                ("4x4", 3.0, 1e-4, ordinary_trace),
                ("4x4", 3.0, 1e-32, wide_trace),
            ]
        ]
        found["completions"] += [
            {
                "seed": seed,
                "matrix": matrix,
                "method": method,
                "missed": 0.01 if method == METHODS[0] else missed,
                "effective_rank": (10 if method == METHODS[0] else 10 * rank) * jitter,
                "error": 1.0 if method == METHODS[0] else own * jitter,
                "best_error": (1.0 if method == METHODS[0] else best) * jitter,
            }
            for matrix, own in (("low-rank", low_rank_error), ("digits", error), ("tumours", error))
            for method in METHODS
        ]
    return {name: pl.DataFrame(rows) for name, rows in found.items()}


CONTRACT = Contract(
    claim="greedy-low-rank",
    tiny=TINY,
    world=world,
    knobs=KNOBS,
    refuted=[
        ({"first": -0.1}, "phase 1: exponent of the distance"),
        ({"second": -0.1}, "phase 2: exponent of the distance"),
        ({"first": 0.01, "second": 0.01}, "distance of every phase falls"),
        ({"escape": -0.1}, "escape time over ln(1/scale)"),
        ({"shallow": -0.1}, "depth 2: exponent of the second"),
        ({"deep": 0.2}, "depth 3: exponent of the second"),
        ({"deep": 0.2}, "depth 4: exponent of the second"),
        ({"deep": -0.1}, "depth 3: exponent without a gap"),
        ({"blow_up": -0.1}, "depth 3: exponent of the escape time"),
        ({"blow_up": -0.1}, "depth 4: exponent of the escape time"),
        ({"stepped_deep": 0.1}, "descent, depth 3: exponent of the second"),
        ({"stepped_deep": 0.1}, "descent, depth 4: exponent of the second"),
        ({"stepped_trace": 13.0}, "descent, 3x3: least trace"),
        ({"stepped_loss": 1e-3}, "descent, 3x3: rank one, loss zero"),
        ({"trace": 13.5}, "3x3 from 1e-08: trace over the least"),
        ({"loss": 1e-3}, "3x3 from 1e-08: rank one, loss zero"),
        ({"collapse": -0.1}, "3x3: exponent of sigma_2 / sigma_1"),
        ({"wide_trace": 11.0}, "4x4 from 1e-32: trace over that of rank one"),
        ({"low_rank_error": 1.5}, "rank two: error of depth 4"),
        ({"rank": 1.2}, "digits: effective rank of depth 3"),
        ({"rank": 1.2}, "tumours: effective rank of depth 3"),
    ],
    left_open=[
        ({"no_gap": 1e-3}, "distance at the smallest start, equal eigenvalues"),
        ({"ungapped": 1.0}, "depth 2: exponent without a gap"),
        ({"stepped_gap": 0.3}, "descent, depth 2: that exponent over the flow's"),
        ({"ordinary_trace": 19.0}, "4x4 from 1e-4: trace over the least"),
        ({"weak_trace": 6.0}, "3x3, R = 1.5"),
        ({"large_start": 1e-4}, "3x3 from 0.1: sigma_2 / sigma_1"),
        ({"error": 0.5}, "digits: error of depth 4"),
        ({"error": 0.5}, "tumours: error of depth 4"),
        ({"best": 0.5}, "digits: the same, stopped"),
        ({"best": 0.5}, "tumours: the same, stopped"),
    ],
    bad_knobs=[
        ({"scales": (1e-4, 1e-8)}, "scales must be at least 3 values"),
        ({"scales": (0.5, 1e-4, 1e-8)}, "scales must be at most 0.1"),
        ({"deep_scales": (1e-6, 1e-4, 1e-2)}, "deep_scales must be falling"),
        ({"ratios": (0.5, 1.0)}, "ratios must be values with 0.7 and 1 among them"),
        ({"ratios": (0.7,)}, "ratios must be values with 0.7 and 1 among them"),
        ({"step_sizes": (1.5,)}, "step_sizes must be between 0 and 1"),
        ({"ratios": (0.7, 1.5)}, "ratios must be at most 1"),
        ({"strength": 1.0}, "strength must be at least 3.6"),
        # Below these bounds a control could not fail, or rank one would be no refutation.
        ({"strength": 3.0}, "strength must be at least 3.6"),
        ({"weak_strength": 0.0}, "weak_strength must be above 0"),
        (
            {"wide_strength": 2.0},
            "wide_strength must be at least 2.3",
        ),  # its control could not fail
        ({"wide_scales": (1e-2, 1e-8, 1e-32)}, "wide_scales must be values with 0.0001"),
        (
            {"matrices": ("photograph",)},
            "matrices must be one of low-rank, digits, tumours, garments",
        ),
        ({"seeds": 1}, "seeds must be at least 2"),
    ],
)


def judged(knobs: GreedyLowRank = KNOBS, **broken: Any) -> lab.Verdict:
    return claims.get("greedy-low-rank").judge(world(**broken), knobs)


def named(verdict: lab.Verdict, start: str) -> lab.Check:
    (check,) = [check for check in verdict.checks if check.name.startswith(start)]
    return check


def power(rows: list[dict[str, Any]], column: str) -> float:
    first, last = rows[0], rows[-1]
    return math.log(last[column] / first[column]) / math.log(last["scale"] / first["scale"])


# ---- the verdict


def test_a_flow_that_does_not_interpolate_has_no_rank_to_compare() -> None:
    verdict = judged(missed=0.5)
    assert math.isnan(named(verdict, "digits: effective rank").value)
    assert verdict.outcome == "inconclusive"


@pytest.mark.parametrize(
    "changed", [{"wide_scales": (1e-2, 1e-4, 1e-8)}, {"deep_scales": (1e-2, 1e-3, 1e-4)}]
)
def test_starts_that_are_not_small_refute_nothing(changed: dict[str, Any]) -> None:
    knobs = replace(KNOBS, **changed)
    verdict = judged(knobs, trace=13.5)
    assert named(verdict, "3x3 from 1e-08: trace").refuted
    assert verdict.outcome == "inconclusive"
    assert "not small enough" in verdict.summary
    assert judged(trace=13.5).outcome == "refuted"


def test_a_matrix_that_was_not_completed_is_unknown_and_not_passed_over() -> None:
    records = world()
    low_rank = records["completions"].filter(matrix="low-rank")
    knobs = replace(KNOBS, matrices=("low-rank",))
    verdict = claims.get("greedy-low-rank").judge({**records, "completions": low_rank}, knobs)
    assert math.isnan(named(verdict, "digits: effective rank").value)
    assert verdict.outcome == "inconclusive"


def test_the_exponent_of_finite_steps_is_no_miss_of_the_paper() -> None:
    check = named(judged(stepped_gap=0.2), "descent, depth 2: exponent of the second over")
    assert not check.passed
    assert not check.refuted


def test_the_least_strengths_leave_rank_one_and_the_least_trace_apart() -> None:
    for dim, least, apart in ((3, 3.6, APART), (4, 2.3, ALIKE)):
        known = predict.completion_counterexample(dim, least)
        assert known.rank_one > apart * known.least


# ---- the flows


def test_the_first_phase_is_approached_with_half_the_relative_gap() -> None:
    rows = experiments.follow(Trajectory((4.0, 2.0, 1.0), True, (1e-8, 1e-12), 7))
    first = [row for row in rows if row["phase"] == 1]
    assert power(first, "distance") == pytest.approx(first[0]["predicted"], rel=0.1)
    waited = first[1]["time"] - first[0]["time"]
    assert waited * first[0]["rate"] == pytest.approx(math.log(1e4), rel=1e-3)


def test_without_a_gap_no_start_is_small_enough() -> None:
    rows = experiments.follow(Trajectory((4.0, 4.0, 1.0), False, (1e-8, 1e-12), 7))
    first = [row["distance"] for row in rows if row["phase"] == 1]
    assert first[1] == pytest.approx(first[0], rel=1e-3)
    assert first[0] > 0.2


@pytest.mark.parametrize(("depth", "second", "time"), [(2, 0.3, None), (3, 1.0, -1 / 3)])
def test_what_the_second_direction_has_goes_by_the_depth(
    depth: int, second: float, time: float | None
) -> None:
    rows = experiments.multiply(Product(depth, 0.7, (1e-8, 1e-10), 7))
    assert power(rows, "second") == pytest.approx(second, abs=0.01)
    if time is not None:
        assert power(rows, "time") == pytest.approx(time, abs=0.01)
    else:
        assert rows[1]["time"] - rows[0]["time"] == pytest.approx(math.log(100) / 2, rel=1e-2)


def test_steps_at_depth_two_have_the_gap_of_what_they_multiply_by() -> None:
    trials = [Descent(2, step, (1e-12, 1e-16, 1e-20), 7) for step in (0.01, 0.9)]
    flow, stepped = (experiments.descend((trial,))[0] for trial in trials)
    assert power(flow, "second") == pytest.approx(0.3, abs=0.01)
    assert power(stepped, "second") == pytest.approx(GAP, abs=0.005)
    assert flow[0]["time"] == pytest.approx(math.log(1e12) / 2, rel=0.1)


def test_steps_at_depth_three_escape_as_the_flow_does() -> None:
    (rows,) = experiments.descend((Descent(3, 0.9, (1e-4, 1e-6), 7),))
    flow = experiments.multiply(Product(3, 0.7, (1e-4, 1e-6), 7))
    for stepped, followed in zip(rows, flow, strict=True):
        assert stepped["time"] == pytest.approx(followed["time"], rel=0.1)
        assert stepped["second"] == pytest.approx(followed["second"], rel=0.2)


@pytest.mark.parametrize("step", [0.1, 0.95])
def test_descent_ends_where_the_flow_does(step: float) -> None:
    (((row,),)) = experiments.step_down((Stepped(4.0, step, 1e-8, 7),))
    assert row["trace"] == pytest.approx(18, rel=1e-5)
    assert row["loss"] < 1e-10


def test_the_counterexample_ends_at_rank_one_and_more_nuclear_norm() -> None:
    (row,) = experiments.end(Counterexample("3x3", 4.0, (1e-8,), 7))
    assert row["trace"] == pytest.approx(18, rel=1e-5)
    assert row["greedy_trace"] == pytest.approx(18, rel=1e-6)
    assert row["least_trace"] == pytest.approx(14, rel=1e-4)
    assert row["second_over_first"] < 1e-6
    assert row["loss"] < 1e-10


def test_a_completion_holds_what_it_saw() -> None:
    rows = completions.complete(Completion("low-rank", 40, 30, 7))
    assert [row["method"] for row in rows] == list(METHODS)
    assert all(row["missed"] <= 1e-2 * (1 + 1e-6) for row in rows)


@pytest.mark.parametrize("name", ["low-rank", "digits", "tumours"])
def test_matrices_have_spectral_norm_one(name: str) -> None:
    generator = torch.Generator().manual_seed(0)
    matrix = completions.matrix_of(Completion(name, 20, 15, 0), generator)
    assert matrix.shape == (20, 15)
    assert float(torch.linalg.matrix_norm(matrix, 2)) == pytest.approx(1)
    if name == "low-rank":
        assert int(torch.linalg.matrix_rank(matrix)) == 2
    else:
        assert float(matrix.mean()) == pytest.approx(0, abs=1e-12)
