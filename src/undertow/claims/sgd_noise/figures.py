"""The figures of sgd-noise: the floor, and the parts of a displacement."""

from __future__ import annotations

from typing import Any

import polars as pl

from undertow.claims import Records
from undertow.claims.sgd_noise import SgdNoise
from undertow.claims.sgd_noise.predictions import at_rest
from undertow.lab import Charts, figure, kept, labels, means

draw = Charts(norm="norm at batch size 1", displacement="displacement in an epoch / ||W||")


@figure("At rest, no minibatch is: the floor under its gradient", "rest")
def floor(records: Records, knobs: SgdNoise) -> Any:
    """Regularised gradients of single samples where the full-batch gradient is nearly zero. The
    floor needs no data: weight_decay times what the weights have beyond rank 1.
    """
    series = {"rms": "rms batch gradient", "least": "least batch gradient", "floor": "floor"}
    single = records["rest"].filter(*at_rest(knobs), pl.col("floor") > 0, batch_size=1)
    rows = (
        means(single, ["layer", "weight_decay"], series)
        .with_columns(matrix=labels("matrix {}", "layer"))
        .unpivot(list(series.values()), index=["matrix", "weight_decay"], value_name="norm")
    )
    return draw.lines(rows, "weight_decay", "norm", "variable", log="xy", columns="matrix")


@figure("A plateau of displacement is shrinkage first, noise much later", "displacement")
def displacement(records: Records, knobs: SgdNoise) -> Any:
    """Just after fitting, an epoch moves the weights by lr x weight_decay x steps, straight toward
    zero, under SGD and full-batch descent alike. Only once decay and gradient balance does SGD move
    more than descent, and then sideways: the part that depends on the order of the data is the
    noise. Descent from where SGD got to moves sideways too.
    """
    parts = {"shrinkage": "predicted shrinkage", "radial": "radial", "tangential": "tangential"}
    parts |= {"noise": "of the order"}
    late = {0: "after fitting", knobs.late_epochs: f"{knobs.late_epochs} epochs later"}
    moved = kept(records["displacement"]).filter(pl.col("weight_decay") > 0)
    rows = (
        means(moved.with_columns(pl.col("radial").abs()), ["epoch", "method"], parts)
        .sort("epoch", "method", descending=[False, True])
        .with_columns(when=pl.col("epoch").replace_strict(late))
        .unpivot(list(parts.values()), index=["method", "when"], value_name="displacement")
        .drop_nulls("displacement")
    )
    return draw.bars(rows, "method", "displacement", "variable", columns="when")


FIGURES = (floor, displacement)


def table(records: Records, knobs: SgdNoise) -> pl.DataFrame:
    """Floor, least and typical noise of each matrix, by weight decay and batch size."""
    above = pl.col("least") / pl.when(pl.col("floor") > 0).then("floor")
    names = {"floor": "floor", "least": "measured minimum", "above": "minimum over floor"}
    names |= {"rms": "rms", "residual": "full batch", "train_accuracy": "train accuracy"}
    rows = records["rest"].filter(*at_rest(knobs)).with_columns(above=above)
    return means(rows, ["batch_size", "layer", "weight_decay"], names)
