"""What the papers predict of SVAG and of scaled batches, and where the predictions must fail."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import polars as pl

from undertow import lab
from undertow.claims import Records
from undertow.claims.adaptive_sde import FACTOR, SHORT_FACTORS, AdaptiveSde
from undertow.claims.adaptive_sde.experiments import OPTIMIZERS, TEXTS, times
from undertow.lab import (
    Prediction,
    Reading,
    at_most,
    at_most_times,
    near,
    no_less,
    of,
    of_means,
    within,
)

WITH = ("", ", RMSprop")
RIVALS = {"linear": "linear", "none": "no scaling"}
APART = dict.fromkeys(("deviation", "share", "predicted", "predicted_share"), pl.Float64)
BETAS = {"long memory": "betas of 0.998 and 0.9995", "RMSprop": "RMSprop", "text": "text"}


def predictions(knobs: AdaptiveSde) -> dict[str, Prediction]:
    """Of the oscillator, the network under SVAG, and batch sizes; thresholds are the pilots'."""
    return (
        _of_oscillators(knobs)
        | _of_limits(knobs)
        | _of_rule(knobs)
        | _of_edges()
        | _of_averages(knobs)
    )


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


def _of_oscillators(knobs: AdaptiveSde) -> dict[str, Prediction]:
    orders, controls = {}, {}
    for process, name in OPTIMIZERS.items():
        orders[f"weak order of SVAG, {name}"] = near(
            -2, 0.25, order(process, knobs), "1/l^2, with the next order eliminated", against=1
        )
        read, why = kept_error(process, knobs), "of the bare rule's error at the finest l"
        controls[f"error kept with weaker noise, {name}"] = no_less(0.5, read, why, control=True)
    return orders | controls


def _of_limits(knobs: AdaptiveSde) -> dict[str, Prediction]:
    *_, before, last = knobs.limit_levels
    weaker = "noise whose sd grows as sqrt(l) has another limit"
    found: dict[str, Prediction] = {}
    for optimizer, name in OPTIMIZERS.items():
        right, weak = (nearer(optimizer, weights, knobs) for weights in ("svag", "too weak"))
        found |= {
            f"{name}, SVAG({before}) over SVAG(1): distance from SVAG({last})": at_most(
                0.4, right, "the trajectories converge", against=1
            ),
            f"{name} with weaker noise: the same": no_less(1, weak, weaker, control=True),
        }
    return found | {
        "Adam's own distance from its SDE, noisy labels": at_most(
            0.1, share_of_drop("adam", knobs), "of the drop in log loss", against=0.5
        )
    }


def _of_rule(knobs: AdaptiveSde) -> dict[str, Prediction]:
    whole, largest = "square root", max(knobs.factors)
    factors: dict[str, tuple[int, ...]] = dict.fromkeys(
        ("noisy labels", "RMSprop"), (FACTOR, largest)
    )
    # At the largest batch signal dominates in these: the rule is then the best of three bad ones.
    factors |= {name + more: (FACTOR,) for name in ("clean labels", "CNN") for more in WITH}
    cells = [(s, k, rival) for s, own in factors.items() for k in own for rival in RIVALS]
    # At k = 4 text's linear runs lie within what the order of the data alone does to a curve.
    last = max(knobs.text_factors)
    for series in TEXTS:
        cells += [(series, FACTOR, "none"), *((series, last, rival) for rival in RIVALS)]
    found = {
        f"{series}, k = {k}: square root over {RIVALS[rival]}": at_most_times(
            0.5, scaled(series, k, whole), scaled(series, k, rival), against=1
        )
        for series, k, rival in cells
    }
    slower, measured = (
        scaled("noisy labels", FACTOR, "none", column) for column in ("predicted", "deviation")
    )
    kept, lost = (
        scaled("noisy labels", largest, scaling, "accuracy_change") for scaling in (whole, "none")
    )
    accuracy = "change of test accuracy"
    return found | {
        f"no scaling, k = {FACTOR}: predicted over measured deviation": within(
            *(0.8, 1.25, slower / measured),
            "it is the base curve, sqrt(k) times slower",
            against=(0.5, 2),
        ),
        f"{accuracy}, square root, k = {largest}": at_most(
            0.02, kept, "on noisy labels", against=0.05
        ),
        f"{accuracy}, no scaling, k = {largest}": no_less(0.05, lost, "it shows", control=True),
    }


def _of_edges() -> dict[str, Prediction]:
    """Where the rule must break: signal in the gradients, more than beta1 can follow; its betas."""
    whole, last = "square root", SHORT_FACTORS[-1]
    clean, noisy = (scaled(f"{kind} labels", FACTOR, whole, "share") for kind in ("clean", "noisy"))
    growth = scaled("short memory", last, whole) / scaled("short memory", FACTOR, whole)
    found = {
        f"clean over noisy labels: the rule's deviation over the drop in loss, k = {FACTOR}": (
            no_less(2, clean / noisy, "it needs noise to dominate", control=True)
        ),
        f"beta1 = 0.9 at k = {last} over k = {FACTOR}: the rule's deviation": no_less(
            4, growth, "beyond k = 1 / (1 - beta1) = 10 beta1 cannot follow", control=True
        ),
    }
    for series, name in BETAS.items():
        ratio = scaled(series, FACTOR, "learning rate only") / scaled(series, FACTOR, whole)
        found[f"{name}, k = {FACTOR}: learning rate only over the whole rule"] = no_less(
            1.5, ratio, "the betas must scale, too; a ratio of deviations", against=1
        )
    return found


