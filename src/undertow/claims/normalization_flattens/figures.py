"""The figures of normalization-flattens: paths beside the flow, pace, and test accuracy."""

from __future__ import annotations

from typing import Any

import polars as pl

from undertow.claims import Records
from undertow.claims.normalization_flattens import NormalizationFlattens
from undertow.claims.normalization_flattens.experiments import REGRESSION_DECAY
from undertow.claims.normalization_flattens.predictions import main_cell, pace
from undertow.lab import Charts, beside, figure, labels, means

draw = Charts(
    tau="lr x weight decay x steps",
    full_tau="lr x wd x steps",
    fall="log sharpness",
    flow_fall="log sharpness",
    log_sharpness="log sharpness",
    tangent="tan psi",
    law="tan psi",
    foreseen="foreseen 2 + d log sharpness / d tau",
    measured="measured",
    accuracy="test accuracy",
)
_CIRCLES = 3  # shown


@figure("Descent with decay goes down the sharpness as the flow does, and without stays")
def paths(records: Records, knobs: NormalizationFlattens) -> Any:
    """Left: on circles, descent (points) and the sharpness-reduction flow (dashed), for three
    starts. Middle: tan psi of batch-norm regression, mean over seeds, and (1 - lr wd)^t (dashed).
    Right: log sharpness of batch-norm networks, mean over seeds, by the share of weight decay that
    a branch keeps: on a common clock the branches with decay fall on one curve.
    """
    return beside(_circles(records, knobs), _regression(records), _branches(records, knobs))


def _circles(records: Records, knobs: NormalizationFlattens) -> Any:
    runs = records["circles"].filter(intrinsic_rate=min(knobs.intrinsic_rates))
    shown = runs["seed"].unique().sort().head(_CIRCLES).implode()
    rows = runs.filter(pl.col("seed").is_in(shown)).sort("seed", "tau").gather_every(2)
    named = rows.with_columns(start=labels("start {}", "seed"))
    return draw.measured_against_predicted(named, "tau", "fall", "flow_fall", "start")


def _regression(records: Records) -> Any:
    rows = means(records["regressions"], ("decay", "step"), ("tangent",)).sort("decay", "step")
    clock = pl.col("step") * REGRESSION_DECAY
    kept = pl.when("decay").then((-clock).exp()).otherwise(1.0)
    start = pl.col("tangent").first().over("decay")
    kinds = pl.when("decay").then(pl.lit("decay")).otherwise(pl.lit("no decay"))
    named = rows.with_columns(tau=clock, law=start * kept, run=kinds)
    return draw.measured_against_predicted(named, "tau", "tangent", "law", "run", log="y")


def _branches(records: Records, knobs: NormalizationFlattens) -> Any:
    runs = records["networks"].filter(**main_cell(knobs))
    own = pl.when(pl.col("branch") > 0).then("tau").otherwise(pl.col("step") * knobs.weight_decay)
    rows = means(runs.with_columns(tau=own), ("branch", "tau"), ("log_sharpness",))
    named = rows.sort("branch", "tau", descending=[True, False]).with_columns(
        decay=labels("{:g} of the decay", "branch")
    )
    return draw.lines(named, "tau", "log_sharpness", "decay")


@figure("The gradients of the eigenvalues at the edge say how fast a network flattens")
def speed(records: Records, knobs: NormalizationFlattens) -> Any:
    """What the oscillation takes of the speed limit, 2 + d log sharpness / d tau: measured over
    foreseen, a point a network; by all eigenvalues at the edge, and by the largest alone.
    """
    kinds = {"foreseen": "all at the edge", "alone": "the largest alone"}
    found = means(records["pace"].drop_nulls("foreseen"), ("seed",), tuple(kinds))
    values = pace()(records).values
    measured = pl.DataFrame({"seed": list(values), "measured": list(values.values())})
    rows = found.join(measured, on="seed").with_columns(pl.col("measured") + 2)
    each = [
        rows.select("measured", foreseen=pl.col(column) + 2, counted=pl.lit(name))
        for column, name in kinds.items()
    ]
    return draw.diagonal(pl.concat(each), "foreseen", "measured", "counted")


@figure("Test accuracy of the flattened networks, and of their twins without decay", "networks")
def accuracy(records: Records, knobs: NormalizationFlattens) -> Any:
    """Test accuracy, mean over seeds, of networks with decay and of the same networks without from
    the fit on, by data set and width.
    """
    runs = records["networks"].filter(pl.col("branch").is_in([0.0, 1.0])).drop_nulls("accuracy")
    rows = means(runs, ("images.data", "width", "branch", "step"), ("accuracy",))
    kinds = pl.when(pl.col("branch") > 0).then(pl.lit("decay")).otherwise(pl.lit("no decay"))
    named = rows.with_columns(
        full_tau=pl.col("step") * knobs.weight_decay,
        network=labels("{}, width {}", "images.data", "width"),
        run=kinds,
    )
    return draw.lines(named, "full_tau", "accuracy", "run", columns="network")


FIGURES = (paths, speed, accuracy)


def table(records: Records, knobs: NormalizationFlattens) -> pl.DataFrame:
    """Sharpness, edge and test accuracy of the networks at the fit and at the end."""
    ends = records["networks"].filter((pl.col("step") == 0) | pl.col("last"))
    named = ends.with_columns(
        when=pl.when(pl.col("step") == 0).then(pl.lit("fit")).otherwise(pl.lit("end"))
    )
    columns = {
        "log_sharpness": "log sharpness",
        "edge": "effective rate x sharpness",
        "accuracy": "test accuracy",
    }
    return means(named, ("images.data", "width", "branch", "when"), columns)
