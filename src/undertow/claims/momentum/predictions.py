"""What the paper predicts of momentum beside SGD, and where the prediction must fail."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import polars as pl

from undertow import lab
from undertow.claims import Records
from undertow.claims.momentum import Momentum
from undertow.claims.momentum.experiments import CURVATURES, NOISES, ORDERS, TIMES
from undertow.lab import Prediction, Reading, at_most, near, no_less, of, of_means, outside, worst


def predictions(knobs: Momentum) -> dict[str, Prediction]:
    """Orders, stationary variances and networks; the thresholds are the pilots'."""
    small, large, finest = knobs.small_lr, knobs.large_lr, max(knobs.svag_levels)
    independent = worst((variance("replacement", c, "predicted_ratio") for c in CURVATURES), 1)
    orders = {}
    for alpha in ORDERS:
        simulated = simulated_order(alpha, knobs.path_exponents)
        for kind, read in {"exact": exact_order(alpha), "simulated": simulated}.items():
            rule = near(1 - alpha, 0.1, read, "1 - alpha")
            if alpha == 1:
                rule = at_most(0.1, read, "the gap does not close", control=True)
            orders[f"order of the weak error, alpha = {alpha:g}, {kind}"] = rule
    return orders | {
        "stationary variance ratio over its closed form": near(
            1, 0.05, independent, f"at the worst of lr x sharpness {CURVATURES}"
        ),
        "stationary variance ratio at lr x sharpness 1": at_most(
            0.8, variance("replacement", 1.0), "there the two are not alike", control=True
        ),
        "stationary variance ratio over shuffled epochs, lr x sharpness 0.1": at_most(
            0.9,
            variance("epochs", 0.1),
            "the noise must be independent; where it is, the ratio is 0.95",
            control=True,
        ),
        f"train loss, momentum - SGD, lr {small:g}": near(
            0, 0.02, gap("loss", small), "equivalent"
        ),
        f"test accuracy, momentum - SGD, lr {small:g}": near(
            0, 0.01, gap("accuracy", small), "equivalent"
        ),
        f"train loss at the same raw lr, momentum - SGD, lr {small:g}": outside(
            0, 0.02, gap("loss", small, method="raw"), "not without the factor", control=True
        ),
        f"train loss, momentum - SGD, lr {large:g}": at_most(
            -0.05, gap("loss", large), "with large steps momentum is better"
        ),
        f"lr x sharpness of the momentum runs, lr {large:g}": no_less(
            2, value("edge", large), "they go where plain descent is unstable"
        ),
        f"share of the log-loss gap left under SVAG, l = {finest}": near(
            0, 0.25, share_left(large, finest), f"SVAG closes the gap at lr {large:g}"
        ),
        f"train loss, momentum - SGD, lr {large:g}, SVAG l = {finest}": near(
            0, 0.02, gap("loss", large, finest), "equivalent"
        ),
    }


def summary(records: Records, knobs: Momentum) -> str:
    """How many networks diverged."""
    diverged, total = lab.lost(records, "networks")
    return (
        f"{diverged} of {total} networks diverged; the networks are compared at effective "
        f"learning rates {knobs.small_lr:g} and {knobs.large_lr:g}."
    )


# ---- readings


def value(column: str | pl.Expr, lr: float, level: int = 1, method: str = "momentum") -> Reading:
    """A method's value in one cell."""
    return of("networks", column, ~pl.col("diverged"), lr=lr, level=level, method=method)


def gap(column: str, lr: float, level: int = 1, *, method: str = "momentum") -> Reading:
    """A method's value less that of SGD."""
    return value(column, lr, level, method) - value(column, lr, level, "sgd")


def log_gap(lr: float, level: int) -> Reading:
    """Log train loss of momentum less that of SGD at an SVAG level."""
    logs = pl.col("loss").log()
    return value(logs, lr, level) - value(logs, lr, level, "sgd")


def share_left(lr: float, level: int) -> Reading:
    """The log gap at an SVAG level, in parts of the mean without SVAG, of seeds that have both."""

    def read(records: Records) -> lab.PerSeed:
        before, after = log_gap(lr, 1)(records), log_gap(lr, level)(records)
        both = lab.PerSeed({s: before.values[s] for s in (before - after).values})
        return lab.PerSeed({s: after.values[s] for s in both.values}) / both.mean()

    return Reading(read)


def variance(order: str, curvature: float, over: str | None = None) -> Reading:
    """The ratio of stationary variances at one lr x sharpness, or of it over a column."""
    ratio = pl.col("measured_ratio") / (pl.col(over) if over else 1.0)
    return of("stationary", ratio, order=order, curvature=curvature)


def exact_order(alpha: float) -> Reading:
    """The slope of log gap on log lr, of the noise at which it is farther from 1 - alpha."""

    def slope(noise: str) -> Reading:
        def read(records: Records) -> lab.Effect:
            rows = records["recursions"].filter(alpha=alpha, noise=noise)
            log_lr = -math.log(2) * rows["exponent"].to_numpy()
            return lab.slope(log_lr, np.log(rows["exact_gap"].to_numpy()))

        return Reading(read)

    return worst(map(slope, NOISES), 1 - alpha)


def simulated_order(alpha: float, exponents: Sequence[int]) -> Reading:
    """The same of the simulated paths, averaged over seeds before the largest gap is taken."""
    log_lr = -math.log(2) * np.array(exponents)

    def slope(gaps: np.ndarray) -> float:
        largest = abs(gaps.reshape(len(exponents), TIMES)).max(1)
        return float(np.polyfit(log_lr, np.log(largest), 1)[0])

    gaps = [gap for exponent in exponents for gap in path_gaps(alpha, exponent)]
    return of_means(gaps, slope, least=8)


def path_gaps(alpha: float, exponent: int) -> list[Reading]:
    """The gap of the simulated paths at each of the times."""
    gaps = (pl.col("path_gaps").list.get(time) for time in range(TIMES))
    return [of("paths", gap, alpha=alpha, exponent=exponent) for gap in gaps]


def largest_gap(records: Records, alpha: float, exponent: int) -> float:
    """The largest over the times, of means over seeds."""
    return max(abs(gap(records).mean()) for gap in path_gaps(alpha, exponent))
