"""What the kernel's round map says of every kind of run, and where it must miss."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import polars as pl

from undertow.claims import Records
from undertow.claims.local_sgd_relu import LocalSgdRelu
from undertow.lab import (
    KEPT,
    Prediction,
    Reading,
    at_most,
    lost,
    near,
    no_less,
    of,
    of_means,
    slope_by_seed,
)

SPAN, LEAST_ROUNDS = 16, 100  # of widths, and of rounds; with less no verdict is promised

LOG_WIDTH = pl.col("width").log()
RATE = pl.col("rate") / pl.col("rate_expected")
HALF = "m^-1/2"


def predictions(knobs: LocalSgdRelu) -> dict[str, Prediction]:
    """The loss curve, flips and drift, periods, partitions, near-duplicates, batches, images."""
    return (
        curve_rules(knobs)
        | flip_rules(knobs)
        | drift_rules(knobs)
        | period_rules(knobs)
        | partition_rules()
        | pair_rules(knobs)
        | batch_rules()
        | beyond_rules(knobs)
    )


def curve_rules(knobs: LocalSgdRelu) -> dict[str, Prediction]:
    """The whole course, nothing fitted, and better the wider."""
    linear = at("widths", pl.col("error_linear") / pl.col("residual_error"), width=knobs.wide)
    return {
        "error of the residuals, power of m": near(
            -0.5, 0.1, power("widths", "residual_error"), HALF, against=0.5
        ),
        "error of the log loss, power of m": at_most(
            -0.4, power("widths", "error"), f"at least about {HALF}", against=0
        ),
        f"m = {knobs.wide}, log loss, largest error of {knobs.rounds} rounds": at_most(
            0.2, at("widths", "error", width=knobs.wide), "0 as m grows", against=math.inf
        ),
        f"m = {knobs.wide}, slope of the log loss over the kernel's": near(
            1, 0.05, at("widths", RATE, width=knobs.wide), "1 as m grows", against=0.5
        ),
        f"m = {knobs.wide}, R^2 of the log loss against rounds": no_less(
            0.98, at("widths", "r_squared", width=knobs.wide), "linear in rounds", against=0.9
        ),
        "mean-field scaling, error of the residuals, power of m": no_less(
            -0.25,
            power("widths", "residual_error", scaling="mean-field"),
            "no kernel however wide",
            control=True,
        ),
        f"m = {knobs.wide}, error with a linear network's kernel over its own": no_less(
            5, linear, "the ReLU's angles count", control=True
        ),
    }


def flip_rules(knobs: LocalSgdRelu) -> dict[str, Prediction]:
    """Few signs flip, and how many is known at any width."""
    rules: dict[str, Prediction] = {}
    for name, words in (("flips", "since the start"), ("between", "of clients from the average")):
        over = pl.col(name) / pl.col(f"{name}_expected")
        rules |= {
            f"signs flipped {words}, power of m": near(
                -0.5, 0.1, held_alike(over), f"{HALF}, starts held alike", against=0.5
            ),
            f"signs flipped {words} over forecast": near(
                1, 0.1, at("widths", over), "nothing fitted, mean of all widths", against=0.5
            ),
        }
    return rules | {
        "mean-field scaling, signs flipped since the start, power of m": no_less(
            -0.25,
            power("widths", "flips", scaling="mean-field"),
            "as many however wide",
            control=True,
        )
    }


def drift_rules(knobs: LocalSgdRelu) -> dict[str, Prediction]:
    """How far clients are from their average, and their gradients from those there."""
    apart = (pl.col("distance") / pl.col("distance_expected")).mean().over("trial")
    drift = (pl.col("drift") / pl.col("drift_forecast")).mean().over("trial")
    return {
        f"m = {knobs.wide}, ||w_k - w_bar|| over the kernel's": near(
            1, 0.05, at("widths", apart, width=knobs.wide), "1 as m grows", against=0.5
        ),
        f"m = {knobs.wide}, gradient drift over forecast": near(
            1, 0.1, at("widths", drift, width=knobs.wide), "residuals and flips", against=0.5
        ),
        "squared gradient drift beyond the kernel's, power of m": near(
            -0.5,
            0.15,
            held_alike(beyond("drift") / beyond("drift_forecast")),
            "the flips' part, starts held alike; the kernel's stays",
            against=0.5,
        ),
        "mean-field scaling, squared gradient drift beyond the kernel's, power of m": no_less(
            -0.25, power("widths", beyond("drift"), scaling="mean-field"), "it stays", control=True
        ),
    }


def period_rules(knobs: LocalSgdRelu) -> dict[str, Prediction]:
    """At a fixed lr x tau the period hardly counts, and what it counts is known."""
    short, long = knobs.periods[0], knobs.periods[-1]

    def ratio(value: str | pl.Expr) -> Reading:
        return at("periods", value, period=long) / at("periods", value, period=short)

    return {
        f"tau = {long}, slope of the log loss over tau = {short}'s": near(
            1, 0.1, ratio("rate"), "lr x tau the same", against=0.5
        ),
        f"tau = {long}, final loss over tau = {short}'s, over the map's": near(
            1, 0.1, ratio(pl.col("loss") / pl.col("expected")), "nothing fitted", against=1
        ),
    }


def partition_rules() -> dict[str, Prediction]:
    """Clients that nearly fit their own data, alike or each with a class of its own."""
    rules: dict[str, Prediction] = {}
    for partition in ("iid", "by_class"):

        def over(name: str, partition: str = partition) -> Reading:
            value = pl.col(f"error_{name}") / pl.col("residual_error")
            return at("partitions", value, partition=partition)

        rules |= {
            f"{partition}, log loss, largest error": at_most(
                0.4,
                at("partitions", "error", partition=partition),
                "0 as m grows",
                against=math.inf,
            ),
            f"{partition}, error with the other partition's map over its own": no_less(
                2, over("partition"), "who has which samples counts", control=True
            ),
            f"{partition}, error with averaging at every step over its own": no_less(
                5, over("parallel"), "local steps count", control=True
            ),
        }
    return rules


def pair_rules(knobs: LocalSgdRelu) -> dict[str, Prediction]:
    """Two near samples of opposite labels: their angle while units between them last."""
    least, most = knobs.angles[0], knobs.angles[-1]
    # The pull of other samples on the two cancels where their labels are exchanged.
    soon: dict[str, Any] = {"width": knobs.wide}
    later: dict[str, Any] = {"data": "opposite", "width": knobs.middle}
    firsts = [at("pairs", "first", angle=angle, **soon) for angle in knobs.angles]

    eigenvalues = [pair_eigenvalue(own) for own in knobs.angles]

    def growth(means: np.ndarray) -> float:
        if (means <= 0).any():
            return math.nan
        return float(np.polyfit(np.log(eigenvalues), np.log(means), 1)[0])

    small = pl.when(KEPT, ENDS, pl.col("angle") < most).then(pl.col("angle").log())
    alike = at("pairs", "late", data="alike") / at("pairs", "late", angle=least, **later)
    merged = pl.col("late") / pl.col("late_merged")
    return {
        "near-duplicates, first rate, power of the kernel's eigenvalue": near(
            1, 0.2, of_means(firsts, growth), "theta / 2 pi at small angles; of means", against=0.75
        ),
        f"angle {most:g}, first rate over the map's": near(
            1,
            0.15,
            at("pairs", pl.col("first") / pl.col("first_expected"), angle=most, **soon),
            "nothing fitted",
            against=0.5,
        ),
        "near-duplicates, late rate, power of their angle": near(
            2,
            0.15,
            slope_by_seed("pairs", small, (-pl.col("late")).log(), **later),
            "units see both or neither",
            against=0.75,
        ),
        f"angle {least:g}, late rate over that of merged units": near(
            1, 0.05, at("pairs", merged, angle=least, **later), "nothing fitted", against=0.5
        ),
        f"angle {least:g}, late rate with one label over opposite labels'": no_less(
            5, alike, "near-duplicates of one label slow nothing", control=True
        ),
        f"angle {least:g}, R^2 of the log loss against rounds": at_most(
            0.9, at("pairs", "r_squared", angle=least, **later), "linear no more", control=True
        ),
    }


def batch_rules() -> dict[str, Prediction]:
    """Small batches: the product of their own maps."""
    full = pl.col("error_full") / pl.col("residual_error")
    return {
        "small batches, log loss, largest error": at_most(
            0.4, at("batches", "error"), "0 as m grows", against=math.inf
        ),
        "small batches, slope of the log loss over the map's": near(
            1, 0.05, at("batches", RATE), "1 as m grows", against=0.5
        ),
        "small batches, error with the map of all samples over its own": no_less(
            2, at("batches", full), "the drawn batches count", control=True
        ),
    }


def beyond_rules(knobs: LocalSgdRelu) -> dict[str, Prediction]:
    """Images and deep networks, where labels are no noise and kernels no closed form."""
    rules = {
        f"images {partition}, error of the residuals, power of m": at_most(
            -0.25, power("images", "residual_error", partition=partition), HALF, against=0
        )
        for partition in ("iid", "by_class")
    }
    return rules | {
        f"images, m = {knobs.middle}, slope of the log loss over the kernel's": near(
            1, 0.2, at("images", RATE, width=knobs.middle), "1 as m grows", against=0.5
        ),
        "deep networks, error of the residuals, power of m": at_most(
            -0.25, power("deep", "residual_error"), f"{HALF}, the kernel of the start", against=0
        ),
    }


def summary(records: Records, knobs: LocalSgdRelu) -> str:
    """How many runs were lost."""
    return "{} of {} runs diverged and are left out.".format(*lost(records))


def promises_verdict(records: Records, knobs: LocalSgdRelu) -> bool:
    """Whether there are widths to see a power in, and rounds to see a rate in."""
    return knobs.wide >= SPAN * knobs.widths[0] and knobs.rounds >= LEAST_ROUNDS


# ---- readings

ENDS = pl.col("round") == pl.col("round").max().over("trial")


def at(experiment: str, value: str | pl.Expr, **where: Any) -> Reading:
    """A value of runs, the mean where a seed has several; of kernel scaling unless named."""
    own = {"scaling": "kernel"} | where if experiment == "widths" else where
    read = pl.col(value) if isinstance(value, str) else value
    return of(experiment, pl.when(ENDS).then(read), KEPT, **own)


def power(experiment: str, value: str | pl.Expr, **where: Any) -> Reading:
    """Each seed's own power of the width."""
    own = {"scaling": "kernel"} | where if experiment == "widths" else where
    read = pl.col(value) if isinstance(value, str) else value
    across = pl.when(KEPT, ENDS).then(LOG_WIDTH)
    return slope_by_seed(experiment, across, read.log(), **own)


def held_alike(over: pl.Expr) -> Reading:
    """The power of the width of what is forecast as m^-1/2 from each run's own start.

    Starts of narrow networks scatter, and a seed's own power with them, unless the same is divided
    by the forecast.
    """
    return power("widths", over) - 0.5


def pair_eigenvalue(angle: float) -> float:
    """The least of the kernel of two unit vectors: theta / 2 pi, and terms of higher order."""
    return 0.5 - math.cos(angle) * (math.pi - angle) / (2 * math.pi)


def beyond(column: str) -> pl.Expr:
    """How much more gradients drift than by the change of residuals alone, in squares."""
    return (pl.col(column) / pl.col("drift_expected")).pow(2).mean().over("trial") - 1
