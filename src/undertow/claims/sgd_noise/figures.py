"""The figures of sgd-noise: the floor, and the parts of a displacement."""

from __future__ import annotations

from typing import Any

import polars as pl

from undertow.claims import Records
from undertow.claims.sgd_noise import SgdNoise
from undertow.claims.sgd_noise.predictions import at_rest
from undertow.lab import Charts, figure

draw = Charts(norm="norm at batch size 1", displacement="displacement in an epoch / ||W||")


@figure("At rest, no minibatch is: the floor under its gradient")
def floor(records: Records, knobs: SgdNoise) -> Any:
    """Regularised gradients of single samples where the full-batch gradient is nearly zero. The
    floor needs no data: weight_decay times what the weights have beyond rank 1.
    """
    series = {"rms": "rms batch gradient", "least": "least batch gradient", "floor": "floor"}
    rows = (
        records["rest"]
        .filter(*at_rest(knobs), pl.col("floor") > 0, batch_size=1)
        .group_by(pl.format("matrix {}", "layer").alias("matrix"), "weight_decay")
        .agg(pl.col(*series).mean().name.map(series.__getitem__))
        .sort("matrix", "weight_decay")
        .unpivot(index=["matrix", "weight_decay"], variable_name="what", value_name="norm")
    )
    if rows.is_empty():
        return None
    return draw.lines(rows, "weight_decay", "norm", "what", log="xy", columns="matrix")


@figure("A plateau of displacement is shrinkage first, noise much later")
def displacement(records: Records, knobs: SgdNoise) -> Any:
    """Just after fitting, an epoch moves the weights by lr x weight_decay x steps, straight toward
    zero, under SGD and full-batch descent alike. Only once decay and gradient balance does SGD move
    more than descent, and then sideways: the part that depends on the order of the data is the
    noise. Descent from where SGD got to moves sideways too.
    """
    names = {"shrinkage": "predicted shrinkage", "noise": "of the order"}
    parts = ["shrinkage", "radial", "tangential", "noise"]
    early, late = pl.lit("after fitting"), pl.lit(f"{knobs.late_epochs} epochs later")
    rows = (
        records["displacement"]
        .filter(~pl.col("diverged"), pl.col("weight_decay") > 0)
        .with_columns(
            pl.col("radial").abs(), when=pl.when(pl.col("epoch") == 0).then(early).otherwise(late)
        )
        .group_by("method", "when")
        .agg(pl.col(parts).mean())
        .sort("when", "method", descending=[True, True])
        .rename(names)
        .unpivot(index=["method", "when"], variable_name="part", value_name="displacement")
        .drop_nulls("displacement")
    )
    if rows.is_empty():
        return None
    return draw.bars(rows, "method", "displacement", "part", columns="when")


FIGURES = (floor, displacement)


def table(records: Records, knobs: SgdNoise) -> pl.DataFrame:
    """Floor, least and typical noise of each matrix, by weight decay and batch size."""
    cell = ["batch_size", "layer", "weight_decay"]
    above = pl.col("least") / pl.when(pl.col("floor") > 0).then("floor")
    return (
        records["rest"]
        .filter(*at_rest(knobs))
        .group_by(cell)
        .agg(
            pl.col("floor").mean(),
            pl.col("least").mean().alias("measured minimum"),
            above.mean().alias("minimum over floor"),
            pl.col("rms").mean(),
            pl.col("residual").mean().alias("full batch"),
            pl.col("train_accuracy").min().alias("least train accuracy"),
        )
        .sort(cell)
    )
