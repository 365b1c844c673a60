"""What mirrored data must give, where it must fail, and what one more sample does for how long."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import polars as pl

from undertow.claims import Records
from undertow.claims.two_layer_margin import TwoLayerMargin
from undertow.claims.two_layer_margin.experiments import EARLY, ESCAPED
from undertow.lab import (
    KEPT,
    Prediction,
    Reading,
    at_most,
    every_seed,
    lost,
    near,
    no_less,
    of,
    of_means,
    share,
    slope_by_seed,
)

ROUNDING = 1e-9  # of a margin
LEAST_DEPTH, SMALL_ENOUGH = 1e6, 1e-20  # without these no verdict is promised

END = pl.col("level") == pl.col("level").min().over("trial")
SOON = (pl.col("level") / -EARLY - 1).abs() < 1e-6
ESCAPE = pl.col("level") == ESCAPED
GOES = ~pl.col("forecast")
E_FOLDS = -pl.col("scale").log()
LONG = pl.col("lasted") >= math.log(100)  # of -log loss: from there the law is one of powers


def predictions(knobs: TwoLayerMargin) -> dict[str, Prediction]:
    """Mirrored samples, starts that get stuck, the way from zero, manipulated data, pictures."""
    return (
        symmetric_rules(knobs)
        | stuck_rules(knobs)
        | early_rules(knobs)
        | manipulated_rules(knobs)
        | order_rules(knobs)
        | picture_rules(knobs)
    )


def symmetric_rules(knobs: TwoLayerMargin) -> dict[str, Prediction]:
    """On mirrored samples, from a small start of both signs."""
    away = pl.col("angle_svm") / pl.col("svm_to_mean")
    widths = {
        f"m = {width}, margin over ceiling": no_less(
            0.99, small(knobs, "ratio", GOES, END, neurons=width), "1 at any width", against=0.9
        )
        for width in knobs.widths
    }
    return widths | {
        "angle to the SVM over that of the early direction": at_most(
            0.05, small(knobs, away, GOES, END), "the SVM's classifier, all widths", against=1
        ),
        "share of f that is not linear": at_most(
            1e-3, small(knobs, "bend", GOES, END), "a linear function, all widths", against=0.05
        ),
    }


def stuck_rules(knobs: TwoLayerMargin) -> dict[str, Prediction]:
    """Which starts fail, how many, and where they stay."""
    level = 2 * knobs.slope / (1 + knobs.slope)
    told = pl.col("stuck") == pl.col("forecast")
    counts = [of("starts", pl.col(name).cast(pl.Float64), KEPT) for name in ("stuck", "expected")]
    stays = f"2 slope / (1 + slope) = {level:.4g}"
    return {
        "ends that the signs at the start foretell": every_seed(
            share("starts", told, KEPT),
            f"those of w.mu / ||mu|| + a, {knobs.starts} starts a seed",
        ),
        "stuck starts over 2^-(m - 1)": near(
            1, 0.15, of_means(counts, _quotient), "all m of a seed together"
        ),
        "stuck runs, least margin over ceiling": near(
            level, 0.005, of("starts", "ratio", KEPT, "forecast", how="min"), stays, against=0.1
        ),
        "stuck runs, largest margin over ceiling": every_seed(
            of("starts", "ratio", KEPT, "forecast", how="max") <= level + ROUNDING,
            f"at most {stays}, which no network of one sign exceeds",
            exact=True,
        ),
        "other runs, least margin over ceiling": no_less(
            0.99, of("starts", "ratio", KEPT, GOES, how="min"), "all of a seed", against=0.9
        ),
        "all a_k of one sign, margin over ceiling": at_most(
            0.8, small(knobs, "ratio", END, start="one-sign"), "stuck by force", control=True
        ),
    }


def early_rules(knobs: TwoLayerMargin) -> dict[str, Prediction]:
    """The way from zero: rank one along mu, after a time that is known."""
    single: dict[str, Any] = {"neurons": knobs.width, "start": "normal"}
    tiny = pl.when(pl.col("scale") <= knobs.scale, KEPT).then(E_FOLDS)
    time = slope_by_seed(
        "symmetric", tiny, pl.col("log_time").exp() * pl.col("growth"), level=ESCAPED, **single
    )
    large = of("symmetric", "rank_ratio", KEPT, ESCAPE, scale=knobs.scales[-1], **single)
    turned = pl.col("angle_mean") / pl.col("svm_to_mean")
    return {
        "time to leave zero per e-fold of 1 / s, times ||mu||": near(
            1, 0.02, time, "log(1 / s) / ||mu|| and what does not depend on s", against=0.2
        ),
        "on leaving zero, s2 / s1 of all (w_k, a_k)": at_most(
            0.01, small(knobs, "rank_ratio", ESCAPE), "rank one, all widths", against=0.5
        ),
        "on leaving zero, angle to mu over the SVM's": at_most(
            0.2, small(knobs, turned, ESCAPE), "along mu, not yet the SVM", against=1
        ),
        f"s = {knobs.scales[-1]:g}, s2 / s1 of all (w_k, a_k)": no_less(
            0.1, large, "no rank one without a small start", control=True
        ),
    }


def manipulated_rules(knobs: TwoLayerMargin) -> dict[str, Prediction]:
    """One more sample, or that and no mirror images: one neuron, from a small start."""
    first, last = knobs.scales[0], knobs.scales[-1]
    to_one = pl.col("angle_one") / pl.col("svm_to_one")
    plain = of("symmetric", "ratio", KEPT, SOON, GOES, neurons=knobs.width, scale=first)
    return {
        "one more sample, margin over one neuron's": near(
            1, 0.02, changed("over_one", "hinted", first), "its optimum", against=0.25
        ),
        "one more sample, margin over ceiling": at_most(
            0.75, changed("ratio", "hinted", first), "less than the largest margin", against=1
        ),
        "without it, margin over ceiling": no_less(
            0.99, plain, "the same starts at the same loss", control=True
        ),
        f"one more sample, s = {last:g}, margin over one neuron's": no_less(
            1.2, changed("over_one", "hinted", last), "gone from a large start", control=True
        ),
        "no mirror images, margin over one neuron's": near(
            1, 0.02, changed("over_one", "halved", first), "its optimum", against=0.25
        ),
        "no mirror images, angle to one neuron's over SVM's to it": at_most(
            0.2, changed(to_one, "halved", first), "another classifier", against=1
        ),
        f"no mirror images, s = {last:g}, margin over one neuron's": no_less(
            1.05, changed("over_one", "halved", last), "gone from a large start", control=True
        ),
    }


def order_rules(knobs: TwoLayerMargin) -> dict[str, Prediction]:
    """Limits of time and scale do not commute, and how long one neuron holds out is known."""
    middle = knobs.scales[-3]
    hold = pl.when(KEPT, ESCAPE, LONG).then(E_FOLDS)
    power = slope_by_seed("manipulated", hold, pl.col("lasted") / pl.col("kappa"), data="hinted")
    left = of("manipulated", "ratio", KEPT, END, data="hinted", scale=middle)
    return {
        f"one more sample, s = {middle:g}, margin over ceiling in the end": no_less(
            0.99, left, "time before scale: the largest margin after all", against=0.8
        ),
        "power of 1 / s that -log loss grows by, over kappa": near(
            1, 0.05, power, "until the margin is half-way back; nothing fitted", against=0.5
        ),
    }


def picture_rules(knobs: TwoLayerMargin) -> dict[str, Prediction]:
    """Two classes of images and their mirror images."""
    level = 2 * knobs.slope / (1 + knobs.slope)
    away = pl.col("angle_svm") / pl.col("svm_to_mean")

    def shown(value: str | pl.Expr, *conditions: pl.Expr, start: str = "normal") -> Reading:
        return of("pictures", value, KEPT, END, *conditions, start=start)

    forced = shown("ratio", start="one-sign")
    return {
        "images, margin over ceiling": no_less(
            0.99, shown("ratio", GOES), "two classes and their mirror images", against=0.9
        ),
        "images, angle to the SVM over that of the early direction": at_most(
            0.05, shown(away, GOES), "the SVM's classifier", against=1
        ),
        "images, all a_k of one sign, margin over 2 slope / (1 + slope)": near(
            1, 0.01, forced / level, "of the ceiling", against=0.1
        ),
        "images, all a_k of one sign, margin over ceiling": at_most(
            0.8, forced, "stuck by force", control=True
        ),
    }


def summary(records: Records, knobs: TwoLayerMargin) -> str:
    """How far runs went, and how many did not."""
    kept = "Runs went to a log loss of -{:,.0f}; {} of {} did not get there and are left out."
    return kept.format(knobs.depth, *lost(records))


def promises_verdict(records: Records, knobs: TwoLayerMargin) -> bool:
    """Whether runs go far enough, from a start that is small enough."""
    return knobs.depth >= LEAST_DEPTH and knobs.scales[0] <= SMALL_ENOUGH


# ---- readings


def small(
    knobs: TwoLayerMargin, value: str | pl.Expr, *conditions: pl.Expr, **where: Any
) -> Reading:
    """The largest, or of a margin the least, over networks from the claim's own small scale."""
    how: Any = "min" if isinstance(value, str) and value == "ratio" else "max"
    chosen = {"scale": knobs.scale, "start": "normal"} | where
    return of("symmetric", value, KEPT, *conditions, how=how, **chosen)


def changed(value: str | pl.Expr, data: str, scale: float) -> Reading:
    """A reading of networks on manipulated data, as soon as those on mirrored data have arrived."""
    return of("manipulated", value, KEPT, SOON, data=data, scale=scale)


def _quotient(means: np.ndarray) -> float:
    return float(means[0] / means[1])
