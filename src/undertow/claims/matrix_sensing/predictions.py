"""How near descent comes to each saddle and when, and where the prediction must fail."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import polars as pl

from undertow import lab, predict
from undertow.claims import Records
from undertow.claims.matrix_sensing import MatrixSensing
from undertow.lab import (
    PerSeed,
    Prediction,
    Reading,
    at_most,
    greatest,
    near,
    no_less,
    of,
    per_seed,
)

SMALL = 1e-2  # from here down a scale counts as small
_ROUNDING = 1e-12  # closest approaches below are rounding
_POINTS = 5  # scales that the power law is fitted to, the smallest above rounding
_LAST = 2  # scales that the exponent in the limit is fitted to

_FORECAST = "^(exponent|early_exponent|arrival)$"  # columns, where there are any

CLOSEST, TRUNCATED = pl.col("closest"), pl.col("closest_to_truncated")
NEARNESS = CLOSEST / pl.col("size")
SATURATION = TRUNCATED / pl.col("apart")
OFF = (pl.col("slope") / pl.col("exponent") - 1).abs()
LATE = (pl.col("time") / pl.col("arrival") - 1).abs()
LATER = pl.col("closest_step").diff().over("seed", "scale", order_by="phase") > 0
FARTHER = CLOSEST.log().diff().over("seed", "phase", order_by="scale").exp()
LOG_AMOUNT = pl.col("measurements").log()
DERIVED = "2 g k / (k + 2 v), from the spectra at the saddles"
UNPROVEN = math.inf  # the paper proves no number here: a miss is none of its statement


def predictions(knobs: MatrixSensing) -> dict[str, Prediction]:
    """Approaches, phases, narrow runs, numbers of measurements, and controls."""
    learned = approaches(knobs) | phases(knobs) | narrow(knobs)
    return learned | amounts(knobs) | recoveries(knobs) | controls(knobs)


def approaches(knobs: MatrixSensing) -> dict[str, Prediction]:
    """How near descent comes to the minimisers, and by which power of the scale."""
    rank, smallest = len(knobs.spectrum), min(knobs.scales)
    plateau = of("sensing", SATURATION, pl.col("phase") < rank, scale=smallest)
    nearer = greatest(
        of("sensing", CLOSEST / TRUNCATED, phase=s, scale=smallest) for s in range(1, rank)
    )
    every = of("sensing", FARTHER, pl.col("scale") < 1, CLOSEST > _ROUNDING, how="min")
    rising = {
        f"slope of the closest approach to Z_{s}": no_less(
            0, law("slope", phase=s).then(PerSeed.known), "it is a power of the scale"
        )
        for s in range(1, rank + 1)
    }
    limits = {
        f"exponent in the limit over the predicted, Z_{s}": near(
            1, 0.05, departure(s), DERIVED, against=UNPROVEN
        )
        for s in range(1, rank)
    }
    return {
        **rising,
        "closest approach from a start over that from the next smaller, least of all": (
            lab.every_seed(every >= 1, "at least 1: every smaller start comes nearer")
        ),
        **limits,
        "closest approach to Z_s over that to X*_s, worst phase before the last": at_most(
            0.5, nearer, "from the smallest start", against=1
        ),
        "plateau of the approach to X*_s over ||Z_s - X*_s||": near(
            1, 0.1, plateau, "the truncated SVD is the wrong target", against=UNPROVEN
        ),
    }


def phases(knobs: MatrixSensing) -> dict[str, Prediction]:
    """One after the other, when the spectra say, at the matrices of greedy learning."""
    rank = len(knobs.spectrum)
    greedy = greatest(of("sensing", "to_greedy", phase=s) for s in range(1, rank + 1))
    in_order = lab.share("sensing", LATER, pl.col("scale") <= SMALL)
    return {
        "T_1 < T_2 < ...": lab.every_seed(in_order, f"in all runs of scale {SMALL:g} or less"),
        "time of arrival, off the predicted by, worst phase": at_most(
            0.01, worst_phase(LATE, rank), "steps per log(1 / scale)", against=UNPROVEN
        ),
        "greedy learning's phase s against Z_s, worst phase": lab.every_seed(
            *(greedy <= 1e-6, "at most 1e-6 of ||Z_s||: it finds the minimisers of each rank"),
            against=UNPROVEN,
        ),
    }


def narrow(knobs: MatrixSensing) -> dict[str, Prediction]:
    """The same on the way of a U with too few columns, to the minimisers before the last it has.

    Where such a run ends is no evidence: from a start of any size that is the minimiser of its
    rank.
    """
    width, smallest = len(knobs.spectrum) - 1, min(knobs.narrow_scales)
    before = range(1, width)

    def nearest(scale: float) -> Reading:
        return greatest(of("narrow", NEARNESS, phase=s, scale=scale) for s in before)

    in_order = lab.share("narrow", LATER, pl.col("scale") <= SMALL)
    late = worst_phase(LATE, width - 1, "narrow")
    limits = {
        f"{width} columns: exponent in the limit over the predicted, Z_{s}": near(
            1, 0.05, departure(s, "narrow"), DERIVED, against=UNPROVEN
        )
        for s in before
    }
    return {
        f"{width} columns: closest approach from {smallest:g} over that from 1": at_most(
            0.1, nearest(smallest) / nearest(1.0), "worst phase before the last", against=1
        ),
        **limits,
        f"{width} columns: T_1 < T_2 < ...": lab.every_seed(
            in_order, f"in all runs of scale {SMALL:g} or less"
        ),
        f"{width} columns: time of arrival, off the predicted by, worst phase": at_most(
            0.01, late, "steps per log(1 / scale)", against=UNPROVEN
        ),
        f"{width} columns: closest approach at scale 1 over ||Z_s||, nearest phase": no_less(
            0.15,
            of("narrow", NEARNESS, pl.col("phase") < width, how="min", scale=1.0),
            "it has no phases, though it ends where the others do",
            control=True,
        ),
    }


def amounts(knobs: MatrixSensing) -> dict[str, Prediction]:
    """How far more measurements take the minimisers to the truncations, and descent to them."""
    shift = Reading(squared_shifts(knobs))

    def power(value: pl.Expr) -> Reading:
        def read(records: Records) -> PerSeed:
            return per_seed(lab.slopes(records["amounts"], LOG_AMOUNT, value), "slope")

        return Reading(read)

    return {
        "||Z_s - X*_s|| over its predicted root mean square": near(
            1,
            0.2,
            lab.of_means([shift], root),
            "over phases and numbers of measurements",
            against=UNPROVEN,
        ),
        "||Z_s - X*_s||: power of the number of measurements": near(
            -0.5, 0.1, power(pl.col("apart").log()), "as any error of M", against=0.5
        ),
        "closest approach to Z_s: power of the number of measurements": at_most(
            0, power(NEARNESS.log()), "the straighter way excites less of the slowest error"
        ),
    }


def recoveries(knobs: MatrixSensing) -> dict[str, Prediction]:
    """Where a small start recovers X*, where nothing could, and where any start would."""
    few, some, many = knobs.recoveries
    start = knobs.recovery_scale

    def ended(count: int, scale: float, column: str = "final_error") -> Reading:
        return of("recovered", column, measurements=count, scale=scale)

    window = predict.recovery_window(knobs.dim, len(knobs.spectrum))
    return {
        f"error of recovery from {some} measurements": at_most(
            0.1, ended(some, start), "of ||X*||: a bias to low rank is enough", against=0.5
        ),
        f"error of recovery from {few} measurements": no_less(
            0.3,
            ended(few, start),
            f"fewer than the {window.freedom} dimensions of rank {len(knobs.spectrum)}",
            control=True,
        ),
        f"error of recovery from {some} measurements at scale 1": no_less(
            0.2, ended(some, 1.0), "without the bias another matrix fits", control=True
        ),
        f"what that misses of the {some} measurements": at_most(
            0.01, ended(some, 1.0, "missed"), "of their norm: it does fit", control=True
        ),
        f"error of recovery from {many} measurements at scale 1": at_most(
            0.15,
            ended(many, 1.0),
            f"from more than {window.positive:g} no other matrix fits, "
            "and recovery says nothing of the start",
            control=True,
        ),
    }


def controls(knobs: MatrixSensing) -> dict[str, Prediction]:
    """Every entry measured, a large start, and no gap."""
    rank = len(knobs.spectrum)
    large = of("sensing", NEARNESS, pl.col("phase") < rank, how="min", scale=1.0)
    every = worst_phase(OFF, rank, "identity")
    return {
        "every entry measured: exponents against 2 (x_s - x_s+1) / (x_s + x_s+1)": at_most(
            0.03, every, "in the worst phase", control=True
        ),
        "closest approach at scale 1 over ||Z_s||, nearest phase": no_less(
            0.15, large, "a large start has no phases", control=True
        ),
        f"no gap: closest approach to Z_1 at scale {knobs.degenerate_scale:g}, over ||Z_1||": (
            no_less(
                0.15, of("degenerate", NEARNESS), "without a gap phase 1 vanishes", control=True
            )
        ),
    }


def summary(records: Records, knobs: MatrixSensing) -> str:
    """How near descent comes from the smallest start."""
    smallest, ranks = min(knobs.scales), range(1, len(knobs.spectrum) + 1)
    found = [of("sensing", NEARNESS, phase=s, scale=smallest)(records).mean() for s in ranks]
    words = ", ".join(f"{value:.2g} of ||Z_{s}||" for s, value in enumerate(found, start=1))
    return f"Closest approaches at a scale of {smallest:g}: {words}."


# ---- readings


def power_laws(rows: pl.DataFrame) -> pl.DataFrame:
    """Of each seed and phase: `slope` of log closest approach on log scale.

    Fitted to the smallest scales above rounding; `limit` is that over the last of them, and `time`
    the slope of the learned step on log(1 / scale), in units of 1 / lr. NaN where points are too
    few. What is forecast stands beside them.
    """
    keys = ("seed", "phase")

    def lines(x: pl.Expr, y: pl.Expr, *where: pl.Expr, smallest: int | None = None) -> pl.DataFrame:
        return lab.slopes(rows, x, y, *where, by=keys, smallest=smallest).drop("points", "misfit")

    log_scale, learned = pl.col("scale").log(), pl.col("learned_step") * pl.col("lr")
    close = pl.col("scale") < 1, CLOSEST > _ROUNDING
    fits = [
        lines(log_scale, CLOSEST.log(), *close, smallest=_POINTS),
        lines(log_scale, CLOSEST.log(), *close, smallest=_LAST).select(*keys, limit="slope"),
        lines(-log_scale, learned, pl.col("scale") <= SMALL).select(*keys, time="slope"),
    ]
    laws = rows.group_by(keys, maintain_order=True).agg(pl.col(_FORECAST).first())
    for fit in fits:
        laws = laws.join(fit, on=keys, how="left", maintain_order="left")
    return laws.with_columns(pl.col("slope", "limit", "time").fill_null(math.nan))


def law(
    value: str | pl.Expr, *conditions: pl.Expr, experiment: str = "sensing", **options: Any
) -> Reading:
    """A value of the power laws, as `of` reads it."""
    return Reading(
        lambda records: per_seed(power_laws(records[experiment]), value, *conditions, **options)
    )


def worst_phase(value: str | pl.Expr, rank: int, experiment: str = "sensing") -> Reading:
    """The same in the phase where it is greatest; unknown where it is unknown of any phase."""
    return greatest(law(value, experiment=experiment, phase=s) for s in range(1, rank + 1))


def departure(phase: int, experiment: str = "sensing") -> Reading:
    """The exponent in the limit over the predicted; some bend beyond the smallest scale."""
    limits, predicted = (
        law(column, experiment=experiment, phase=phase).then(PerSeed.known)
        for column in ("limit", "exponent")
    )
    return limits / predicted


def squared_shifts(knobs: MatrixSensing) -> Callable[[Records], PerSeed]:
    """Squares of ||Z_s - X*_s|| over the predicted, their mean over phases and measurements."""
    known = pl.DataFrame(
        [
            (
                s,
                count,
                predict.minimiser_shift(knobs.spectrum, s, dim=knobs.dim, measurements=count),
            )
            for s in range(1, len(knobs.spectrum))
            for count in knobs.amounts
        ],
        schema=["phase", "measurements", "shift"],
        orient="row",
    )

    def read(records: Records) -> PerSeed:
        if records["amounts"].is_empty():
            return PerSeed({})
        rows = records["amounts"].join(known, on=["phase", "measurements"], maintain_order="left")
        return per_seed(rows, (pl.col("apart") / pl.col("shift")).pow(2))

    return read


def root(means: np.ndarray) -> float:
    """The root of one mean."""
    return math.sqrt(float(means[0]))
