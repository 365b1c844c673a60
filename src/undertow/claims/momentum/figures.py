"""The figures of momentum: orders, stationary variances, networks, and SVAG."""

from __future__ import annotations

from typing import Any

import numpy as np
import polars as pl

from undertow import predict
from undertow.claims import Records
from undertow.claims.momentum import Momentum
from undertow.claims.momentum.experiments import CURVATURES, NOISES, ORDERS
from undertow.claims.momentum.predictions import gap, largest_gap, log_gap, value, variance
from undertow.lab import Charts, beside, figure, intervals, kept, labels, means

NAMES = {"sgd": "SGD", "momentum": "momentum, lr x (1 - beta)", "raw": "momentum, same raw lr"}
draw = Charts(
    lr="effective learning rate",
    gap="momentum - SGD",
    moments="largest gap of E x^2",
    loss="train loss",
    curvature="learning rate x sharpness",
    ratio="variance ratio",
    level="l of SVAG",
)


@figure("The weak error falls as lr^(1 - alpha), and not at all at alpha = 1")
def order(records: Records, knobs: Momentum) -> Any:
    """Largest difference of E x^2 between momentum and SGD at equal effective learning rate, with
    1 - momentum in proportion to lr^alpha and noise of variance 1 / lr. Dashed: the order
    1 - alpha. The theorem guarantees half of it.
    """
    exact = records["recursions"].filter(noise=NOISES[1])
    simulated = [
        {"alpha": alpha, "exponent": n, "moments": largest_gap(records, alpha, n)}
        for alpha in ORDERS
        for n in knobs.path_exponents
    ]
    parts = {
        "exact, quadratic": exact.select("alpha", "exponent", moments="exact_gap"),
        "simulated, not quadratic": pl.DataFrame(simulated),
    }
    rows = pl.concat(
        part.with_columns(what=pl.lit(name), lr=0.5 ** pl.col("exponent"))
        for name, part in parts.items()
    ).with_columns(order=labels("alpha = {:g}", "alpha"))
    finest = rows.filter(what="exact, quadratic").sort("alpha", "lr")
    law = finest.with_columns(
        moments=pl.col("moments").first().over("alpha")
        * (pl.col("lr") / pl.col("lr").first().over("alpha")).pow(1 - pl.col("alpha"))
    )
    lines = draw.lines(law, "lr", "moments", "order", dash=True, log="xy")
    return lines + draw.points(rows, "lr", "moments", "order", shape="what", log="xy")


@figure("What momentum does to the stationary noise is set by lr x sharpness")
def variances(records: Records, knobs: Momentum) -> Any:
    """Stationary variance along the top eigenvector, momentum over SGD, of minibatch least squares
    on real inputs (points, with 95% intervals) and the closed form for independent batches (line).
    Over shuffled epochs momentum averages the noise away.
    """
    rates = np.linspace(0.01, 1.9, 80).tolist()
    equal = [
        predict.momentum_equivalent(rate, knobs.momentum, form="ema", sharpness=1.0)
        for rate in rates
    ]
    law = pl.DataFrame({"curvature": rates, "ratio": [one.variance_ratio for one in equal]})
    cells = {
        (name, c): variance(kind, c)(records)
        for kind, name in (("replacement", "independent batches"), ("epochs", "shuffled epochs"))
        for c in CURVATURES
    }
    measured = intervals(cells, "batches", "curvature", value="ratio")
    closed = draw.lines(law, "curvature", "ratio", dash=True)
    return closed + draw.points(measured, "curvature", "ratio", "batches")


@figure("On a network: alike while steps are small, then only momentum is stable", "networks")
def network(records: Records, knobs: Momentum) -> Any:
    """Train loss after {steps} steps, mean over seeds. Right: what is left between the two, cut off
    where SGD fails, and the lag predicted from SGD itself, stopped beta / (1 - beta) steps earlier.
    Without the factor 1 - beta nothing agrees.
    """
    runs = kept(records["networks"]).filter(level=1)
    losses = means(runs, ("method", "lr"), ("loss",))
    named = losses.with_columns(pl.col("method").replace_strict(NAMES))
    lag = pl.col("lagged_loss") - pl.col("loss")
    left = {("measured", lr): gap("loss", lr) for lr in knobs.lrs}
    left |= {("predicted by the lag", lr): value(lag, lr, method="sgd") for lr in knobs.lrs}
    read = {cell: reading(records) for cell, reading in left.items()}
    gaps = intervals(read, "what", "lr", value="gap")
    return beside(
        draw.lines(named, "lr", "loss", "method", log="xy"),
        draw.lines(gaps, "lr", "gap", "what", log="x", domain=(-0.05, 0.03)),
    )


@figure("SVAG closes the gap")
def svag(records: Records, knobs: Momentum) -> Any:
    """Log train loss of momentum minus that of SGD at effective learning rate {large_lr:g}, with
    95% intervals. SVAG divides what curvature adds to a step by l and leaves the noise.
    """
    levels = (1, *sorted(knobs.svag_levels))
    gaps = {level: log_gap(knobs.large_lr, level)(records) for level in levels}
    closing = intervals(gaps, "level", value="gap")
    return draw.lines(closing, "level", "gap", log="x")


FIGURES = (order, variances, network, svag)


def table(records: Records, knobs: Momentum) -> pl.DataFrame:
    """Loss, accuracy and lr x sharpness of the networks, by learning rate, level and method."""
    columns = {
        "loss": "train loss",
        "lagged_loss": "loss at momentum's lag",
        "accuracy": "accuracy",
        "edge": "lr x sharpness",
    }
    return means(kept(records["networks"]), ("level", "lr", "method"), columns)
