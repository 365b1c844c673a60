"""The figures of momentum: orders, variances at rest, networks, finer steps, and tuned rates."""

from __future__ import annotations

from itertools import product
from typing import Any

import numpy as np
import polars as pl

from undertow import predict
from undertow.claims import Records
from undertow.claims.momentum import Momentum
from undertow.claims.momentum.experiments import CURVATURES, ORDERS, momenta, variance_ratio
from undertow.claims.momentum.predictions import PLAIN, log_gap, path_gaps, variance
from undertow.lab import Charts, beside, figure, intervals, kept, means

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
    rows = []
    for alpha, exponent in product(ORDERS, knobs.path_exponents):
        lr = 0.5**exponent
        largest = max(abs(gap(records).mean()) for gap in path_gaps(alpha, exponent))
        law = predict.momentum_gap(lr, momenta(lr)[alpha], spread=0.5)
        rows.append((f"alpha = {alpha:g}", lr, largest, law))
    frame = pl.DataFrame(rows, schema=["order", "lr", "moments", "law"], orient="row")
    return draw.measured_against_predicted(frame, "lr", "moments", "law", "order", log="xy")


@figure("What momentum does to the stationary noise is set by lr x sharpness")
def variances(records: Records, knobs: Momentum) -> Any:
    """Stationary variance along the top eigenvector, momentum over SGD, of minibatch least squares
    on real inputs (points, with 95% intervals) and the closed form for independent batches (line).
    Over shuffled epochs momentum averages the noise away.
    """
    rates = np.linspace(0.01, 1.9, 80).tolist()
    ratios = [variance_ratio(rate, knobs.momentum) for rate in rates]
    law = pl.DataFrame({"curvature": rates, "ratio": ratios})
    orders = {"replacement": "independent batches", "epochs": "shuffled epochs"}
    cells = {(orders[k], c): variance(k, c)(records) for k, c in product(orders, CURVATURES)}
    measured = intervals(cells, "batches", "curvature", value="ratio")
    closed = draw.lines(law, "curvature", "ratio", dash=True)
    return closed + draw.points(measured, "curvature", "ratio", "batches")


@figure("On a network: alike while steps are small, then only momentum is stable", "networks")
def network(records: Records, knobs: Momentum) -> Any:
    """Train loss after {steps} steps, mean over seeds. Right: log train loss of momentum minus that
    of SGD at effective learning rate {large_lr:g}, with 95% intervals, by l times as many steps of
    lr / l, and by SVAG, which keeps the noise meanwhile.
    """
    kinds, levels = {"plain": "plain steps", "svag": "SVAG"}, (1, *sorted(knobs.levels))
    cells = {
        # At l = 1 the two are one.
        (kinds[k], level): log_gap(knobs.large_lr, level, k if level > 1 else "plain")(records)
        for k, level in product(kinds, levels)
    }
    finer = intervals(cells, "steps", "level", value="gap")
    return beside(
        by_rate(records["networks"].filter(**PLAIN), "loss"),
        draw.lines(finer, "level", "gap", "steps", log="x"),
    )


@figure("Tuned: the same where noise sets the best rate, not where stability does", "tuned")
def tuned(records: Records, knobs: Momentum) -> Any:
    """Train loss at the end by effective learning rate, mean over seeds: with some
    of the labels drawn at random, with clean labels, and test loss of the tuned language model.
    """
    runs = records["tuned"].filter(batch_size=knobs.tuned_batches[-1])
    return beside(
        by_rate(runs.filter(label_noise=knobs.label_noise), "loss", "noisy labels"),
        by_rate(runs.filter(label_noise=0.0), "loss", "clean labels"),
        by_rate(
            records["language"].filter(pl.col("method") != "raw"), "test_loss", "language model"
        ),
        shared="color",
    )


def by_rate(runs: pl.DataFrame, column: str, title: str = "") -> Any:
    """Of each method, a mean over seeds by its effective learning rate; None of no runs."""
    rows = means(kept(runs), ("method", "lr"), (column,))
    named = rows.with_columns(pl.col("method").replace_strict(NAMES))
    drawn = draw.lines(named, "lr", column, "method", log="xy")
    return drawn if drawn is None else drawn.properties(title=title)


FIGURES = (order, variances, network, tuned)


def table(records: Records, knobs: Momentum) -> pl.DataFrame:
    """Loss, accuracy and lr x sharpness of the networks, by learning rate, steps and method."""
    columns = {"loss": "train loss", "accuracy": "accuracy", "edge": "lr x sharpness"}
    return means(kept(records["networks"]), ("kind", "level", "lr", "method"), columns)
