"""The figures of janus: what is forgotten, what never rests, and ranks of deep networks."""

from __future__ import annotations

from typing import Any

import polars as pl

from undertow.claims import Records
from undertow.claims.janus import Janus
from undertow.claims.janus.experiments import LINEAR
from undertow.lab import Charts, beside, figure, kept, means

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


@figure("What the data cannot see is forgotten at one rate per step", "gaussian")
def null_space(records: Records, knobs: Janus) -> Any:
    """Points are measured, lines are (1 - lr weight_decay)^steps. At equal epochs SGD has forgotten
    N / B times as many e-folds; at equal steps all batch sizes and orders agree.
    """
    ends = {"epochs": knobs.epochs, "step": knobs.steps_of(1)}
    early = pl.col("steps") <= ends["step"]
    runs = kept(records["gaussian"]).filter(early, weight_decay=knobs.strongest)
    rows = means(
        runs, ["batch_size", "order", "step", "epochs"], ["null_ratio", "null_predicted"]
    ).with_columns(method=trained_by(knobs.samples))
    panels = []
    for x, most in ends.items():
        shown = rows.filter(pl.col(x) <= most)
        law = draw.lines(shown, x, "null_predicted", "method", dash=True, log="y")
        measured = draw.points(shown, x, "null_ratio", "method", shape="order", log="y")
        panels.append(law + measured)
    return beside(*panels, shared="color shape")


@figure("With weight decay SGD never comes to rest", "gaussian")
def noise(records: Records, knobs: Janus) -> Any:
    """Spread of the updates after {late_steps:,} steps, in the span of the data. Gradient descent,
    and SGD without decay, stop at rounding error; a fixed order of the data changes nothing.
    """
    late = kept(records["gaussian"]).filter("final", steps=knobs.late_steps)
    rows = means(late, ["weight_decay", "order", "batch_size"], ["fluctuation"]).with_columns(
        pl.col("weight_decay").cast(pl.String),
        pl.col("fluctuation").clip(lower_bound=1e-17),
        run=pl.format("{}, {}", trained_by(knobs.samples), "order"),
    )
    return draw.lines(rows, "weight_decay", "fluctuation", "run", log="y")


@figure("A deep network: gradient descent gets low rank as well", "deep")
def deep(records: Records, knobs: Janus) -> Any:
    """Threshold rank (1e-3) of the middle matrix on real data, at equal steps."""
    found = means(kept(records["deep"]), ["batch_size", "weight_decay"], {"deep_rank": "rank"})
    rows = found.with_columns(method=trained_by(knobs.images.train_size))
    return draw.lines(rows, "weight_decay", "rank", "method", domain=(0, knobs.width))


FIGURES = (null_space, noise, deep)


def table(records: Records, knobs: Janus) -> pl.DataFrame:
    """Regressions by batch size: what is left of the null space, and the fluctuation at the end."""
    ends = [kept(records[kind]).with_columns(inputs=pl.lit(kind)) for kind in LINEAR]
    names = {"null_ratio": "null space left", "null_predicted": "predicted"}
    names |= {"fluctuation": "fluctuation", "stable_rank": "stable rank"}
    cell = ["inputs", "steps", "batch_size", "weight_decay"]
    return means(pl.concat(ends, how="diagonal").filter("final"), cell, names)
