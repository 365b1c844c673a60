"""What infinitesimal starts do in theory, and where the prediction must fail."""

from __future__ import annotations

import math
from typing import Any

import polars as pl

from undertow import lab
from undertow.claims import Records
from undertow.claims.greedy_low_rank import ORDINARY, RATIO, REAL, GreedyLowRank
from undertow.claims.greedy_low_rank.completions import CONVEX, INTERPOLATES, METHODS
from undertow.claims.greedy_low_rank.experiments import DEPTHS, FITTED, SCALES
from undertow.lab import Prediction, Reading, at_most, near, no_less, of, within
from undertow.predict import completion_counterexample

LOG_SCALE, DISTANCE = pl.col("scale").log(), pl.col("distance").sort_by("scale")
HALVED = (DISTANCE.first() / DISTANCE.last()).over("seed", "phase") < 0.5
GROWTH = pl.col("rate") * pl.col("time")
SIMPLE = (pl.col("second_over_first") < 1e-4) & (pl.col("loss") < 1e-10)
# Traces over the least: what rank one must exceed, and what an ordinary small start must not.
APART, ALIKE = 1.2, 1.35
KEPT = (0.0, math.inf)  # a power of the scale, whichever it is, is what the paper says
_SMALL_ENOUGH = 1e-10  # the smallest start of a study that may give a verdict
_WIDE_ENOUGH = 1e-6  # and of the 4x4 counterexample, to the power of the relative gap


def predictions(knobs: GreedyLowRank) -> dict[str, Prediction]:
    """Every check of the claim; where no note says otherwise the thresholds are the pilots'."""
    learned = trajectories(knobs) | products(knobs) | descents(knobs)
    return learned | counterexamples(knobs) | completions(knobs)


def summary(records: Records, knobs: GreedyLowRank) -> str:
    """How much was run, and whether from starts that are small enough."""
    count = sum(map(len, records.values()))
    smallest = min(*knobs.scales, *knobs.wide_scales)
    words = f"{count:,} flows and phases, from starts down to {smallest:g}."
    small = promises_verdict(records, knobs)
    return words if small else f"{words} That is not small enough for a verdict."


def promises_verdict(records: Records, knobs: GreedyLowRank) -> bool:
    """Whether the smallest starts are in the limit that the rules speak of."""
    gap = completion_counterexample(4, knobs.wide_strength).gap
    smallest = max(knobs.scales[-1], knobs.deep_scales[-1])
    return smallest <= _SMALL_ENOUGH and knobs.wide_scales[-1] ** gap <= _WIDE_ENOUGH


def trajectories(knobs: GreedyLowRank) -> dict[str, Prediction]:
    """That flows keep to greedy learning, the closer the smaller the start."""
    first, second = (
        exponent("trajectories", "distance", phase=phase)
        / of("trajectories", "predicted", phase=phase, how="first")
        for phase in (1, 2)
    )
    escape = -lab.slope_by_seed("trajectories", LOG_SCALE, GROWTH, smallest=FITTED, phase=1)
    lost = of("no_gap", "distance", phase=1, scale=knobs.scales[-1])
    return {
        "phase 1: exponent of the distance over predicted": within(
            0.85, 1.15, first, "half the relative gap, from the three smallest starts", against=KEPT
        ),
        "phase 2: exponent of the distance over its least": no_less(
            0.9, second, "a sum of powers has no slope below the least", against=0
        ),
        "distance of every phase falls": lab.every_seed(
            lab.share("trajectories", HALVED), "below half from the largest start to the smallest"
        ),
        "escape time over ln(1/scale) / (2 lambda_1)": near(
            1, 0.02, escape, "as a slope", against=1
        ),
        "distance at the smallest start, equal eigenvalues": no_less(
            0.2, lost, "without a gap there is no greedy direction to follow", control=True
        ),
    }


def products(knobs: GreedyLowRank) -> dict[str, Prediction]:
    """That three factors or more need no gap, and pay with time."""
    ungapped = {depth: exponent("products", "second", depth=depth, ratio=1.0) for depth in (2, 3)}
    found = {}
    for depth in DEPTHS:
        second, time = (
            exponent("products", column, depth=depth, ratio=RATIO) for column in ("second", "time")
        )
        name = f"depth {depth}: exponent of the second singular value"
        if depth == 2:
            shallow = f"where lambda_2 / lambda_1 = {RATIO}"
            found[name] = near(1 - RATIO, 0.02, second, shallow, against=1 - RATIO)
            continue
        found[name] = no_less(0.9, second, "1 in theory, where depth 2 has 0.3", against=1 - RATIO)
        found[f"depth {depth}: exponent of the escape time"] = near(
            *(2 / depth - 1, 0.02, time, f"-(1 - 2/{depth})"), against=1 - 2 / depth
        )
    return found | {
        "depth 3: exponent without a gap": no_less(
            0.9, ungapped[3], "it does not depend on the gap", against=0
        ),
        "depth 2: exponent without a gap": near(
            0, 0.02, ungapped[2], "both are learned at once", control=True
        ),
    }


