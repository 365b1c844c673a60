"""The figures of rank-one-features: collapse and its forecast, and signs."""

from __future__ import annotations

from typing import Any

import polars as pl

from undertow.claims import Records
from undertow.claims.rank_one_features import RankOneFeatures
from undertow.claims.rank_one_features.experiments import INSIDE
from undertow.claims.rank_one_features.predictions import (
    EXCESS,
    LAST,
    RATE,
    SEEN,
)
from undertow.lab import Charts, figure, kept, labels

draw = Charts(
    predicted="predicted, over 2 lr^2 s^2",
    measured="measured, over 2 lr^2 s^2",
    apart="distance to the flattest fit, of the start's",
    time="time, in 1 / (2 lr^2 s^2) steps",
    rank_ratio="s2 / s1",
    stable_rank="stable rank of the features",
    trace="trace of the Gauss-Newton matrix",
)


# Of a reading, in units in which the mean path is the same at any lr and noise.
TIME = 2 * (pl.col("lr") * pl.col("noise_std")) ** 2 * pl.col("step")


@figure("The distance to the flattest fit, forecast from a random start", "collapse")
def forecast(records: Records, knobs: RankOneFeatures) -> Any:
    """Root mean square distance of the pre-activations to those of the flattest fit, geometric
    mean over seeds. Dashed: the flow of the trace of the Hessian from the same starts, in which
    nothing is fitted. With unequal output weights the noise does not rest at the flattest fit.
    """
    first, path = (pl.col(name).first().over("trial") for name in ("apart", "path_apart"))
    weights = pl.when(weights="unequal").then(pl.lit("unequal output weights"))
    rows = (
        kept(records["collapse"])
        .filter(SEEN, pl.col("activation").is_in(["cubic", "sinh"]), noise="label")
        .with_columns(
            runs=weights.otherwise("inputs"),
            time=TIME,
            apart=pl.col("apart") / first,
            expected=pl.col("path_apart") / path,
        )
        .group_by("runs", "time")
        .agg(pl.col("apart", "expected").log().mean().exp())
        .sort("runs", "time")
    )
    return draw.measured_against_predicted(rows, "time", "apart", "expected", "runs", log="y")


@figure("Features of rank one, from anywhere, by noise on the labels", "collapse")
def collapse(records: Records, knobs: RankOneFeatures) -> Any:
    """Second over first singular value of the pre-activations at the training inputs, geometric
    mean over seeds. With tanh neurons meet only where all of them start beyond 0.66.
    """
    beyond = pl.when(target=INSIDE["target"]).then(pl.lit("all beyond 0.66"))
    where = pl.coalesce(beyond, pl.when(weights="unequal").then("weights"), "inputs")
    rows = kept(records["collapse"]).with_columns(
        runs=pl.format("{}, {}, noise: {}", "activation", where, "noise"), time=TIME
    )
    mean = pl.col("rank_ratio").log().mean().exp()
    along = rows.group_by("runs", "time").agg(mean).sort("runs", "time")
    return draw.lines(along, "time", "rank_ratio", "runs", log="y")


@figure("Label noise draws neurons together or apart, by the sign of phi' phi'''", "signs")
def sign(records: Records, knobs: RankOneFeatures) -> Any:
    """Rate at which the spread of neurons that start near one another decays, beside its
    prediction; below 0 it grows. Bars hold four in five seeds. The line holds no fitted number.
    """
    unit = 2 * (pl.col("lr") * pl.col("noise_std")) ** 2
    rates = {
        "neurons": labels("{} at {:g}", "activation", "target"),
        "measured": RATE / unit,
        "predicted": pl.col("predicted_at_lr") / unit,
    }
    ends = {name: pl.col("measured").quantile(q) for name, q in (("low", 0.1), ("high", 0.9))}
    runs = kept(records["signs"]).filter(noise="label").with_columns(**rates).filter(LAST)
    means = pl.col("predicted", "measured").mean()
    rows = runs.group_by("neurons").agg(means, **ends).sort("predicted")
    line = pl.DataFrame({"predicted": [-1.4, 1.4], "measured": [-1.4, 1.4]})
    drawn = draw.lines(line, "predicted", "measured", dash=True)
    return drawn + draw.points(rows, "predicted", "measured", "neurons")


FIGURES = (forecast, collapse, sign)


def table(records: Records, knobs: RankOneFeatures) -> pl.DataFrame:
    """Rank, F and rates of every kind of run, means over seeds.

    F is the trace, and its excess that over the F of the flattest fit.
    """
    parts = [kept(frame).with_columns(part=pl.lit(name)) for name, frame in records.items()]
    some = [part for part in parts if not part.is_empty()]
    if not some:
        return pl.DataFrame()
    kind = ("part", "activation", "inputs", "weights", "noise", "target", "lr")
    started_near = pl.col("part").is_in(["rates", "signs"])
    at_start = pl.col("rank_ratio").first().over("trial")
    return (
        pl.concat(some, how="diagonal_relaxed")
        .with_columns(excess=EXCESS, rate=RATE, start=at_start)
        .filter(LAST)
        .group_by(kind)
        .agg(
            pl.len().alias("runs"),
            pl.col("start").mean().alias("s2/s1 at start"),
            pl.col("rank_ratio").mean().alias("s2/s1"),
            pl.col("rank_ratio").max().alias("largest s2/s1"),
            pl.col("stable_rank", "trace", "excess").mean(),
            pl.col("rate", "predicted", "predicted_at_lr").filter(started_near).mean(),
        )
        .rename(lambda name: name.replace("_", " "))
        .sort(kind)
    )