def _of_averages(knobs: AdaptiveSde) -> dict[str, Prediction]:
    """What the betas become: to first order, half-lives in samples are what the equation has."""
    largest = max(knobs.factors)
    cells = [("noisy labels", factor, f"k = {factor}") for factor in knobs.factors]
    cells += [("RMSprop", largest, f"RMSprop, k = {largest}")]
    cells += [("long memory", largest, f"{BETAS['long memory']}, k = {largest}")]
    cells += [("text", max(knobs.text_factors), f"text, k = {max(knobs.text_factors)}")]
    found: dict[str, Prediction] = {}
    for series, factor, name in cells:
        halved, whole, kept = (
            scaled(series, factor, scaling)
            for scaling in ("half-life", "square root", "learning rate only")
        )
        found[f"{name}: beta^k over 1 - k (1 - beta)"] = within(
            *(0.8, 1.25, halved / whole),
            "they agree to first order; a ratio of deviations",
            against=(0.5, 2),
        )
        if series != "noisy labels":
            found[f"{name}: betas kept over beta^k"] = no_less(
                1.5, kept / halved, "a long memory must scale; a ratio of deviations", against=1
            )
    return found


# ---- readings of SVAG


def error(process: str, level: int, weights: str = "svag") -> Reading:
    """Of E x^2, in each block."""
    difference = pl.col("moment") - pl.col("sde")
    return of("oscillators", difference, process=process, level=level, weights=weights)


def order(process: str, knobs: AdaptiveSde) -> Reading:
    """The power of l in the error's leading term, from the three finest levels.

    In the step of time, lr^2 / l^2, the weak error has whole powers: it is C / l^2 + D / l^4 + ...
    Two levels a and b = r a give (r^4 e(b) - e(a)) / (r^2 - 1) = C / a^2, without D.
    """
    levels = np.array(knobs.levels[-3:], dtype=float)

    def power(errors: np.ndarray) -> float:
        ratios = levels[1:] / levels[:-1]
        leading = np.abs((ratios**4 * errors[1:] - errors[:-1]) / (ratios**2 - 1))
        return float(np.log(leading[1] / leading[0]) / np.log(levels[1] / levels[0]))

    return of_means([error(process, int(level)) for level in levels], power)


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


def from_limit(optimizer: str, level: int, weights: str, knobs: AdaptiveSde) -> Reading:
    """The distance of a level's mean curve from the last one's, which stands for the SDE."""
    limit = curve(optimizer, knobs.limit_levels[-1], knobs)
    own = curve(optimizer, level, knobs, weights=weights)
    return of_means([own, limit], lambda curves: distance(*curves))


def nearer(optimizer: str, weights: str, knobs: AdaptiveSde) -> Reading:
    """The distance of the level before the last one, over that of the bare optimizer."""
    *_, before, last = knobs.limit_levels
    limit, bare = (curve(optimizer, level, knobs) for level in (last, 1))
    fine = curve(optimizer, before, knobs, weights=weights)
    return of_means([limit, bare, fine], lambda c: distance(c[2], c[0]) / distance(c[1], c[0]))


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


def scaled(series: str, factor: int, scaling: str, column: str = "deviation") -> Reading:
    """A column of `deviations`."""
    experiment = "text" if series in TEXTS else "images"
    where: dict[str, Any] = {"series": series, "factor": factor, "scaling": scaling}
    return Reading(lambda found: lab.per_seed(deviations(found[experiment]), column, **where))


def deviations(runs: pl.DataFrame) -> pl.DataFrame:
    """How far each run is from the base run of its seed, one row a run.

    `deviation` is the mean over epochs of |difference of log loss|, `share` that over the base
    run's drop. Of runs without scaling, `predicted` is the deviation that the SDE says, and
    `predicted_share` its share: at k times the batch an unchanged learning rate is the square-root
    rule's over sqrt(k), and where noise is averaged out over the path only the speed of the drift
    matters, so that the run is the base run, sqrt(k) times as slow.
    """
    keys = ["series", "seed"]
    facts = pl.col("factor", "scaling", "clipped", "accuracy", "test_log_loss", "noise_to_signal")
    trials = lab.kept(runs).sort("epoch").group_by("trial", *keys, maintain_order=True)
    curves = trials.agg(facts.first(), pl.col("epoch", "log_loss"))
    base = curves.filter(scaling="base")
    pairs = curves.filter(pl.col("scaling") != "base").join(base, on=keys, suffix="_base")
    apart = pl.struct("scaling", "factor", "epoch", "log_loss", "log_loss_base").map_elements(
        _apart, return_dtype=pl.Struct(APART)
    )
    return pairs.select(
        *("trial", "series", "factor", "scaling", "seed", "clipped"),
        apart.alias("apart"),
        accuracy_change=(pl.col("accuracy") - pl.col("accuracy_base")).abs(),
        test_change=(pl.col("test_log_loss") - pl.col("test_log_loss_base")).abs(),
        noise=pl.col("noise_to_signal_base") / pl.col("factor"),
    ).unnest("apart")


def _apart(run: dict[str, Any]) -> dict[str, float | None]:
    epochs, own, base = (np.array(run[name]) for name in ("epoch", "log_loss", "log_loss_base"))
    far, drop = distance(own[1:], base[1:]), base[0] - base[-1]
    found = {"deviation": far, "share": far / drop}
    if run["scaling"] != "none":
        return found
    slow = np.interp(epochs / math.sqrt(run["factor"]), epochs, base)
    far = distance(slow[1:], base[1:])
    return found | {"predicted": far, "predicted_share": far / drop}
