"""What the papers predict of SVAG and of scaled batches, and where the predictions must fail."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import polars as pl

from undertow import lab
from undertow.claims import Records
from undertow.claims.adaptive_sde import FACTOR, SHORT_FACTORS, AdaptiveSde
from undertow.claims.adaptive_sde.experiments import OPTIMIZERS, PROCESSES, times
from undertow.lab import Prediction, Reading, at_most, no_less, of, of_means, within

RIVALS = {"linear": "linear", "none": "no scaling"}
BETAS = {"long memory": "betas of 0.998 and 0.9995", "RMSprop": "RMSprop", "text": "text"}
_WILCOXON = 10  # runs from which on its p-value is asked for


def predictions(knobs: AdaptiveSde) -> dict[str, Prediction]:
    """Of the oscillator, the network under SVAG, and batch sizes; thresholds are the pilots'."""
    return _of_oscillators(knobs) | _of_limits(knobs) | _of_rule(knobs) | _of_edges()


def promises_verdict(records: Records, knobs: AdaptiveSde) -> bool:
    """Whether text, too, has seeds enough."""
    return knobs.text_seeds >= 5


def summary(records: Records, knobs: AdaptiveSde) -> str:
    """What was lost, and what a deviation is."""
    runs = every_run(records, lambda frame: frame.select("trial", "diverged"))
    lost = records["limits"].select(pl.col("lost").max()).item()
    return (
        f"{runs.filter('diverged')['trial'].n_unique()} training runs diverged, and at most {lost} "
        "of a start's replicas. Deviation is the mean |difference of log training loss| from the "
        "run at the base batch with the same seed, at equal epochs."
    )


def _of_oscillators(knobs: AdaptiveSde) -> dict[str, Prediction]:
    found = {}
    for process, name in PROCESSES.items():
        read = order(process, knobs)
        rule = within(-2.6, -1.6, read, "order 1/l^2, over l of at least 2")
        if process == "sgd":
            rule = within(-1.25, -0.85, read, "the slope of log error on log l: order 1/l")
        found[f"weak order of SVAG, {name}"] = rule
    for process, name in PROCESSES.items():
        found[f"error kept with weaker noise, {name}"] = no_less(
            0.5,
            kept_error(process, knobs),
            "of the bare rule's error at the finest l",
            control=True,
        )
    return found


def _of_limits(knobs: AdaptiveSde) -> dict[str, Prediction]:
    *_, before, last = knobs.limit_levels
    weaker = "noise whose sd grows as sqrt(l) has another limit"
    found: dict[str, Prediction] = {}
    for optimizer, name in OPTIMIZERS.items():
        right, weak = (nearer(optimizer, weights, knobs) for weights in ("svag", "too weak"))
        found |= {
            f"{name}, SVAG({before}) over SVAG(1): distance from SVAG({last})": at_most(
                0.4, right, "the trajectories converge"
            ),
            f"{name} with weaker noise: the same": no_less(1, weak, weaker, control=True),
            f"{name}'s own distance from its SDE, noisy labels": at_most(
                0.1, share_of_drop(optimizer, knobs), "of the drop in log loss"
            ),
        }
    return found


def _of_rule(knobs: AdaptiveSde) -> dict[str, Prediction]:
    largest = max(knobs.factors)
    factors = {"noisy labels": (FACTOR, largest), "RMSprop": (FACTOR, largest)}
    cells = [(s, k, rival) for s, own in factors.items() for k in own for rival in RIVALS]
    # At k = 4 text's linear runs lie within what the order of the data alone does to a curve.
    cells += [("text", FACTOR, "none"), *(("text", max(knobs.text_factors), r) for r in RIVALS)]
    found = {
        f"{series}, k = {k}: square root over {RIVALS[rival]}": at_most_half(
            scaled(series, k, "square root"), scaled(series, k, rival)
        )
        for series, k, rival in cells
    }
    slower = of_runs(slower_bases, "predicted", series="noisy labels", factor=FACTOR)
    kept, lost = (
        scaled("noisy labels", largest, scaling, "accuracy_change")
        for scaling in ("square root", "none")
    )
    accuracy = "change of test accuracy"
    return found | {
        f"no scaling, k = {FACTOR}: predicted over measured deviation": within(
            *(0.8, 1.25, slower / scaled("noisy labels", FACTOR, "none")),
            "it is the base curve, sqrt(k) times slower",
        ),
        f"{accuracy}, square root, k = {largest}": at_most(0.02, kept, "on noisy labels"),
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
            1.5, ratio, "of deviations: the betas must scale, too"
        )
    return found


