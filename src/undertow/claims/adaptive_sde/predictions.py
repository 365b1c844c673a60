"""What the papers predict of SVAG and of scaled batches, and where the predictions must fail."""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import partial
from typing import Any

import numpy as np
import polars as pl

from undertow import lab
from undertow.claims import Records
from undertow.claims.adaptive_sde import FACTOR, SHORT_FACTORS, AdaptiveSde
from undertow.claims.adaptive_sde.experiments import OPTIMIZERS, TEXTS, times
from undertow.lab import Prediction, Reading, at_most, at_most_times, near, no_less, of, of_means

WITH = ("", ", RMSprop")
RULE = "square root"
RIVALS = {"linear": "linear", "none": "no scaling"}
BETAS = {"long memory": "betas of 0.998 and 0.9995", "RMSprop": "RMSprop", "text": "text"}


def predictions(knobs: AdaptiveSde) -> dict[str, Prediction]:
    """Of the oscillator, the network under SVAG, and batch sizes; thresholds are the pilots'."""
    return _of_svag(knobs) | _of_rule(knobs) | _of_edges() | _of_averages(knobs)


def promises_verdict(records: Records, knobs: AdaptiveSde) -> bool:
    """Whether text, too, has seeds enough."""
    return knobs.text_seeds >= 8


def summary(records: Records, knobs: AdaptiveSde) -> str:
    """What was lost, and what a deviation is."""
    diverged, _ = lab.lost(records, "images", "text")
    lost = records["limits"].select(pl.col("lost").max()).item()
    return (
        f"{diverged} training runs diverged, and at most {lost} of a start's replicas. "
        "Deviation is the mean |difference of log training loss| from the run at the base batch "
        "with the same seed, at equal epochs."
    )


def _of_svag(knobs: AdaptiveSde) -> dict[str, Prediction]:
    """Its order on the oscillator, and the network's trajectories."""
    *_, before, last = knobs.limit_levels
    orders, controls, curves = {}, {}, {}
    for process, name in OPTIMIZERS.items():
        orders[f"weak order of SVAG, {name}"] = near(
            -2, 0.25, order(process, knobs), "1/l^2, with the next order eliminated", against=1
        )
        read, why = kept_error(process, knobs), "of the bare rule's error at the finest l"
        controls[f"error kept with weaker noise, {name}"] = no_less(0.5, read, why, control=True)
        right, weak = (nearer(process, before, kind, knobs) for kind in ("svag", "too weak"))
        curves[f"{name}, SVAG({before}) over SVAG(1): distance from SVAG({last})"] = at_most(
            0.4, right, "the trajectories converge", against=1
        )
        curves[f"{name} with weaker noise: the same"] = no_less(
            1, weak, "noise whose sd grows as sqrt(l) has another limit", control=True
        )
    return (orders | controls | curves) | {
        "Adam's own distance from its SDE, noisy labels": at_most(
            0.1, share_of_drop("adam", knobs), "of the drop in log loss", against=0.5
        )
    }


def _of_rule(knobs: AdaptiveSde) -> dict[str, Prediction]:
    """The rule beside its rivals; at k = 4 text's linear runs are as near as another data order."""
    largest, last = max(knobs.factors), max(knobs.text_factors)
    # At the largest batch signal dominates in the others: the rule is then the best of three bad.
    factors: dict[str, tuple[int, ...]]
    factors = dict.fromkeys(("noisy labels", "RMSprop"), (FACTOR, largest))
    factors |= {name + more: (FACTOR,) for name in ("clean labels", "CNN") for more in WITH}
    cells = [(s, k, rival) for s, own in factors.items() for k in own for rival in RIVALS]
    for series in TEXTS:
        cells += [(series, FACTOR, "none"), (series, last, "none")]
    cells.append(("text", last, "linear"))  # by RMSprop linear scaling is about half as far off
    found = {
        f"{series}, k = {k}: square root over {RIVALS[rival]}": at_most_times(
            0.5, scaled(series, k), scaled(series, k, rival), against=1
        )
        for series, k, rival in cells
    }
    noisy = partial(scaled, "noisy labels")
    slower = noisy(FACTOR, "none", "predicted") / noisy(FACTOR, "none")
    kept, lost = (noisy(largest, scaling, "accuracy_change") for scaling in (RULE, "none"))
    accuracy = "change of test accuracy"
    return found | {
        f"no scaling, k = {FACTOR}: predicted over measured deviation": alike(
            slower, "it is the base curve, sqrt(k) times slower"
        ),
        f"{accuracy}, square root, k = {largest}": at_most(
            0.02, kept, "on noisy labels", against=0.05
        ),
        f"{accuracy}, no scaling, k = {largest}": no_less(0.05, lost, "it shows", control=True),
    }


