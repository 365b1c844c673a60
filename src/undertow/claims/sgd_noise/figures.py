"""The figures of sgd-noise: the floor at rest, and rank and noise under SGD with decay."""

from __future__ import annotations

from typing import Any

import polars as pl

from undertow.claims import Records
from undertow.claims.sgd_noise import SgdNoise
from undertow.claims.sgd_noise.predictions import DECAYED, at_rest, learned
from undertow.lab import Charts, figure, labels, means

draw = Charts(
    norm="norm at batch size 1",
    rank="rank of hidden matrices",
    noise="noise, in parts of the larger",
)


@figure("At rest, no minibatch is: the floor under its gradient", "rest")
def floor(records: Records, knobs: SgdNoise) -> Any:
    """Regularised gradients of single samples where the full-batch gradient is nearly zero. The
    floor needs no data: weight_decay times what the weights have beyond rank 1.
    """
    series = {"rms": "rms batch gradient", "least": "least batch gradient", "floor": "floor"}
    single = records["rest"].filter(*at_rest(knobs), pl.col("floor") > 0, batch_size=1, classes=10)
    rows = (
        means(single, ["layer", "weight_decay"], series)
        .with_columns(matrix=labels("matrix {}", "layer"))
        .unpivot(list(series.values()), index=["matrix", "weight_decay"], value_name="norm")
    )
    return draw.lines(rows, "weight_decay", "norm", "variable", log="xy", columns="matrix")


@figure("A small batch leaves a small rank by taking more steps", "training")
def ranks(records: Records, knobs: SgdNoise) -> Any:
    """Mean rank of the hidden matrices that SGD leaves with decay throughout: after the small
    batch, after the large one for as many epochs, and after the large one for as many steps. Epochs
    are equal where the small batch has taken more steps, and has forgotten more of its initial
    weights; with equal steps its rank is no smaller. Bars are means over seeds.
    """
    small, large = knobs.small_batch, knobs.large_batch
    when = (
        pl.when(batch_size=small)
        .then(pl.lit(f"batch {small}"))
        .when("equal_epochs")
        .then(pl.lit(f"batch {large}, equal epochs"))
        .otherwise(pl.lit(f"batch {large}, equal steps"))
    )
    rows = records["training"].filter(*learned(), pl.col("weight_decay") > 0)
    return draw.bars(
        means(rows.with_columns(when=when), ["kind", "when"], {"rank": "rank"}),
        "kind",
        "rank",
        "when",
    )


@figure("Without decay the noise is gone, but under batch norm", "training")
def noise(records: Records, knobs: SgdNoise) -> Any:
    """Root mean square of the regularised gradients of single samples (under batch norm of batches
    as in training) where SGD with the small batch has got to, in parts of that with decay; hidden
    matrices, means over seeds. Batch statistics are noise of their own, which no decay has made.
    """
    rows = records["training"].filter(*learned(), "equal_steps", batch_size=knobs.small_batch)
    decayed = pl.when(DECAYED).then(pl.lit("with decay")).otherwise(pl.lit("without decay"))
    found = means(rows.with_columns(decayed=decayed), ["kind", "decayed"], {"rms": "rms"})
    shown = found.with_columns(noise=pl.col("rms") / pl.col("rms").max().over("kind"))
    return draw.bars(shown, "kind", "noise", "decayed")


FIGURES = (floor, ranks, noise)


def table(records: Records, knobs: SgdNoise) -> pl.DataFrame:
    """Floor, least and typical noise of each matrix, by weight decay and batch size."""
    above = pl.col("least") / pl.when(pl.col("floor") > 0).then("floor")
    names = {"floor": "floor", "least": "measured minimum", "above": "minimum over floor"}
    names |= {"rms": "rms", "residual": "full batch", "train_accuracy": "train accuracy"}
    rows = records["rest"].filter(*at_rest(knobs)).with_columns(above=above)
    return means(rows, ["batch_size", "layer", "weight_decay"], names)
