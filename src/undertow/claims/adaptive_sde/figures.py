"""The figures of adaptive-sde: weak orders, trajectories under SVAG, and batch sizes."""

from __future__ import annotations

from typing import Any

import polars as pl

from undertow.claims import Records
from undertow.claims.adaptive_sde import AdaptiveSde
from undertow.claims.adaptive_sde.experiments import OPTIMIZERS, PROCESSES, SCALINGS, UNJUDGED
from undertow.claims.adaptive_sde.predictions import (
    deviations,
    error,
    every_run,
    from_limit,
    slower_bases,
)
from undertow.lab import Charts, beside, figure

RIGHT, WEAK = "SVAG", "weaker noise (control)"
Row = tuple[str, int, str, float, float | None]
draw = Charts(
    level="SVAG's l",
    error="|error of E x²|",
    distance="distance from the finest level",
    factor="k",
    share="deviation / drop in log loss",
    loss="training loss",
)


@figure("SVAG tends to the SDE: as 1/l for SGD, as 1/l² for RMSprop and Adam")
def order(records: Records, knobs: AdaptiveSde) -> Any:
    """An oscillator with noise of two values. Dashed: 1/l for SGD, 1/l² for the others, through the
    finest level. Adam from step 0 is not judged: its bias correction diverges there.
    """
    rows: list[Row] = []
    for process, name in (PROCESSES | UNJUDGED).items():
        *_, last = levels = knobs.levels_of(process)
        found = {level: abs(error(process, level)(records).mean()) for level in levels}
        scale, power = found[last], 1 if process == "sgd" else 2
        rows += [(name, at, RIGHT, far, scale * (last / at) ** power) for at, far in found.items()]
        rows.append((name, last, WEAK, abs(error(process, last, "too weak")(records).mean()), None))
    return _beside_law(rows, "process", "error")


@figure("On a network, too, trajectories converge as the noise takes over")
def limit(records: Records, knobs: AdaptiveSde) -> Any:
    """Distance of mean log-loss curves on clean images, where plain Adam is far from its SDE, from
    those of the finest level. Dashed: 1/l², from l = 1. Averages over replicas leave a floor of
    sampling noise under the last point.
    """
    rows: list[Row] = []
    *levels, last = knobs.limit_levels
    for optimizer, name in OPTIMIZERS.items():
        read = {level: from_limit(optimizer, level, "svag", knobs) for level in levels}
        found = {level: reading.effect(records).value for level, reading in read.items()}
        scale = found[1] / (1 - last**-2)
        rows += [(name, at, RIGHT, far, scale * (at**-2 - last**-2)) for at, far in found.items()]
        weak = from_limit(optimizer, levels[-1], "too weak", knobs).effect(records).value
        rows.append((name, levels[-1], WEAK, weak, None))
    return _beside_law(rows, "optimizer", "distance")


def _beside_law(rows: list[Row], panels: str, measured: str) -> Any:
    schema = [panels, "level", "noise", measured, "law"]
    frame = pl.DataFrame(rows, schema=schema, orient="row").fill_nan(None)
    axes = ("level", measured, "law", "noise")
    return draw.measured_against_predicted(frame, *axes, columns=panels, log="xy")


@figure("The square-root rule keeps the path; neither linear scaling nor none does")
def rule(records: Records, knobs: AdaptiveSde) -> Any:
    """Deviation from the run at the base batch, at k times the batch. Without scaling the SDE
    predicts the base curve run sqrt(k) times slower, from no free number. The rule is worst where
    labels are clean, as signal then dominates.
    """
    keys, named = ["series", "factor", "scaling"], (*SCALINGS, "none, predicted")
    measured = every_run(records, deviations)
    predicted = every_run(records, slower_bases).with_columns(scaling=pl.lit(named[-1]))
    parts = [part.select(*keys, "share") for part in (measured, predicted)]
    frame = (
        pl.concat(parts)
        .group_by(keys)
        .agg(pl.col("share").mean())
        .filter(pl.col("scaling").is_in(named))
        .sort(pl.col("scaling").cast(pl.Enum(["other order", *named])), "series", "factor")
    )
    return draw.lines(frame, "factor", "share", "scaling", columns="series", log="xy")


@figure("The curves behind it, at the largest of the batches")
def curves(records: Records, knobs: AdaptiveSde) -> Any:
    """Geometric means over seeds, at the largest of {factors} times the batch for images and of
    {text_factors} times for text.
    """
    largest = {"clean labels": max(knobs.factors), "noisy labels": max(knobs.factors)}
    largest["text"] = max(knobs.text_factors)
    columns = ["series", "scaling", "factor", "epoch", "log_loss"]
    runs = every_run(records, lambda frame: frame.filter(~pl.col("diverged")).select(columns))
    means = (
        runs.group_by(columns[:4])
        .agg(loss=pl.col("log_loss").mean().exp())
        .filter(pl.col("scaling").is_in(["base", *SCALINGS]))
        .sort(pl.col("scaling").cast(pl.Enum(["base", *SCALINGS])), "epoch")
        .with_columns(pl.col("scaling").replace("base", "base batch"))
    )
    panels = []
    for series, factor in largest.items():
        own = means.filter(pl.col("factor").is_in([1, factor]), series=series)
        lines = draw.lines(own, "epoch", "loss", "scaling", log="y")
        panels.append(lines.properties(title=series))
    return beside(*panels, shared="color")


FIGURES = (order, limit, rule, curves)


def table(records: Records, knobs: AdaptiveSde) -> pl.DataFrame:
    """Deviations at every batch size, scaling and series, with what theory says of no scaling."""
    keys = ["series", "factor", "scaling"]
    slower = every_run(records, slower_bases).with_columns(scaling=pl.lit("none"))
    noise = every_run(records, lambda frame: frame.select("series", "noise_to_signal"))
    means = every_run(records, deviations).group_by(keys)
    table = means.agg(
        pl.col("deviation").mean(),
        pl.col("share").mean().alias("over drop in loss"),
        pl.col("accuracy_change").mean().fill_nan(None).alias("test accuracy off by"),
        pl.col("test_change").mean().alias("test log loss off by"),
        pl.col("clipped").any().alias("beta1 cut off"),
    )
    return (
        table.join(slower.group_by(keys).agg(pl.col("predicted").mean()), on=keys, how="left")
        .join(noise.group_by("series").agg(pl.col("noise_to_signal").mean()), on="series")
        .with_columns((pl.col("noise_to_signal") / pl.col("factor")).alias("noise over signal"))
        .drop("noise_to_signal")
        .sort(keys)
    )