def at_most_half(own: Reading, rival: Reading) -> Prediction:
    """By the interval of the ratio, and by Wilcoxon's signed ranks of own - rival / 2."""

    def read(records: Records) -> lab.Effect:
        from scipy.stats import wilcoxon

        margin = list((own - rival / 2)(records).values.values())
        enough = len(margin) >= _WILCOXON
        p_value = float(wilcoxon(margin, alternative="less").pvalue) if enough else None
        return replace((own / rival).effect(records), p_value=p_value)

    def judge(effect: lab.Effect) -> tuple[bool, bool]:
        passed, refuted = rule.judge(effect)
        return passed and (effect.p_value is None or effect.p_value < 0.01), refuted

    rule = at_most(0.5, read, f"with Wilcoxon's p < 0.01 where there are {_WILCOXON} runs")
    return replace(rule, judge=judge)


# ---- readings of SVAG


def error(process: str, level: int, weights: str = "svag") -> Reading:
    """Of E x^2, in each block."""
    difference = pl.col("moment") - pl.col("sde")
    return of("oscillators", difference, process=process, level=level, weights=weights)


def order(process: str, knobs: AdaptiveSde) -> Reading:
    """The slope of log |mean error| on log l, for adaptive rules over levels of at least 2."""
    levels = knobs.levels_of(process)[process != "sgd" :]

    def slope(errors: np.ndarray) -> float:
        return float(np.polyfit(np.log(levels), np.log(np.abs(errors)), 1)[0])

    return of_means([error(process, level) for level in levels], slope)


def kept_error(process: str, knobs: AdaptiveSde) -> Reading:
    """|Error| at the finest level with noise that is too weak, over that of the bare rule."""
    weak = error(process, knobs.levels_of(process)[-1], "too weak")
    return of_means([weak, error(process, 1)], lambda errors: abs(errors[0] / errors[1]))


def of_curves(
    cell: tuple[str, float, AdaptiveSde],
    points: Sequence[tuple[str, int]],
    statistic: Callable[..., float],
) -> Reading:
    """A statistic of mean curves after time 0, one for each of `points`, weights and level.

    The cell is an optimizer, its label noise, and the knobs.
    """
    optimizer, noise, knobs = cell
    where: dict[str, Any] = {"optimizer": optimizer, "label_noise": noise}
    readings = [
        of("limits", "log_loss", weights=weights, level=level, time=time, **where)
        for weights, level in points
        for time in times(knobs)[1:]
    ]
    known = [reading.then(lab.PerSeed.known) for reading in readings]
    return of_means(known, lambda means: statistic(*means.reshape(len(points), -1)))


def distance(first: np.ndarray, second: np.ndarray) -> float:
    """Mean over time of |difference|."""
    return float(np.abs(first - second).mean())


def from_limit(optimizer: str, level: int, weights: str, knobs: AdaptiveSde) -> Reading:
    """The distance of a level from the last one, which stands for the SDE, on clean labels."""
    points = [(weights, level), ("svag", knobs.limit_levels[-1])]
    return of_curves((optimizer, 0.0, knobs), points, distance)


