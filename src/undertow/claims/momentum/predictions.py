"""What the paper predicts of momentum beside SGD, and where the prediction must fail."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import polars as pl

from undertow import lab
from undertow.claims import Records
from undertow.claims.momentum import Momentum
from undertow.claims.momentum.experiments import CURVATURES, ORDERS, TIMES
from undertow.lab import Prediction, Reading, at_most, near, no_less, of, of_means, outside, worst

LOSS, ACCURACY = 0.02, 0.01  # within which two are equivalent
SEEN = ("loss", "test_loss", "accuracy")
PLAIN: dict[str, Any] = {"kind": "plain", "level": 1}  # of the networks


def predictions(knobs: Momentum) -> dict[str, Prediction]:
    """Over 1 / lr and 1 / lr^2 steps, at rest, on networks, tuned, and of a language model."""
    return _of_paths(knobs) | _at_rest() | _of_networks(knobs) | _of_tuned(knobs) | _of_text(knobs)


def summary(records: Records, knobs: Momentum) -> str:
    """How many networks diverged."""
    diverged, total = lab.lost(records, "networks", "tuned", "language")
    return (
        f"{diverged} of {total} trials diverged; networks are compared at effective learning rates "
        f"{knobs.small_lr:g} and {knobs.large_lr:g}, and each method at its own best one."
    )


def _of_paths(knobs: Momentum) -> dict[str, Prediction]:
    found: dict[str, Prediction] = {}
    for alpha in ORDERS:
        name, read = f"order of the weak error, alpha = {alpha:g}", simulated_order(alpha, knobs)
        if alpha == 1:
            found[name] = at_most(0.25, read, "it does not close as at alpha = 1/2", control=True)
        else:  # The theorem guarantees half of it: only less than that would speak against it.
            found[name] = near(1 - alpha, 0.1, read, "1 - alpha", against=(1 - alpha) / 2)
    finest = 2.0 ** -max(knobs.long_exponents)
    by = f"lr = 1/{1 / finest:g}"
    for method in ("sgd", "momentum"):
        exact = drift(method, finest) / drift(method, finest, "predicted")
        found[f"drift along minima over the exact one, {method}, {by}"] = near(
            1, 0.02, exact, "over 1 / lr^2 steps", against=0.5
        )
    return found | {
        "order in lr of the difference of the two drifts": near(
            1, 0.2, order_of_drifts(knobs), "it vanishes with lr", against=1
        ),
        f"drift along minima at the same raw lr, momentum over SGD, {by}": outside(
            1, 0.5, drift("raw", finest) / drift("sgd", finest), "too fast", control=True
        ),
    }


def _at_rest() -> dict[str, Prediction]:
    independent = worst((variance("replacement", c, "predicted_ratio") for c in CURVATURES), 1)
    return {
        "stationary variance ratio over its exact moments": near(
            1, 0.05, independent, f"at the worst of lr x sharpness {CURVATURES}", against=0.5
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
    }


def _of_networks(knobs: Momentum) -> dict[str, Prediction]:
    small, large = knobs.small_lr, knobs.large_lr
    finest, coarsest = max(knobs.levels), min(knobs.levels)
    edge = value("networks", "edge", lr=large, **PLAIN)
    plain, svag = (abs(log_gap(large, coarsest, kind)) for kind in ("plain", "svag"))
    losses = "train loss, momentum - SGD"
    return {
        f"{losses}, lr {small:g}": alike(LOSS, gap("networks", lr=small)),
        f"test accuracy, momentum - SGD, lr {small:g}": alike(
            ACCURACY, gap("networks", "accuracy", lr=small)
        ),
        f"{losses}, the same raw lr, {small:g}": unlike(gap("networks", method="raw", lr=small)),
        f"log {losses}, lr {large:g}": at_most(
            -0.05, log_gap(large), "with large steps momentum is better", against=0
        ),
        f"lr x sharpness of the momentum runs, lr {large:g}": no_less(
            2, edge, "they go where plain descent is unstable"
        ),
        f"log {losses}, lr {large:g}, full batches": at_most(
            -0.5, log_gap(large, 1, "full batch"), "it is not noise that it helps with", against=0
        ),
        f"log {losses}, {finest} times as many steps of lr {large / finest:g}": near(
            0, 0.1, log_gap(large, finest, "plain"), "smaller steps close the gap", against=1
        ),
        f"what SVAG leaves of the gap, less what plain steps leave, l = {coarsest}": no_less(
            0, svag - plain, "to keep the noise closes no more of it", control=True
        ),
    }


def _of_tuned(knobs: Momentum) -> dict[str, Prediction]:
    """Where noise sets the best rate, and on clean labels, where stability does."""

    def apart(column: str, size: int, noise: float) -> Reading:
        return tuned("tuned", column, knobs.tuned_lrs, batch_size=size, label_noise=noise)

    found: dict[str, Prediction] = {}
    for size in knobs.tuned_batches:
        train, test, accuracy = (apart(name, size, knobs.label_noise) for name in SEEN)
        at = f"tuned, momentum - SGD, noisy labels, batch {size}"
        found[f"train loss, {at}"] = no_less(-LOSS, train, "nothing gained", against=-5 * LOSS)
        found[f"test loss, {at}"] = alike(LOSS, test)
        found[f"test accuracy, {at}"] = alike(ACCURACY, accuracy)
    accuracy, loss = (apart(name, size, 0.0) for name in ("accuracy", "log_loss"))
    at = f"tuned, momentum - SGD, clean labels, batch {size}"
    return found | {
        f"test accuracy, {at}": alike(ACCURACY, accuracy),
        f"log train loss, {at}": at_most(
            -0.2, loss, "stability sets the rate, and it gains", control=True
        ),
    }


def _of_text(knobs: Momentum) -> dict[str, Prediction]:
    small = knobs.tuning_lrs[0]
    at = f"momentum - SGD, lr {small:g}"
    return {
        f"language model, train loss, {at}": alike(LOSS, gap("language", lr=small)),
        f"language model, test loss, {at}": alike(LOSS, gap("language", "test_loss", lr=small)),
        "language model, test loss, tuned, momentum - SGD": alike(
            LOSS, tuned("language", "test_loss", knobs.tuning_lrs)
        ),
        f"language model, train loss at the same raw lr, {at}": unlike(
            gap("language", method="raw", lr=small)
        ),
    }


def alike(margin: float, read: Reading) -> Prediction:
    """That two are equivalent; five times the margin would speak against it."""
    return near(0, margin, read, "equivalent", against=5 * margin)


def unlike(raw: Reading) -> Prediction:
    """The control: that at the same raw learning rate train losses are not equivalent."""
    return outside(0, LOSS, raw, "not without the factor", control=True)


# ---- readings


def value(experiment: str, column: str | pl.Expr, method: str = "momentum", **cell: Any) -> Reading:
    """A method's value in one cell."""
    return of(experiment, column, ~pl.col("diverged"), method=method, **cell)


