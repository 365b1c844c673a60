"""The figures of local-sgd-relu: loss curves, errors, flips and near-duplicates."""

from __future__ import annotations

from typing import Any

import polars as pl

from undertow.claims import Records
from undertow.claims.local_sgd_relu import LocalSgdRelu
from undertow.claims.local_sgd_relu.predictions import ENDS
from undertow.lab import Charts, beside, figure, kept, labels

draw = Charts(
    loss="loss",
    expected="the map's loss",
    round="communication round",
    width="units m",
    error="error of the residuals",
    value="signs flipped",
    angle="angle between near-duplicates",
    rate="rate of the log loss a round",
)

_MEAN = {name: pl.col(name).log().mean().exp() for name in ("loss", "expected")}


@figure("The loss curve is that of the kernel's round map", "widths", "partitions")
def curves(records: Records, knobs: LocalSgdRelu) -> Any:
    """Loss of the averaged network after each round, geometric mean over seeds, and dashed that of
    the kernel's map from the same starts, in which nothing is fitted. Left: random samples, at
    several widths, m = {widths}. Right: two classes whose clients nearly fit their own data in
    every round, alike (iid) or with a class each; m the largest.
    """
    runs = {
        "widths": labels("m = {}", "width"),
        "partitions": pl.col("partition"),
    }
    charts = []
    for name, what in runs.items():
        rows = kept(records[name]).sort("width", "partition")
        if name == "widths":
            rows = rows.filter(scaling="kernel")
        rows = rows.with_columns(runs=what)
        mean = rows.group_by("runs", "round", maintain_order=True).agg(**_MEAN)
        charts.append(
            draw.measured_against_predicted(mean, "round", "loss", "expected", "runs", log="y")
        )
    return beside(*charts)


@figure("The map's error and the signs that flip fall as m^-1/2, unless features move", "widths")
def width(records: Records, knobs: LocalSgdRelu) -> Any:
    """Left: the largest error of the residuals over all rounds, over their norm at the start.
    Right: the share of activation signs that differ between start and end, and of the clients' from
    the average before averaging. Medians over seeds; dashed: forecasts, in which nothing is fitted.
    In the mean-field scaling neither falls.
    """
    ends = kept(records["widths"]).filter(ENDS).sort("width")
    medians = ends.group_by("scaling", "width", maintain_order=True).agg(
        error=pl.col("residual_error").median()
    )
    left = draw.lines(medians, "width", "error", "scaling", log="xy")
    parts = []
    for name, words in (("flips", "since the start"), ("between", "clients")):
        value = pl.col(name).median().alias("value")
        forecast = pl.col(f"{name}_expected").median().alias("forecast")
        found = ends.group_by("scaling", "width", maintain_order=True).agg(value, forecast)
        scaling = pl.when(scaling="kernel").then(pl.lit("")).otherwise(pl.lit(", mean-field"))
        parts.append(found.with_columns(signs=pl.lit(words) + scaling))
    both = pl.concat(parts)
    right = draw.lines(both, "width", "value", "signs", log="xy")
    known = both.drop_nulls("forecast").select("width", "signs", value="forecast")
    if right is not None and not known.is_empty():
        right += draw.lines(known, "width", "value", "signs", log="xy", dash=True)
    return beside(left, right)


@figure("Near-duplicates of opposite label: first their angle, then its square", "pairs")
def pairs(records: Records, knobs: LocalSgdRelu) -> Any:
    """Rate at which the log loss falls late in training where two samples at an angle have opposite
    labels, median over seeds. Dashed: that of the kernel of units that see both or neither, and of
    the infinitely wide network, in which units between the two never run out.
    """
    late = kept(records["pairs"]).filter(ENDS, data="opposite", width=knobs.middle).sort("angle")
    kinds = {
        "late": "measured",
        "late_merged": "units see both or neither",
        "late_expected": "m = inf",
    }
    medians = [-pl.col(name).median().alias(name) for name in kinds]
    found = late.group_by("angle", maintain_order=True).agg(medians)
    rows = found.unpivot(index="angle", variable_name="kind", value_name="rate")
    rows = rows.with_columns(runs=pl.col("kind").replace_strict(kinds, return_dtype=pl.String))
    seen = pl.col("kind") == "late"
    known = draw.lines(rows.filter(~seen), "angle", "rate", "runs", log="xy", dash=True)
    return known + draw.points(rows.filter(seen), "angle", "rate", "runs", log="xy")


FIGURES = (curves, width, pairs)


def table(records: Records, knobs: LocalSgdRelu) -> pl.DataFrame:
    """Where runs of every kind ended beside the map: medians over seeds."""
    parts = []
    for name, frame in records.items():
        rows = kept(frame)
        if not rows.is_empty():
            parts.append(rows.filter(ENDS).with_columns(part=pl.lit(name)))
    if not parts:
        return pl.DataFrame()
    found = pl.concat(parts, how="diagonal_relaxed")
    kind = ("part", "data", "scaling", "partition", "width", "period", "angle")
    own: dict[str, Any] = dict.fromkeys(("flips", "between"), pl.Float64) | {"scaling": pl.String}
    missing = {name: dtype for name, dtype in own.items() if name not in found.columns}
    return (
        found.with_columns(pl.lit(None, dtype).alias(name) for name, dtype in missing.items())
        .group_by(kind)
        .agg(
            pl.len().alias("runs"),
            pl.col("loss", "expected", "error", "residual_error").median(),
            (pl.col("rate") / pl.col("rate_expected")).median().alias("slope over the map's"),
            pl.col("r_squared", "flips", "between").median(),
        )
        .rename(lambda name: name.replace("_", " "))
        .sort(kind)
    )
