"""The figures of momentum: orders, variances at rest, networks, finer steps, and tuned rates."""

from __future__ import annotations

from typing import Any

import numpy as np
import polars as pl

from undertow import predict
from undertow.claims import Records
from undertow.claims.momentum import Momentum
from undertow.claims.momentum.experiments import CURVATURES, ORDERS, momenta
from undertow.claims.momentum.predictions import PLAIN, largest_gap, log_gap, variance
from undertow.lab import Charts, beside, figure, intervals, kept, labels, means

NAMES = {"sgd": "SGD", "momentum": "momentum, lr x (1 - beta)", "raw": "momentum, same raw lr"}
draw = Charts(
    lr="effective learning rate",
    gap="momentum - SGD",
    moments="largest gap of E x^2",
    loss="train loss",
    test_loss="test loss",
    curvature="learning rate x sharpness",
    ratio="variance ratio",
    level="l",
)


@figure("The weak error falls as lr^(1 - alpha), and not at all at alpha = 1")
def order(records: Records, knobs: Momentum) -> Any:
    """Largest difference of E x^2 between momentum and SGD at equal effective learning rate, with
    1 - momentum in proportion to lr^alpha and noise of variance 1 / lr: simulated (points), and
    exactly on a quadratic loss (dashed). The order is 1 - alpha; the theorem guarantees half of it.
    """
    cells = [(alpha, n) for alpha in ORDERS for n in knobs.path_exponents]
    rows = pl.DataFrame(
        {
            "alpha": [alpha for alpha, _ in cells],
            "lr": [0.5**n for _, n in cells],
            "moments": [largest_gap(records, alpha, n) for alpha, n in cells],
            "law": [predict.momentum_gap(0.5**n, momenta(0.5**n)[a], spread=0.5) for a, n in cells],
        }
    ).with_columns(order=labels("alpha = {:g}", "alpha"))
    law = rows.select("lr", "order", moments="law")
    lines = draw.lines(law, "lr", "moments", "order", dash=True, log="xy")
    return lines + draw.points(rows, "lr", "moments", "order", log="xy")


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
    """Train loss after {steps} steps, mean over seeds. Right: log train loss of momentum minus that
    of SGD at effective learning rate {large_lr:g}, with 95% intervals, by l times as many steps of
    lr / l, and by SVAG, which keeps the noise meanwhile.
    """
    losses = means(
        kept(records["networks"]).filter(**PLAIN), ("method", "lr"), ("loss",)
    ).with_columns(pl.col("method").replace_strict(NAMES))
    kinds, large = {"plain": "plain steps", "svag": "SVAG"}, knobs.large_lr
    cells = {(name, 1): log_gap(large)(records) for name in kinds.values()}
    for kind, name in kinds.items():
        for level in sorted(knobs.levels):
            cells[name, level] = log_gap(large, level, kind)(records)
    finer = intervals(cells, "steps", "level", value="gap")
    return beside(
        draw.lines(losses, "lr", "loss", "method", log="xy"),
        draw.lines(finer, "level", "gap", "steps", log="x"),
    )


@figure("Tuned: the same where noise sets the best rate, not where stability does", "tuned")
def tuned(records: Records, knobs: Momentum) -> Any:
    """Train loss at the end by effective learning rate, mean over seeds: with {label_noise:.0%} of
    the labels drawn at random, with clean labels, and test loss of the tuned language model.
    """
    runs = kept(records["tuned"]).filter(batch_size=knobs.tuned_batches[-1])
    panels = []
    for noise, title in ((knobs.label_noise, "noisy labels"), (0.0, "clean labels")):
        losses = means(runs.filter(label_noise=noise), ("method", "lr"), ("loss",))
        panels.append((losses, "loss", title))
    models = kept(records["language"]).filter(pl.col("method") != "raw")
    panels.append((means(models, ("method", "lr"), ("test_loss",)), "test_loss", "language model"))
    lines = []
    for rows, column, title in panels:
        named = rows.with_columns(pl.col("method").replace_strict(NAMES))
        line = draw.lines(named, "lr", column, "method", log="xy")
        lines.append(line if line is None else line.properties(title=title))
    return beside(*lines, shared="color")


FIGURES = (order, variances, network, tuned)


def table(records: Records, knobs: Momentum) -> pl.DataFrame:
    """Loss, accuracy and lr x sharpness of the networks, by learning rate, steps and method."""
    columns = {
        "loss": "train loss",
        "accuracy": "accuracy",
        "edge": "lr x sharpness",
    }
    return means(kept(records["networks"]), ("kind", "level", "lr", "method"), columns)
