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
from undertow.lab import Prediction, Reading, at_most, near, no_less, of, per_seed, within

LOG_SCALE = pl.col("scale").log()
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
    root = math.sqrt(1 + 4 * knobs.wide_strength**2)
    gap = 2 / (1 + root)  # of the eigenvalues (root + 1) / 2 and (root - 1) / 2
    smallest = max(knobs.scales[-1], knobs.deep_scales[-1])
    return smallest <= _SMALL_ENOUGH and knobs.wide_scales[-1] ** gap <= _WIDE_ENOUGH


def trajectories(knobs: GreedyLowRank) -> dict[str, Prediction]:
    """That flows keep to greedy learning, the closer the smaller the start."""
    first, second = (
        exponent("trajectories", "distance", phase=phase)
        / of("trajectories", "predicted", phase=phase, how="first")
        for phase in (1, 2)
    )
    escape = -slope("trajectories", pl.col("rate") * pl.col("time"), phase=1)
    lost = of("no_gap", "distance", phase=1, scale=knobs.scales[-1])
    return {
        "phase 1: exponent of the distance over predicted": within(
            0.85, 1.15, first, "half the relative gap, from the three smallest starts", against=KEPT
        ),
        "phase 2: exponent of the distance over its least": no_less(
            0.9, second, "a sum of powers has no slope below the least", against=0
        ),
        "distance of every phase falls": lab.every_seed(
            halved, "below half from the largest start to the smallest"
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

    def power(depth: int, column: str = "second", ratio: float = RATIO) -> Reading:
        return exponent("products", column, depth=depth, ratio=ratio)

    shallow = f"where lambda_2 / lambda_1 = {RATIO}"
    found = {
        "depth 2: exponent of the second singular value": near(
            1 - RATIO, 0.02, power(2), shallow, against=1 - RATIO
        )
    }
    for depth in DEPTHS[1:]:
        found |= {
            f"depth {depth}: exponent of the second singular value": no_less(
                0.9, power(depth), "1 in theory, where depth 2 has 0.3", against=1 - RATIO
            ),
            f"depth {depth}: exponent of the escape time": near(
                *(2 / depth - 1, 0.02, power(depth, "time"), f"-(1 - 2/{depth})"),
                against=1 - 2 / depth,
            ),
        }
    two, three = power(2, ratio=1.0), power(3, ratio=1.0)
    return found | {
        "depth 3: exponent without a gap": no_less(
            0.9, three, "it does not depend on the gap", against=0
        ),
        "depth 2: exponent without a gap": near(
            0, 0.02, two, "both are learned at once", control=True
        ),
    }


def descents(knobs: GreedyLowRank) -> dict[str, Prediction]:
    """That finite steps, nearly up to the largest stable one, do the same with less of a gap."""
    step = max(knobs.step_sizes)
    gap = 1 - math.log1p(RATIO * step) / math.log1p(step)  # lr is the step at depth 2

    def power(depth: int, column: str = "second") -> Reading:
        return exponent("descents", column, depth=depth, step=step)

    rank_one, least = traces("3x3", knobs.strength)
    low, high = (of("stepped", pl.col("trace") / rank_one, how=how) for how in ("min", "max"))
    simple = (pl.col("second_over_first") < 1e-4) & (pl.col("loss") < 1e-10)
    found = {
        "descent, depth 2: exponent of the second over predicted": near(
            1, 0.05, power(2) / gap, f"{gap:.4g}, of steps that multiply", against=math.inf
        ),
        "descent, depth 2: that exponent over the flow's": at_most(
            0.9, power(2) / (1 - RATIO), "steps of that size are no flow", control=True
        ),
    }
    for depth in DEPTHS[1:]:
        found[f"descent, depth {depth}: exponent of the second"] = no_less(
            0.9, power(depth), "1 in theory, since escape begins slowly", against=gap
        )
        found[f"descent, depth {depth}: exponent of the escape time"] = near(
            2 / depth - 1, 0.02, power(depth, "time"), "that of the flow", against=math.inf
        )
    return found | {
        "descent, 3x3: least trace over the least there is, at any step": no_less(
            APART, low * (rank_one / least), "as the flow", against=1
        ),
        "descent, 3x3: largest trace over that of rank one": near(1, 0.01, high, against=math.inf),
        "descent, 3x3: rank one, loss zero": lab.every_seed(
            lab.share("stepped", simple), "at any step"
        ),
    }


def counterexamples(knobs: GreedyLowRank) -> dict[str, Prediction]:
    """That the flow ends at rank one, though less nuclear norm was to be had.

    Controls are an ordinary start, a problem where the two agree, and a large start.
    """
    strong: dict[str, Any] = {"problem": "3x3", "strength": knobs.strength}
    weak = strong | {"strength": knobs.weak_strength}
    (rank_one, least), (widest, wide_least) = traces(**strong), traces("4x4", knobs.wide_strength)
    small, smallest = SCALES[-1], knobs.wide_scales[-1]
    simple = (pl.col("second_over_first") < 1e-4) & (pl.col("loss") < 1e-10)
    gap = of("counterexamples", "first_gap", how="first", **strong)
    power = exponent("counterexamples", "second_over_first", **strong) / gap
    alike = f"an ordinary small start looks like the least (rank one has {widest / wide_least:.2f})"
    return {
        f"3x3 from {small:g}: trace over the least": no_less(
            APART,
            trace(scale=small, **strong) / least,
            f"rank one has {rank_one / least:.3f}",
            against=1,
        ),
        f"3x3 from {small:g}: rank one, loss zero": lab.every_seed(
            lab.share("counterexamples", simple, scale=small, **strong),
            "sigma_2 < 1e-4 sigma_1 and loss < 1e-10",
        ),
        "3x3: exponent of sigma_2 / sigma_1 over predicted": within(
            0.95, 1.05, power, "1 - lambda_2 / lambda_1", against=KEPT
        ),
        f"4x4 from {smallest:g}: trace over that of rank one": near(
            1, 0.01, trace(problem="4x4", scale=smallest) / widest, against=1 - wide_least / widest
        ),
        "4x4 from 1e-4: trace over the least": at_most(
            ALIKE, trace(problem="4x4", scale=ORDINARY) / wide_least, alike, control=True
        ),
        f"3x3, R = {knobs.weak_strength:g}: trace over the least": near(
            1, 0.01, trace(**weak) / traces(**weak)[1], "there the two agree", control=True
        ),
        f"3x3 from {SCALES[0]:g}: sigma_2 / sigma_1": no_less(
            0.01,
            of("counterexamples", "second_over_first", scale=SCALES[0], **strong),
            "a large start ends at no rank one",
            control=True,
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


def traces(problem: str, strength: float) -> tuple[float, float]:
    """Of a counterexample's completion of rank one, and the least of its positive completions."""
    square = strength**2
    if problem == "4x4":
        return 2 * square + 2, 4 * strength
    return square + 2, 4 * strength - 2 if strength > 2 else square + 2


def slope(experiment: str, y: pl.Expr, **where: Any) -> Reading:
    """The slope of y on log scale over a seed's three smallest scales, where it has as many."""

    def read(records: Records) -> lab.PerSeed:
        fits = lab.slopes(records[experiment], LOG_SCALE, y, smallest=FITTED, **where)
        return per_seed(fits, "slope", points=FITTED)

    return Reading(read)


def exponent(experiment: str, column: str, **where: Any) -> Reading:
    """The power of the scale that a column is, likewise."""
    return slope(experiment, pl.col(column).log(), **where)


def halved(records: Records) -> lab.Effect:
    """The share of seeds that end below half of the distance, in every phase."""
    ordered = records["trajectories"].sort("scale", descending=True)
    distance = pl.col("distance")
    left = ordered.group_by("seed", "phase").agg(left=distance.last() / distance.first())
    return per_seed(left, pl.col("left") < 0.5, how="all").share()


def trace(**where: Any) -> Reading:
    """Of what the flow of a counterexample ends at."""
    return of("counterexamples", "trace", **where)


def over_convex(matrix: str, method: str, column: str) -> Reading:
    """A method's value over that of least nuclear norm, where both interpolate.

    A flow that ran out of time has not learned all ranks that it would need.
    """
    there = pl.col("missed") <= 1.01 * INTERPOLATES
    one, other = (
        of("completions", column, there, matrix=matrix, method=name) for name in (method, CONVEX)
    )
    return one / other
