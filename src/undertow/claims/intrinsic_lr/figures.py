"""The figures of intrinsic-lr: functions that meet, weights that do not, and norms at rest."""

from __future__ import annotations

from typing import Any

import polars as pl

from undertow.claims import Records
from undertow.claims.intrinsic_lr import IntrinsicLr
from undertow.lab import Charts, beside, figure, means

draw = Charts(
    time="steps x lr x weight_decay",
    far="distance over chance",
    steps="steps",
    distance="total variation",
    cosine="cosine",
    fourth="||w||^4",
    predicted="the law's",
)


@figure("Functions meet after some 1 / (lr x weight_decay) steps", "functions")
def functions(records: Records, knobs: IntrinsicLr) -> Any:
    """Total variation between the laws of the output of two ensembles that started far apart, with
    other learning rates and equal products, over that of random divisions of all their members:
    chance is 1. By steps, and by steps times the product. Geometric means over seeds, batch norm.
    """
    rows = records["functions"].filter(compared="starts", kind="batch norm")
    found = (
        rows.group_by("product", "time")
        .agg(far=(pl.col("distance") / pl.col("null")).log().mean().exp())
        .with_columns(
            steps=pl.col("time") / pl.col("product"),
            rate=pl.format("lr x weight_decay {}", pl.col("product")),
        )
        .sort("product", "time")
    )
    return beside(
        draw.lines(found, "steps", "far", "rate", log="xy"),
        draw.lines(found, "time", "far", "rate", log="xy"),
        shared="color",
    )


@figure("Weights do not: those from one start stay alike, and keep moving", "weights")
def weights(records: Records, knobs: IntrinsicLr) -> Any:
    """Mean cosine between the weights of networks from one start, and between those from two, while
    their functions have the same law. Were weights mixed, the two were one. Means over seeds.
    """
    names = {"within": "from one start", "across": "from two starts"}
    rows = means(records["weights"], ["kind", "time"], names).unpivot(
        list(names.values()), index=["kind", "time"], value_name="cosine"
    )
    return draw.lines(rows, "time", "cosine", "variable", columns="kind")


@figure("At rest, norms are the law's", "rest")
def norms(records: Records, knobs: IntrinsicLr) -> Any:
    """||w||^4 of every layer at rest against lr q / (weight_decay (1 - beta) (2 - lr weight_decay /
    (1 + beta))), with q of fresh batches; a point a seed and layer, and the law (dashed). Without
    norms, and of a last layer that is trained, it is something else.
    """
    rows = records["rest"].filter(pl.col("predicted").is_not_null())
    ends = rows.select(low=pl.col("predicted").min(), high=pl.col("predicted").max()).row(0)
    law = pl.DataFrame({"predicted": ends, "fourth": ends})
    line = draw.lines(law, "predicted", "fourth", dash=True, log="xy")
    return line + draw.points(rows, "predicted", "fourth", "kind", log="xy")


FIGURES = (functions, weights, norms)


def table(records: Records, knobs: IntrinsicLr) -> pl.DataFrame:
    """Distances at the end, and what of them is chance."""
    rows = records["functions"].filter(time=float(knobs.horizon))
    columns = {"distance": "distance", "null": "chance", "p_value": "p"}
    return means(rows, ["kind", "compared", "product"], columns)