def gap(experiment: str, column: str = "loss", *, method: str = "momentum", **cell: Any) -> Reading:
    """A method's value less that of SGD."""
    cell |= PLAIN if experiment == "networks" and "kind" not in cell else {}
    return value(experiment, column, method, **cell) - value(experiment, column, "sgd", **cell)


def log_gap(lr: float, level: int = 1, kind: str = "plain") -> Reading:
    """Log train loss of momentum less that of SGD, with finer steps or in full batches."""
    return gap("networks", "log_loss", lr=lr, level=level, kind=kind)


def tuned(experiment: str, column: str, rates: Sequence[float], **cell: Any) -> Reading:
    """Momentum at its best rate less SGD at its own, by what is read: a loss or an accuracy."""
    best: Any = "largest" if column == "accuracy" else "smallest"
    momentum, plain = (
        lab.best_elsewhere([value(experiment, column, method, lr=r, **cell) for r in rates], best)
        for method in ("momentum", "sgd")
    )
    return momentum - plain


def drift(method: str, lr: float, column: str = "log_left") -> Reading:
    """How far log u^2 - v^2 fell in 1 / lr^2 steps."""
    return -of("long", column, method=method, lr=lr)


def order_of_drifts(knobs: Momentum) -> Reading:
    """The power of lr in the difference of SGD's drift and momentum's."""
    rates = [2.0**-exponent for exponent in sorted(knobs.long_exponents)]
    apart = [drift("sgd", lr) - drift("momentum", lr) for lr in rates]
    return of_means(apart, lambda far: power(rates, far))


def variance(order: str, curvature: float, over: str | None = None) -> Reading:
    """The ratio of stationary variances at one lr x sharpness, or of it over a column."""
    ratio = pl.col("measured_ratio") / (pl.col(over) if over else 1.0)
    return of("stationary", ratio, order=order, curvature=curvature)


def simulated_order(alpha: float, knobs: Momentum) -> Reading:
    """The power of lr in the gap, averaged over seeds before the largest over time is taken."""
    rates = [2.0**-exponent for exponent in knobs.path_exponents]
    gaps = [path_gaps(alpha, exponent) for exponent in knobs.path_exponents]
    return of_means(gaps, lambda means: power(rates, abs(means).max(1)), least=8)


def power(rates: Sequence[float], far: np.ndarray) -> float:
    """Of the rates, by which |far| grows: the slope of the logarithms."""
    return float(np.polyfit(np.log(rates), np.log(np.abs(far)), 1)[0])


def path_gaps(alpha: float, exponent: int) -> list[Reading]:
    """The gap of the simulated paths at each of the times."""
    gaps = (pl.col("path_gaps").list.get(time) for time in range(TIMES))
    return [of("paths", gap, alpha=alpha, exponent=exponent) for gap in gaps]