def descents(knobs: GreedyLowRank) -> dict[str, Prediction]:
    """That finite steps, nearly up to the largest stable one, do the same with less of a gap."""
    step = max(knobs.step_sizes)
    gap = 1 - math.log1p(RATIO * step) / math.log1p(step)  # lr is the step at depth 2
    shallow = exponent("descents", "second", depth=2, step=step)
    found = {
        "descent, depth 2: exponent of the second over predicted": near(
            1, 0.05, shallow / gap, f"{gap:.4g}, of steps that multiply", against=math.inf
        ),
        "descent, depth 2: that exponent over the flow's": at_most(
            0.9, shallow / (1 - RATIO), "steps of that size are no flow", control=True
        ),
    }
    for depth in DEPTHS[1:]:
        second, time = (
            exponent("descents", column, depth=depth, step=step) for column in ("second", "time")
        )
        found[f"descent, depth {depth}: exponent of the second"] = no_less(
            0.9, second, "1 in theory, since escape begins slowly", against=gap
        )
        found[f"descent, depth {depth}: exponent of the escape time"] = near(
            2 / depth - 1, 0.02, time, "that of the flow", against=math.inf
        )
    known = completion_counterexample(3, knobs.strength)
    low, high = (of("stepped", pl.col("trace") / known.rank_one, how=how) for how in ("min", "max"))
    return found | {
        "descent, 3x3: least trace over the least there is, at any step": no_less(
            APART, low * (known.rank_one / known.least), "as the flow", against=1
        ),
        "descent, 3x3: largest trace over that of rank one": near(1, 0.01, high, against=math.inf),
        "descent, 3x3: rank one, loss zero": lab.every_seed(
            lab.share("stepped", SIMPLE), "at any step"
        ),
    }


def counterexamples(knobs: GreedyLowRank) -> dict[str, Prediction]:
    """That the flow ends at rank one, though less nuclear norm was to be had.

    Controls are an ordinary start, a problem where the two agree, and a large start.
    """
    ends, (large, *_, small), smallest = "counterexamples", SCALES, knobs.wide_scales[-1]
    strong: dict[str, Any] = {"problem": "3x3", "strength": knobs.strength}
    weak = strong | {"strength": knobs.weak_strength}
    known, agreed = (completion_counterexample(3, one["strength"]) for one in (strong, weak))
    wide = completion_counterexample(4, knobs.wide_strength)
    gap = of(ends, "first_gap", how="first", **strong)
    power = exponent(ends, "second_over_first", **strong) / gap
    over_least = of(ends, "trace", scale=small, **strong) / known.least
    over_rank_one = of(ends, "trace", problem="4x4", scale=smallest) / wide.rank_one
    ordinary = of(ends, "trace", problem="4x4", scale=ORDINARY) / wide.least
    over_agreed = of(ends, "trace", **weak) / agreed.least
    second = of(ends, "second_over_first", scale=large, **strong)
    apart = f"rank one has {known.rank_one / known.least:.3f}"
    alike = "an ordinary small start looks like the least "
    alike += f"(rank one has {wide.rank_one / wide.least:.2f})"
    return {
        f"3x3 from {small:g}: trace over the least": no_less(APART, over_least, apart, against=1),
        f"3x3 from {small:g}: rank one, loss zero": lab.every_seed(
            lab.share(ends, SIMPLE, scale=small, **strong),
            "sigma_2 < 1e-4 sigma_1 and loss < 1e-10",
        ),
        "3x3: exponent of sigma_2 / sigma_1 over predicted": within(
            0.95, 1.05, power, "1 - lambda_2 / lambda_1", against=KEPT
        ),
        f"4x4 from {smallest:g}: trace over that of rank one": near(
            1, 0.01, over_rank_one, against=1 - wide.least / wide.rank_one
        ),
        "4x4 from 1e-4: trace over the least": at_most(ALIKE, ordinary, alike, control=True),
        f"3x3, R = {knobs.weak_strength:g}: trace over the least": near(
            1, 0.01, over_agreed, "there the two agree", control=True
        ),
        f"3x3 from {large:g}: sigma_2 / sigma_1": no_less(
            0.01, second, "a large start ends at no rank one", control=True
        ),
    }


def completions(knobs: GreedyLowRank) -> dict[str, Prediction]:
    """That depth has lower rank, and lower error where the matrix is of low rank alone."""
    shallower, deepest = METHODS[-2:]
    found = {
        "rank two: error of depth 4 over nuclear norm": at_most(
            1, over_convex("low-rank", deepest, "error"), "from a quarter of the entries"
        )
    }
    named = [name for name in knobs.matrices if name != "low-rank"]
    for name in dict.fromkeys((*REAL, *named)):
        rank = over_convex(name, shallower, "effective_rank")
        error, stopped = (over_convex(name, deepest, column) for column in ("error", "best_error"))
        found |= {
            f"{name}: effective rank of depth 3 over nuclear norm": at_most(
                0.95, rank, "where both interpolate", against=1
            ),
            f"{name}: error of depth 4 over nuclear norm": no_less(
                1, error, "a matrix that is not of low rank gains nothing by it", control=True
            ),
            f"{name}: the same, stopped and penalised at their best": no_less(
                0.95, stopped, "nor where a validation set chooses", control=True
            ),
        }
    return found


# ---- readings


def exponent(experiment: str, column: str, **where: Any) -> Reading:
    """The power of the scale that a column is, over a seed's three smallest scales."""
    value = pl.col(column).log()
    return lab.slope_by_seed(experiment, LOG_SCALE, value, smallest=FITTED, **where)


def over_convex(matrix: str, method: str, column: str) -> Reading:
    """A method's value over that of least nuclear norm, where both interpolate.

    A flow that ran out of time has not learned all ranks that it would need.
    """
    there = pl.col("missed") <= 1.01 * INTERPOLATES
    one, other = (
        of("completions", column, there, matrix=matrix, method=name) for name in (method, CONVEX)
    )
    return one / other
