"""The figures of rank-one-features: collapse and its forecast, signs and rates, networks."""

from __future__ import annotations

from typing import Any

import polars as pl

from undertow.claims import Records
from undertow.claims.rank_one_features import RankOneFeatures
from undertow.claims.rank_one_features.experiments import INSIDE
from undertow.claims.rank_one_features.predictions import (
    EXCESS,
    LAST,
    NEAR,
    RATE,
    SEEN,
    STEPS,
    TWO,
    moved,
)
from undertow.lab import Charts, beside, figure, kept, labels, means

draw = Charts(
    predicted="predicted, over 2 lr^2 s^2",
    measured="measured, over 2 lr^2 s^2",
    lr="learning rate",
    ratio="measured / predicted as lr -> 0",
    apart="distance to the flattest fit, of the start's",
    time="time, in 1 / (2 lr^2 s^2) steps",
    rank_ratio="s2 / s1",
    stable_rank="stable rank of the features",
    trace="trace of the Gauss-Newton matrix",
)


# Of a reading, in units in which the mean path is the same at any lr and noise.
TIME = 2 * (pl.col("lr") * pl.col("noise_std")) ** 2 * pl.col("step")


def two_deviations(column: str) -> list[pl.Expr]:
    """The mean of a column, and `low` and `high`, two standard deviations away."""
    mean, deviation = pl.col(column).mean(), pl.col(column).std()
    return [mean, (mean - 2 * deviation).alias("low"), (mean + 2 * deviation).alias("high")]


@figure("Label noise draws neurons together or apart, by the sign of phi' phi'''", "signs")
def sign(records: Records, knobs: RankOneFeatures) -> Any:
    """Rate at which the spread of neurons that start near one another decays, beside its
    prediction; below 0 it grows. Bars are two standard deviations over seeds. The line holds no
    fitted number.
    """
    unit = 2 * (pl.col("lr") * pl.col("noise_std")) ** 2
    rows = (
        kept(records["signs"])
        .filter(noise="label")
        .with_columns(
            neurons=labels("{} at {:g}", "activation", "target"),
            measured=RATE / unit,
            predicted=pl.col("predicted_at_lr") / unit,
        )
        .filter(LAST)
        .group_by("neurons")
        .agg(pl.col("predicted").mean(), *two_deviations("measured"))
        .sort("predicted")
    )
    ends = pl.DataFrame({"predicted": [-1.4, 1.4], "measured": [-1.4, 1.4]})
    line = draw.lines(ends, "predicted", "measured", dash=True)
    return line + draw.points(rows, "predicted", "measured", "neurons")


@figure("The rate tends to its parameter-free value as the learning rate falls", "rates")
def rate(records: Records, knobs: RankOneFeatures) -> Any:
    """Points: measured over 2 lr^2 s^2 phi' phi''' (for independent inputs over the mean
    eigenvalue), bars two standard deviations over seeds. Dashed: what the fluctuation of the
    residual adds, by the flow that knows lr x curvature.
    """
    rows = (
        kept(records["rates"])
        .with_columns(
            ratio=RATE / pl.col("predicted"),
            expected=moved("path_log_spread", NEAR) / STEPS / pl.col("predicted"),
        )
        .filter(LAST)
        .group_by("inputs", "lr")
        .agg(*two_deviations("ratio"), pl.col("expected").mean())
    )
    limit = pl.DataFrame({"inputs": list(TWO), "lr": [0.0, 0.0], "expected": [1.0, 1.0]})
    rows = pl.concat([rows, limit], how="diagonal").sort("inputs", "lr")
    return draw.measured_against_predicted(rows, "lr", "ratio", "expected", "inputs")


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
    mean over seeds. With tanh neurons meet only where all of them start beyond 0.66. Digits decide
    nothing, nor do crowded inputs (twice as many as dimensions, beyond the theorem).
    """
    runs = [kept(records[name]) for name in ("collapse", "beyond")]
    rows = pl.concat(runs, how="diagonal_relaxed").with_columns(
        runs=pl.concat_str(["activation", where(), noise()], separator=", "), time=TIME
    )
    mean = pl.col("rank_ratio").log().mean().exp()
    along = rows.group_by("runs", "time").agg(mean).sort("runs", "time")
    return draw.lines(along, "time", "rank_ratio", "runs", log="y")


@figure("Outside the theory: networks whose every layer trains", "nets")
def net(records: Records, knobs: RankOneFeatures) -> Any:
    """Digits 3 and 8, 32 neurons, squared error, minibatches of 10. Decides nothing: output weights
    of both signs that train are outside the theorem. Noise on the labels lowers the trace; whether
    the rank falls with it is another matter.
    """
    named = pl.concat_str(["activation", noise()], separator=", ")
    nets = kept(records["nets"]).with_columns(networks=named)
    rows = means(nets, ("networks", "step"), ("stable_rank", "trace"))
    rank = draw.lines(rows, "step", "stable_rank", "networks", log="y")
    return beside(rank, draw.lines(rows, "step", "trace", "networks", log="y"), shared="color")


FIGURES = (forecast, collapse, sign, rate, net)


def where() -> pl.Expr:
    """What tells the starts and networks of one activation apart."""
    beyond = pl.when(target=INSIDE["target"]).then(pl.lit("all beyond 0.66"))
    return pl.coalesce(beyond, pl.when(weights="unequal").then(pl.lit("unequal")), "inputs")


def noise() -> pl.Expr:
    """Whether there is noise, in words."""
    return pl.when(noise="none").then(pl.lit("no noise")).otherwise(pl.lit("noise"))


def table(records: Records, knobs: RankOneFeatures) -> pl.DataFrame:
    """Rank, F and rates of every kind of run, means over seeds.

    F is the trace, and its excess that over the F of equal neurons. `beyond` and `nets` decide
    nothing.
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
