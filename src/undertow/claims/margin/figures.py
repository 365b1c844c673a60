"""The figures of margin: along descents of several steps, and far past zero loss."""

from __future__ import annotations

from typing import Any

import polars as pl

from undertow.claims import Records
from undertow.claims.margin import Margin
from undertow.claims.margin.predictions import FAMILIES
from undertow.lab import Charts, figure, labels

draw = Charts(
    smoothed="smoothed margin over rho^3",
    log_loss="-log loss",
    time="steps x drop",
    value="of the value at the end",
    what="",
)


@figure("Small steps never lower the smoothed margin, large ones do", "descents")
def steps(records: Records, knobs: Margin) -> Any:
    """The smoothed margin of one network along descents from one start, by what a step would lower
    log loss by. Along the flow it cannot fall.
    """
    rows = records["descents"].filter(kind="plain", **FAMILIES["cross-entropy"])
    one = rows.filter(pl.col("seed") == pl.col("seed").min()).with_columns(
        time=pl.col("step") * pl.col("drop"), steps=labels("drop {:g}", "drop")
    )
    return draw.lines(one.sort("drop", "step"), "time", "smoothed", "steps")


@figure("Far past zero loss the margin settles; its growth foretells it", "far")
def far(records: Records, knobs: Margin) -> Any:
    """Margins over rho^3 by the loss, as shares of the least margin at the end; medians over seeds.
    The growth of the norm gives the margin without what the start hides of it.
    """
    names = {
        "growth": "foretold from the growth of the norm",
        "normalized": "least margin",
        "smoothed": "smoothed margin",
    }
    end = pl.col("normalized").last().over("trial")
    rows = records["far"].with_columns(
        **{name: pl.col(name) / end for name in names}, log_loss=-pl.col("goal")
    )
    long = rows.unpivot(list(names), index="log_loss", variable_name="what", value_name="value")
    medians = long.drop_nulls().group_by("what", "log_loss").agg(pl.col("value").median())
    named = medians.with_columns(pl.col("what").replace_strict(names)).sort("what", "log_loss")
    return draw.lines(named, "log_loss", "value", "what", log="x")


FIGURES = (steps, far)


def table(records: Records, knobs: Margin) -> pl.DataFrame:
    """Every kind of descent: steps in which the smoothed margin fell, and both margins' rise.

    Medians over seeds; rises are the last value over the first.
    """
    frame = records["descents"]
    if frame.is_empty():
        return pl.DataFrame()
    kind = ["network", "loss", "classes", "kind", "drop"]
    runs = frame.group_by(*kind, "seed").agg(
        pl.col("falls").last().alias("falls"),
        (pl.col("smoothed").last() / pl.col("smoothed").first()).alias("smoothed, rise"),
        (pl.col("normalized").last() / pl.col("normalized").first()).alias("least, rise"),
        pl.col("log_loss").last().alias("log loss"),
    )
    return (
        runs.group_by(kind)
        .agg(
            pl.len().alias("seeds"),
            pl.col("falls").max().alias("most falls"),
            pl.col("smoothed, rise", "least, rise", "log loss").median(),
        )
        .sort(kind)
    )
