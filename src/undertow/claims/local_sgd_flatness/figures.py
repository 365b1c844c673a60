"""The figures of local-sgd-flatness: the multiplier, what flattens, and what it is worth."""

from __future__ import annotations

from typing import Any

import numpy as np
import polars as pl

from undertow import predict
from undertow.claims import Records
from undertow.claims.local_sgd_flatness import LocalSGDFlatness
from undertow.lab import Charts, beside, figure, kept, labels, means

NAMES = {"sgd": "SGD", "local": "Local SGD", "qsr": "QSR"}
draw = Charts(
    period="H",
    multiplier="drift over SGD's",
    step="steps",
    trace_ratio="tr H over its start",
    trace="tr H",
    accuracy="test accuracy",
    gap="error of E u",
    lr="learning rate",
)


@figure("Up to K times the drift, and by which rounds", "valley")
def multiplier(records: Records, knobs: LocalSGDFlatness) -> Any:
    """Drift down a valley over that of SGD by the length of rounds, K = {num_workers}: simulated
    (points), by the exact multiplier (lines) and by its limit of small steps (dashed). Right: how
    far the mean of u lies from the slow equation's, mean over seeds, at lr H = 1.
    """
    workers = knobs.num_workers
    laws: list[Any] = []
    limits: list[Any] = []
    own = {"num_workers": workers, "shared": False}
    found = means(records["valley"].filter(**own), ["lr", "period"], ["multiplier"])
    found = found.with_columns(steps=labels("lr lambda = {:g}", "lr"))
    for lr, longest in found.group_by("lr").agg(pl.col("period").max()).sort("lr").iter_rows():
        periods = np.unique(np.geomspace(1, longest, 40).round().astype(int)).tolist()
        for rows, continuous in ((laws, False), (limits, True)):
            rows += [
                (
                    f"lr lambda = {lr:g}",
                    period,
                    predict.local_drift_multiplier(
                        lr, 1.0, num_workers=workers, period=period, continuous=continuous
                    ),
                )
                for period in periods
            ]
    schema = ["steps", "period", "multiplier"]
    law, limit = (pl.DataFrame(rows, schema=schema, orient="row") for rows in (laws, limits))
    drawn = (
        draw.points(found, "period", "multiplier", "steps", log="x")
        + draw.lines(law, "period", "multiplier", "steps", detail="steps", log="x")
        + draw.lines(limit, "period", "multiplier", "steps", dash=True, log="x")
    )
    return beside(drawn, errors(records))


def errors(records: Records) -> Any:
    """The slow equation's error by learning rate."""
    paths = records["paths"].filter(pl.col("period") > 1, along=0.0)
    if paths.is_empty():
        return None
    ends = paths.with_columns(gap=pl.col("mean") - pl.col("slow"))
    rows = means(ends, ["lr"], ["gap"]).with_columns(pl.col("gap").abs())
    return draw.lines(rows, "lr", "gap", log="xy")


@figure("A diagonal network flattens as fast as the length of rounds says", "diagonal")
def diagonal(records: Records, knobs: LocalSGDFlatness) -> Any:
    """The Hessian's trace over its start, mean over seeds, under label noise (lines), and as fast
    as the slow equation has it begin (dashed). SGD is one worker on as many samples.
    """
    runs = records["diagonal"].filter(~pl.col("early"), noise=1.0, batch_size=1)
    one = pl.when(pl.col("num_workers") == 1).then(pl.lit("one worker on one sample"))
    runs = runs.with_columns(kind=one.otherwise(pl.format("H = {}", "period")))
    time = knobs.diagonal_lr**2 * pl.col("step")
    ends = runs.with_columns(
        trace_ratio=pl.col("log_trace").exp(), law=(pl.col("sampled") * time).exp()
    )
    rows = means(ends, ["kind", "period", "step"], ["trace_ratio", "law"]).sort("period", "step")
    return draw.measured_against_predicted(rows, "step", "trace_ratio", "law", "kind", log="y")


@figure("Half of the trace, and a little more accuracy", "networks")
def networks(records: Records, knobs: LocalSGDFlatness) -> Any:
    """Convolutional networks under label noise, a point a seed: test accuracy by the Hessian's
    trace at the end, at learning rates {lr:g} and {large_lr:g}, and falling from {falling_lr:g}.
    """
    runs = late(records, knobs).filter(noise="flips")
    method = pl.col("method").replace_strict(NAMES)
    named = pl.when(pl.col("method") == "local").then(
        pl.format("{}, H = {}", method, pl.col("period"))
    )
    runs = runs.with_columns(kind=named.otherwise(method), rate=labels("rate {:g}", "lr"))
    falling = pl.when("falling").then(pl.lit("falling rate"))
    runs = runs.with_columns(rate=falling.otherwise("rate"))
    cells = ["falling", "lr", "period", "kind", "rate", "seed"]
    ends = means(runs, cells, ["trace", "accuracy"]).sort(cells)
    return draw.points(ends, "trace", "accuracy", "kind", log="x", columns="rate")


def late(records: Records, knobs: LocalSGDFlatness) -> pl.DataFrame:
    """Of convolutional networks the last quarter of the steps, and the trace at the end."""
    return kept(records["networks"]).filter(pl.col("step") > knobs.few_steps)


FIGURES = (multiplier, diagonal, networks)


def table(records: Records, knobs: LocalSGDFlatness) -> pl.DataFrame:
    """Convolutional networks at the end, by learning rate and method."""
    runs = late(records, knobs)
    names = {"trace": "tr H", "accuracy": "test accuracy", "test_loss": "test loss"}
    names |= {"share": "communication"}
    return means(runs, ["lr", "falling", "noise", "method", "period"], names)