def nearer(optimizer: str, weights: str, knobs: AdaptiveSde) -> Reading:
    """The distance of the level before the last one, over that of the bare optimizer."""
    *_, before, last = knobs.limit_levels
    points = [("svag", last), ("svag", 1), (weights, before)]

    def ratio(limit: np.ndarray, bare: np.ndarray, fine: np.ndarray) -> float:
        return distance(fine, limit) / distance(bare, limit)

    return of_curves((optimizer, 0.0, knobs), points, ratio)


def share_of_drop(optimizer: str, knobs: AdaptiveSde) -> Reading:
    """The bare optimizer's distance where noise dominates, over the drop in log loss."""
    noise, points = knobs.label_noise, [("svag", knobs.limit_levels[-1]), ("svag", 1)]

    def read(records: Records) -> lab.Effect:
        start = of("limits", "log_loss", label_noise=noise, time=0.0)(records).mean()

        def share(limit: np.ndarray, bare: np.ndarray) -> float:
            return distance(bare, limit) / float(start - limit[-1])

        return of_curves((optimizer, noise, knobs), points, share).effect(records)

    return Reading(read)


# ---- readings of batch sizes


def every_run(records: Records, function: Callable[[pl.DataFrame], pl.DataFrame]) -> pl.DataFrame:
    """What the function makes of the runs on images and of those on text."""
    return pl.concat([function(records[name]) for name in ("images", "text")])


def of_runs(function: Callable[[pl.DataFrame], pl.DataFrame], column: str, **where: Any) -> Reading:
    """A column of what the function makes of the runs, where columns equal these values."""
    experiment = "text" if where["series"] == "text" else "images"
    return Reading(lambda records: lab.per_seed(function(records[experiment]), column, **where))


def scaled(series: str, factor: int, scaling: str, column: str = "deviation") -> Reading:
    """A column of `deviations`."""
    return of_runs(deviations, column, series=series, factor=factor, scaling=scaling)


def deviations(runs: pl.DataFrame) -> pl.DataFrame:
    """One row a run: its deviation from the base run of its seed, and that over the base's drop."""
    loss, keys = pl.col("log_loss"), ["series", "seed", "epoch"]
    rows = runs.filter(~pl.col("diverged")).sort("epoch")
    drop = (loss.first() - loss.last()).over("series", "seed")
    base = rows.filter(scaling="base").with_columns(drop=drop)
    base = base.select(*keys, "drop", "log_loss", "accuracy", "test_log_loss")
    both = rows.filter(pl.col("scaling") != "base").join(base, on=keys, suffix="_base")

    def off(name: str) -> pl.Expr:
        return (pl.col(name) - pl.col(f"{name}_base")).abs().mean()

    return (
        both.filter(pl.col("epoch") > 0)
        .group_by("series", "factor", "scaling", "seed", "clipped")
        .agg(
            deviation=off("log_loss"),
            share=off("log_loss") / pl.col("drop").first(),
            accuracy_change=off("accuracy"),
            test_change=off("test_log_loss"),
        )
    )


def slower_bases(runs: pl.DataFrame) -> pl.DataFrame:
    """What the SDE says of runs without scaling: the base curve, sqrt(k) times as slow.

    At k times the batch an unchanged learning rate is the square-root rule's over sqrt(k); where
    noise is averaged out over the path, only the speed of the drift matters.
    """
    kept = runs.filter(~pl.col("diverged")).sort("epoch")
    factors = kept.filter(scaling="none").select("series", "factor").unique()
    bases = kept.filter(scaling="base").group_by("series", "seed").agg("epoch", "log_loss")
    columns = ["series", "factor", "seed", "epoch", "log_loss"]
    rows = []
    for *key, epochs, losses in bases.join(factors, on="series").select(columns).iter_rows():
        slow = np.interp(np.array(epochs) / math.sqrt(key[1]), epochs, losses)
        deviation = float(np.abs(slow - losses)[1:].mean())
        rows.append((*key, deviation, deviation / (losses[0] - losses[-1])))
    return pl.DataFrame(rows, schema=[*columns[:3], "predicted", "share"], orient="row")
