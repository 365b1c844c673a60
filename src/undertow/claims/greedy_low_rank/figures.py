"""The figures of greedy-low-rank: trajectories, products, counterexamples and completions."""

from __future__ import annotations

from typing import Any

import polars as pl

from undertow import lab
from undertow.claims import Records
from undertow.claims.greedy_low_rank import RATIO, GreedyLowRank
from undertow.claims.greedy_low_rank.completions import METHODS
from undertow.claims.greedy_low_rank.experiments import FITTED
from undertow.claims.greedy_low_rank.predictions import LOG_SCALE
from undertow.lab import Charts, beside, figure
from undertow.predict import completion_counterexample

draw = Charts(
    scale="scale of the start",
    distance="distance from greedy learning",
    predicted="predicted exponent",
    measured="measured exponent",
    ratio="second over first eigenvalue",
    slope="exponent of the second singular value",
    time="time until half of the first is learned",
    trace_3x3="trace, 3 x 3",
    trace_4x4="trace, 4 x 4",
)
# What the table shows of completions.
SHOWN = {
    "effective_rank": "effective rank",
    "error": "hold-out error",
    "best_error": "hold-out error, best stop",
}


@figure("From a smaller start, the flow keeps closer to greedy learning")
def trajectory(records: Records, knobs: GreedyLowRank) -> Any:
    """Left: largest distance while a phase is learned, at the best shift in time, geometric mean
    over seeds. Right: its exponent in the scale, one point a seed; phase 1 falls with half the
    relative gap of the eigenvalues; for phase 2 the prediction is a lower bound.
    """
    distance = pl.col("distance").log()
    simple = records["trajectories"].with_columns(what=pl.format("phase {}", "phase"))
    lost = records["no_gap"].filter(phase=1).with_columns(what=pl.lit("no gap (phase 1)"))
    distances = pl.concat(
        frame.group_by("what", "scale").agg(distance.mean().exp()).sort("what", "scale")
        for frame in (simple, lost)
    )
    left = draw.lines(distances, "scale", "distance", "what", log="xy")
    run = ("what", "seed", "predicted")
    known = lab.slopes(simple.drop_nulls("predicted"), LOG_SCALE, distance, by=run, smallest=FITTED)
    points = known.filter(points=FITTED).rename({"slope": "measured"})
    right = draw.diagonal(points, "predicted", "measured", "what")
    return beside(left, right, shared="color")


@figure("Three factors or more need no gap, and pay with time")
def product(records: Records, knobs: GreedyLowRank) -> Any:
    """Left: what the second direction has when the first is half learned falls as a power of the
    scale; lines are the theory (1 - lambda_2 / lambda_1 at depth 2, otherwise 1), points the seeds.
    Right: the time that it takes, logarithmic at depth 2.
    """
    runs = records["products"].with_columns(name=pl.format("depth {}", "depth"))
    by, second = ("name", "depth", "ratio", "seed"), pl.col("second").log()
    fits = lab.slopes(runs, LOG_SCALE, second, by=by, smallest=FITTED).filter(points=FITTED)
    theory = pl.when(depth=2).then(1 - pl.col("ratio")).otherwise(1.0)
    slopes = fits.with_columns(theory=theory)
    times = lab.means(runs.filter(ratio=RATIO), ["name", "scale"], ["time"])
    return beside(
        draw.measured_against_predicted(slopes, "ratio", "slope", "theory", "name"),
        draw.lines(times, "scale", "time", "name", log="xy"),
        shared="color",
    )


@figure("Less nuclear norm was to be had, and is not taken")
def counterexample(records: Records, knobs: GreedyLowRank) -> Any:
    """Trace of what gradient flow ends at, one point a seed, between that of the rank-one
    completion (upper line) and the least there is (lower line). The 4x4 problem has a small
    relative gap (0.28): from 1e-4 it still looks like least nuclear norm.
    """
    panels = []
    for dim, strength in ((3, knobs.strength), (4, knobs.wide_strength)):
        known, problem = completion_counterexample(dim, strength), f"{dim}x{dim}"
        column = f"trace_{problem}"
        runs = records["counterexamples"].filter(problem=problem, strength=strength)
        panel = draw.points(runs.rename({"trace": column}), "scale", column, log="x")
        for bound in (known.rank_one, known.least):
            panel += draw.level(bound, across=column)
        panels.append(panel)
    return beside(*panels)


@figure("Lower rank with depth, and lower error only where the matrix is of low rank")
def completion(records: Records, knobs: GreedyLowRank) -> Any:
    """Completions where each method interpolates what it saw. From one scale the effective rank
    falls with depth on every matrix; the error does so on the matrix of rank two alone.
    """
    means = table(records, knobs)
    bars = [draw.bars(means, "matrix", value, "method") for value in SHOWN.values()]
    return beside(*bars, shared="color")


FIGURES = (trajectory, product, counterexample, completion)


def table(records: Records, knobs: GreedyLowRank) -> pl.DataFrame:
    """Completions: where each method interpolates, and at its best stop or penalty."""
    means = lab.means(records["completions"], ["matrix", "method"], SHOWN)
    order = pl.col("method").replace_strict(METHODS, range(len(METHODS)))
    return means.drop("runs").sort("matrix", order)
