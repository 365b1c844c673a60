"""The figures of two-layer-margin: margins along the flow, and what one more sample does."""

from __future__ import annotations

from typing import Any

import polars as pl

from undertow.claims import Records
from undertow.claims.two_layer_margin import TwoLayerMargin
from undertow.claims.two_layer_margin.predictions import E_FOLDS, END, ESCAPE, LONG
from undertow.lab import Charts, figure, kept, labels

draw = Charts(
    ratio="margin over ceiling",
    depth="-log loss",
    predicted="predicted, e-folds of -log loss",
    measured="measured, e-folds of -log loss",
)

_FIRST = 10.0  # of -log loss
_FELL = pl.col("level") <= -_FIRST


def _along(rows: pl.DataFrame) -> pl.DataFrame:
    """Medians over seeds at each reading."""
    return (
        rows.with_columns(depth=-pl.col("level"))
        .group_by("runs", "depth", maintain_order=True)
        .agg(pl.col("ratio").median())
    )


@figure("Any width reaches the largest margin on mirrored data", "symmetric", "pictures")
def margins(records: Records, knobs: TwoLayerMargin) -> Any:
    """Margin over the ceiling of any network along the flow, median over seeds, of starts that are
    not stuck from s = {scale:g}. Dashed: 2 slope / (1 + slope), where all a_k of one sign end.
    """
    forced = pl.when(start="one-sign").then(pl.lit(", one sign")).otherwise(pl.lit(""))
    images = pl.format("images, m = {}", "neurons")
    what = pl.when(data="pictures").then(images).otherwise(pl.format("m = {}", "neurons"))
    rows = pl.concat([kept(records[name]) for name in ("symmetric", "pictures")])
    shown = rows.filter(
        _FELL, ~pl.col("forecast") | (pl.col("start") == "one-sign"), scale=knobs.scale
    ).with_columns(runs=what + forced)
    level = draw.level(2 * knobs.slope / (1 + knobs.slope), across="ratio")
    lines = draw.lines(_along(shown), "depth", "ratio", "runs", log="x", domain=(0.4, 1.02))
    return None if lines is None else lines + level


@figure("What one more sample does lasts longer the smaller the start", "manipulated")
def order(records: Records, knobs: TwoLayerMargin) -> Any:
    """Margin over that of the best linear network along the flow, on mirrored data and one more
    sample, median over seeds. Dashed: the best network of one neuron. At any loss a start that is
    small enough is there, and at any scale the flow leaves it.
    """
    rows = kept(records["manipulated"]).filter(_FELL, data="hinted")
    shown = rows.sort("scale").with_columns(runs=labels("s = {:g}", "scale"))
    level = draw.level(2 * knobs.slope / (1 + knobs.slope), across="ratio")
    lines = draw.lines(_along(shown), "depth", "ratio", "runs", log="x", domain=(0.6, 1.02))
    return None if lines is None else lines + level


@figure("How long one neuron holds out is known from the data", "manipulated")
def lifetime(records: Records, knobs: TwoLayerMargin) -> Any:
    """E-folds by which -log loss grows from one scale of the start to the next smaller one, where
    the margin of data with one more sample is half-way to the ceiling, over kappa x the e-folds
    between the scales; every seed. On the dashed line they agree; nothing is fitted.
    """
    rows = kept(records["manipulated"]).filter(LONG, ESCAPE, data="hinted").sort("seed", "scale")
    gone = pl.col("lasted").diff(-1).over("seed")
    ahead = (pl.col("kappa") * E_FOLDS).diff(-1).over("seed")
    seen = rows.select(predicted=ahead, measured=gone).drop_nulls()
    return draw.diagonal(seen, "predicted", "measured")


FIGURES = (margins, order, lifetime)


def table(records: Records, knobs: TwoLayerMargin) -> pl.DataFrame:
    """Where runs of every kind ended: medians over seeds, and the extremes of the margin."""
    parts = []
    for name, frame in records.items():
        rows = kept(frame)
        if not rows.is_empty():
            ends = rows.filter(END) if "level" in rows.columns else rows
            parts.append(ends.with_columns(part=pl.lit(name)))
    if not parts:
        return pl.DataFrame()
    ratio = pl.col("ratio")
    found = pl.concat(parts, how="diagonal_relaxed")
    own: dict[str, Any] = dict.fromkeys(("angle_svm", "bend", "over_one"), pl.Float64)
    own |= {"data": pl.String, "start": pl.String}
    missing = {name: kind for name, kind in own.items() if name not in found.columns}
    return (
        found.with_columns(pl.lit(None, kind).alias(name) for name, kind in missing.items())
        .group_by("part", "data", "neurons", "scale", "start", "forecast")
        .agg(
            pl.len().alias("runs"),
            pl.col("log_loss").median(),
            ratio.median().alias("margin over ceiling"),
            ratio.min().alias("least"),
            ratio.max().alias("largest"),
            pl.col("over_one", "angle_svm", "bend").median(),
        )
        .rename(lambda name: name.replace("_", " "))
        .sort("part", "data", "neurons", "scale", "start", "forecast")
    )