def _of_edges() -> dict[str, Prediction]:
    """Where the rule must break: signal in the gradients, more than beta1 can follow."""
    last = SHORT_FACTORS[-1]
    clean, noisy = (scaled(f"{kind} labels", FACTOR, RULE, "share") for kind in ("clean", "noisy"))
    growth = scaled("short memory", last) / scaled("short memory", FACTOR)
    return {
        f"clean over noisy labels: the rule's deviation over the drop in loss, k = {FACTOR}": (
            no_less(2, clean / noisy, "it needs noise to dominate", control=True)
        ),
        f"beta1 = 0.9 at k = {last} over k = {FACTOR}: the rule's deviation": no_less(
            4, growth, "beyond k = 1 / (1 - beta1) = 10 beta1 cannot follow", control=True
        ),
    }


def _of_averages(knobs: AdaptiveSde) -> dict[str, Prediction]:
    """What the betas become: to first order, half-lives in samples are what the equation has."""
    found: dict[str, Prediction] = {}
    for series, name in BETAS.items():
        ratio = scaled(series, FACTOR, "learning rate only") / scaled(series, FACTOR)
        found[f"{name}, k = {FACTOR}: learning rate only over the whole rule"] = no_less(
            1.5, ratio, "the betas must scale, too; a ratio of deviations", against=1
        )
    cells = [("noisy labels", factor, f"k = {factor}") for factor in knobs.factors]
    for series in ("RMSprop", "long memory", "text"):
        largest = max(knobs.text_factors if series == "text" else knobs.factors)
        cells.append((series, largest, f"{BETAS[series]}, k = {largest}"))
    for series, factor, name in cells:
        halved = scaled(series, factor, "half-life")
        found[f"{name}: beta^k over 1 - k (1 - beta)"] = alike(
            halved / scaled(series, factor), "they agree to first order; a ratio of deviations"
        )
        if series in BETAS:
            kept = scaled(series, factor, "learning rate only") / halved
            found[f"{name}: betas kept over beta^k"] = no_less(
                1.5, kept, "a long memory must scale; a ratio of deviations", against=1
            )
    return found


def alike(ratio: Reading, why: str) -> Prediction:
    """That two deviations are the same; a factor of two would speak against it."""
    return lab.within(0.8, 1.25, ratio, why, against=(0.5, 2))


# ---- readings of SVAG


def error(process: str, level: int, weights: str = "svag") -> Reading:
    """Of E x^2, in each block."""
    difference = pl.col("moment") - pl.col("sde")
    return of("oscillators", difference, process=process, level=level, weights=weights)


def order(process: str, knobs: AdaptiveSde) -> Reading:
    """The power of l in the error's leading term, from the three finest levels.

    In the step of time, lr^2 / l^2, the weak error has whole powers: it is C / l^2 + D / l^4 + ...
    """
    levels = knobs.levels[-3:]
    errors = [error(process, level) for level in levels]
    return of_means(errors, lambda means: lab.leading_power(levels, means, (-2, -4)))


def kept_error(process: str, knobs: AdaptiveSde) -> Reading:
    """|Error| at the finest level with noise that is too weak, over that of the bare rule."""
    weak = error(process, knobs.levels[-1], "too weak")
    return of_means([weak, error(process, 1)], lambda errors: abs(errors[0] / errors[1]))


def curve(
    optimizer: str, level: int, knobs: AdaptiveSde, *, weights: str = "svag", noise: float = 0.0
) -> list[Reading]:
    """The log loss at each time after 0, of starts that were not lost; on clean labels."""
    where: dict[str, Any] = {"optimizer": optimizer, "label_noise": noise, "weights": weights}
    readings = [of("limits", "log_loss", level=level, time=t, **where) for t in times(knobs)[1:]]
    return [reading.then(lab.PerSeed.known) for reading in readings]


