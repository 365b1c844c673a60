"""The figures of janus: what is forgotten, what never rests, and ranks of deep networks."""

from __future__ import annotations

from typing import Any

import polars as pl

from undertow.claims import Records
from undertow.claims.janus import Janus
from undertow.claims.janus.experiments import LINEAR
from undertow.lab import Charts, beside, figure

draw = Charts(
    step="steps",
    null_ratio="null-space component left",
    null_predicted="null-space component left",
    fluctuation="fluctuation of updates / ||W||",
)


def trained_by(full: int | None) -> pl.Expr:
    """What a run was trained by, in words; `full` is the batch of gradient descent."""
    sgd = pl.format("SGD, batch {}", pl.col("batch_size"))
    return pl.when(pl.col("batch_size") == full).then(pl.lit("GD")).otherwise(sgd)


@figure("What the data cannot see is forgotten at one rate per step")
def null_space(records: Records, knobs: Janus) -> Any:
    """Points are measured, lines are (1 - lr weight_decay)^steps. At equal epochs SGD has forgotten
    N / B times as many e-folds; at equal steps all batch sizes and orders agree.
    """
    runs = records["gaussian"].filter(~pl.col("diverged"), weight_decay=knobs.strongest)
    ends = {"epochs": knobs.epochs, "step": knobs.steps_of(1)}
    rows = (
        runs.filter(pl.col("steps") <= ends["step"])
        .group_by("batch_size", "order", "step", "epochs")
        .agg(pl.col("null_ratio").mean(), pl.col("null_predicted").first())
        .sort("batch_size", "order", "step")
        .with_columns(method=trained_by(knobs.samples))
    )
    if rows.is_empty():
        return None
    panels = []
    for x, most in ends.items():
        shown = rows.filter(pl.col(x) <= most)
        law = draw.lines(shown, x, "null_predicted", "method", dash=True, log="y")
        measured = draw.points(shown, x, "null_ratio", "method", shape="order", log="y")
        panels.append(law + measured)
    return beside(*panels, shared="color shape")


@figure("With weight decay SGD never comes to rest")
def noise(records: Records, knobs: Janus) -> Any:
    """Spread of the updates after {late_steps:,} steps, in the span of the data. Gradient descent,
    and SGD without decay, stop at rounding error; a fixed order of the data changes nothing.
    """
    rows = (
        records["gaussian"]
        .filter(~pl.col("diverged"), "final", steps=knobs.late_steps)
        .group_by("batch_size", "order", "weight_decay")
        .agg(pl.col("fluctuation").mean().clip(lower_bound=1e-17))
        .sort("weight_decay", "order")
        .with_columns(
            pl.col("weight_decay").cast(pl.String),
            run=pl.format("{}, {}", trained_by(knobs.samples), "order"),
        )
    )
    if rows.is_empty():
        return None
    return draw.lines(rows, "weight_decay", "fluctuation", "run", log="y")


@figure("A deep network: gradient descent gets low rank as well")
def deep(records: Records, knobs: Janus) -> Any:
    """Threshold rank (1e-3) of the middle matrix on real data, at equal steps."""
    rows = (
        records["deep"]
        .filter(~pl.col("diverged"))
        .with_columns(method=trained_by(knobs.images.train_size))
        .group_by("method", "weight_decay")
        .agg(rank=pl.col("deep_rank").mean())
        .sort("method", "weight_decay")
    )
    if rows.is_empty():
        return None
    return draw.lines(rows, "weight_decay", "rank", "method", domain=(0, knobs.width))


FIGURES = (null_space, noise, deep)


def table(records: Records, knobs: Janus) -> pl.DataFrame:
    """Regressions by batch size: what is left of the null space, and the fluctuation at the end."""
    names = ["inputs", "steps", "batch_size", "weight_decay"]
    runs = pl.concat(
        records[kind]
        .filter(~pl.col("diverged"), "final")
        .select(*names[1:], "null_ratio", "null_predicted", "fluctuation", "stable_rank")
        .with_columns(inputs=pl.lit(kind))
        for kind in LINEAR
    )
    means = runs.group_by(names).agg(
        pl.col("null_ratio").mean().alias("null space left"),
        pl.col("null_predicted").first().alias("predicted"),
        pl.col("fluctuation").mean(),
        pl.col("stable_rank").mean().alias("stable rank"),
    )
    return means.sort(names)