def distance(first: np.ndarray, second: np.ndarray) -> float:
    """Mean over time of |difference|."""
    return float(np.abs(first - second).mean())


def nearer(optimizer: str, level: int, weights: str, knobs: AdaptiveSde) -> Reading:
    """How far a level's mean curve is from the last one's, the SDE's, over the bare optimizer's."""
    limit, bare = (curve(optimizer, at, knobs) for at in (knobs.limit_levels[-1], 1))
    own = curve(optimizer, level, knobs, weights=weights)
    return of_means([limit, bare, own], lambda c: distance(c[2], c[0]) / distance(c[1], c[0]))


def share_of_drop(optimizer: str, knobs: AdaptiveSde) -> Reading:
    """How far the bare optimizer's mean curve lies to one side of the finest, over the drop.

    The difference is averaged over time with its sign, so that what replicas leave of noise is not
    taken for distance.
    """
    noise = knobs.label_noise
    start = of("limits", "log_loss", label_noise=noise, time=0.0, optimizer=optimizer, level=1)
    bare, fine = (curve(optimizer, at, knobs, noise=noise) for at in (1, knobs.limit_levels[-1]))

    def share(means: np.ndarray) -> float:
        begin, first, second = means[0, 0], means[1], means[2]
        return float(abs((first - second).mean()) / (begin - second[-1]))

    return of_means([[start] * len(bare), bare, fine], share)


# ---- readings of batch sizes


def scaled(series: str, factor: int, scaling: str = RULE, column: str = "deviation") -> Reading:
    """A column of `deviations`."""
    experiment = "text" if series in TEXTS else "images"
    where: dict[str, Any] = {"series": series, "factor": factor, "scaling": scaling}
    return Reading(lambda found: lab.per_seed(deviations(found[experiment]), column, **where))


@lab.once
def deviations(runs: pl.DataFrame) -> pl.DataFrame:
    """How far each run is from the base run of its seed, one row a run.

    `deviation` is the mean over epochs of |difference of log loss|, `share` that over the base
    run's drop. Of runs without scaling, `predicted` is the deviation that the SDE says, and
    `predicted_share` its share: at k times the batch an unchanged learning rate is the square-root
    rule's over sqrt(k), and where noise is averaged out over the path only the speed of the drift
    matters, so that the run is the base run, sqrt(k) times as slow.
    """
    rows, keys = lab.kept(runs), ("series", "seed", "epoch")
    own, base = rows.filter(pl.col("scaling") != "base"), rows.filter(scaling="base")
    pairs = own.join(base, on=keys, suffix="_base").sort("epoch")
    log_loss, loss_base = pl.col("log_loss"), pl.col("log_loss_base")
    facts = ["trial", "series", "factor", "scaling", "seed", "clipped"]
    found = pairs.group_by(facts, maintain_order=True).agg(
        deviation=(log_loss - loss_base).slice(1).abs().mean(),
        drop=loss_base.first() - loss_base.last(),
        accuracy_change=(pl.col("accuracy") - pl.col("accuracy_base")).first().abs(),
        test_change=(pl.col("test_log_loss") - pl.col("test_log_loss_base")).first().abs(),
        noise=(pl.col("noise_to_signal_base") / pl.col("factor")).first(),
    )
    given = ["epoch", "log_loss_base", "factor"]
    slowed = pl.map_groups(given, _slowed, pl.Float64, returns_scalar=True)
    unscaled = pairs.filter(scaling="none").group_by("trial").agg(predicted=slowed)
    return found.join(unscaled, on="trial", how="left", maintain_order="left").with_columns(
        share=pl.col("deviation") / pl.col("drop"),
        predicted_share=pl.col("predicted") / pl.col("drop"),
    )


def _slowed(columns: Sequence[pl.Series]) -> float:
    """How far a base run's curve is from itself sqrt(k) times slower."""
    epochs, base, factors = (column.to_numpy() for column in columns)
    return distance(np.interp(epochs / math.sqrt(factors[0]), epochs, base)[1:], base[1:])
