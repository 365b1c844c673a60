"""How near descent comes to each saddle and when, and where the prediction must fail."""

from __future__ import annotations

import math
from typing import Any

import polars as pl

from undertow import lab, predict
from undertow.claims import Records
from undertow.claims.matrix_sensing import MatrixSensing
from undertow.lab import PerSeed, Prediction, Reading, at_most, near, no_less, of, per_seed

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
    nearer = lab.greatest(
        of("sensing", CLOSEST / TRUNCATED, phase=s, scale=smallest) for s in range(1, rank)
    )
    every = of("sensing", FARTHER, pl.col("scale") < 1, CLOSEST > _ROUNDING, how="min")
    slopes = {s: law("sensing", "slope", phase=s).then(PerSeed.known) for s in range(1, rank + 1)}
    return {
        **{
            f"slope of the closest approach to Z_{s}": no_less(
                0, slope, "it is a power of the scale"
            )
            for s, slope in slopes.items()
        },
        "closest approach from a start over that from the next smaller, least of all": (
            lab.every_seed(every >= 1, "at least 1: every smaller start comes nearer")
        ),
        **limits("sensing", rank),
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
    greedy = lab.greatest(of("sensing", "to_greedy", phase=s) for s in range(1, rank + 1))
    return {
        **order("sensing", rank),
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
    columns, before = f"{width} columns: ", pl.col("phase") < width
    nearest, from_one = (
        lab.greatest(of("narrow", NEARNESS, phase=s, scale=scale) for s in range(1, width))
        for scale in (smallest, 1.0)
    )
    large = of("narrow", NEARNESS, before, how="min", scale=1.0)
    return {
        f"{columns}closest approach from {smallest:g} over that from 1": at_most(
            0.1, nearest / from_one, "worst phase before the last", against=1
        ),
        **limits("narrow", width, columns),
        **order("narrow", width - 1, columns),
        f"{columns}closest approach at scale 1 over ||Z_s||, nearest phase": no_less(
            0.15, large, "it has no phases, though it ends where the others do", control=True
        ),
    }


def limits(experiment: str, last: int, columns: str = "") -> dict[str, Prediction]:
    """The exponent of the smallest scales over the predicted, of every phase before the last."""
    found = {}
    for phase in range(1, last):
        # In some problems the bend lies beyond the smallest scale.
        limit, predicted = (
            law(experiment, value, phase=phase).then(PerSeed.known)
            for value in ("limit", "exponent")
        )
        found[f"{columns}exponent in the limit over the predicted, Z_{phase}"] = near(
            1, 0.05, limit / predicted, DERIVED, against=UNPROVEN
        )
    return found


def order(experiment: str, rank: int, columns: str = "") -> dict[str, Prediction]:
    """That phases come one after the other, and when."""
    in_order = lab.share(experiment, LATER, pl.col("scale") <= SMALL)
    return {
        f"{columns}T_1 < T_2 < ...": lab.every_seed(
            in_order, f"in all runs of scale {SMALL:g} or less"
        ),
        f"{columns}time of arrival, off the predicted by, worst phase": at_most(
            0.01, worst(experiment, LATE, rank), "steps per log(1 / scale)", against=UNPROVEN
        ),
    }


def amounts(knobs: MatrixSensing) -> dict[str, Prediction]:
    """How far more measurements take the minimisers to the truncations, and descent to them."""
    square = (pl.col("apart") / pl.col("shift")).pow(2)
    shift = Reading(lambda records: per_seed(shifts(records["amounts"], knobs), square))
    rms = lab.of_means([shift], lambda means: math.sqrt(float(means[0])))
    apart, nearness = (
        lab.slope_by_seed("amounts", pl.col("measurements").log(), value.log())
        for value in (pl.col("apart"), NEARNESS)
    )
    return {
        "||Z_s - X*_s|| over its predicted root mean square": near(
            1, 0.2, rms, "over phases and numbers of measurements", against=UNPROVEN
        ),
        "||Z_s - X*_s||: power of the number of measurements": near(
            -0.5, 0.1, apart, "as any error of M", against=0.5
        ),
        "closest approach to Z_s: power of the number of measurements": at_most(
            0, nearness, "the straighter way excites less of the slowest error"
        ),
    }


def recoveries(knobs: MatrixSensing) -> dict[str, Prediction]:
    """Where a small start recovers X*, where nothing could, and where any start would."""
    few, some, many = knobs.recoveries
    never, biased = (
        of("recovered", "final_error", measurements=count, scale=knobs.recovery_scale)
        for count in (few, some)
    )
    unbiased, beyond = (
        of("recovered", "final_error", measurements=count, scale=1.0) for count in (some, many)
    )
    missed = of("recovered", "missed", measurements=some, scale=1.0)
    window = predict.recovery_window(knobs.dim, len(knobs.spectrum))
    too_few = f"fewer than the {window.freedom} dimensions of rank {len(knobs.spectrum)}"
    alone = f"from more than {window.positive:g} no other matrix fits, "
    alone += "and recovery says nothing of the start"
    return {
        f"error of recovery from {some} measurements": at_most(
            0.1, biased, "of ||X*||: a bias to low rank is enough", against=0.5
        ),
        f"error of recovery from {few} measurements": no_less(0.3, never, too_few, control=True),
        f"error of recovery from {some} measurements at scale 1": no_less(
            0.2, unbiased, "without the bias another matrix fits", control=True
        ),
        f"what that misses of the {some} measurements": at_most(
            0.01, missed, "of their norm: it does fit", control=True
        ),
        f"error of recovery from {many} measurements at scale 1": at_most(
            0.15, beyond, alone, control=True
        ),
    }


def controls(knobs: MatrixSensing) -> dict[str, Prediction]:
    """Every entry measured, a large start, and no gap."""
    rank = len(knobs.spectrum)
    large = of("sensing", NEARNESS, pl.col("phase") < rank, how="min", scale=1.0)
    every, flat = worst("identity", OFF, rank), of("degenerate", NEARNESS)
    without = f"no gap: closest approach to Z_1 at scale {knobs.degenerate_scale:g}, over ||Z_1||"
    return {
        "every entry measured: exponents against 2 (x_s - x_s+1) / (x_s + x_s+1)": at_most(
            0.03, every, "in the worst phase", control=True
        ),
        "closest approach at scale 1 over ||Z_s||, nearest phase": no_less(
            0.15, large, "a large start has no phases", control=True
        ),
        without: no_less(0.15, flat, "without a gap phase 1 vanishes", control=True),
    }


def summary(records: Records, knobs: MatrixSensing) -> str:
    """How near descent comes from the smallest start."""
    smallest, ranks = min(knobs.scales), range(1, len(knobs.spectrum) + 1)
    found = [of("sensing", NEARNESS, phase=s, scale=smallest)(records).mean() for s in ranks]
    words = ", ".join(f"{value:.2g} of ||Z_{s}||" for s, value in enumerate(found, start=1))
    return f"Closest approaches at a scale of {smallest:g}: {words}."


# ---- readings


@lab.once
def power_laws(rows: pl.DataFrame) -> pl.DataFrame:
    """Of each seed and phase: `slope` of log closest approach on log scale.

    Fitted to the smallest scales above rounding; `limit` is that over the last of them, and `time`
    the slope of the learned step on log(1 / scale), in units of 1 / lr. NaN where points are too
    few. What is forecast stands beside them.
    """
    keys = ("seed", "phase")
    log_scale, learned = pl.col("scale").log(), pl.col("learned_step") * pl.col("lr")
    close = rows.filter(pl.col("scale") < 1, CLOSEST > _ROUNDING)
    fits = {
        "slope": lab.slopes(close, log_scale, CLOSEST.log(), by=keys, smallest=_POINTS),
        "limit": lab.slopes(close, log_scale, CLOSEST.log(), by=keys, smallest=_LAST),
        "time": lab.slopes(rows, -log_scale, learned, pl.col("scale") <= SMALL, by=keys),
    }
    laws = rows.group_by(keys, maintain_order=True).agg(pl.col(_FORECAST).first())
    for name, fit in fits.items():
        slope = fit.select(*keys, pl.col("slope").alias(name))
        laws = laws.join(slope, on=keys, how="left", maintain_order="left")
    return laws.with_columns(pl.col(*fits).fill_null(math.nan))


def law(experiment: str, value: str | pl.Expr, **where: Any) -> Reading:
    """A value of an experiment's power laws, as `of` reads it."""
    return Reading(lambda records: per_seed(power_laws(records[experiment]), value, **where))


def worst(experiment: str, value: str | pl.Expr, rank: int) -> Reading:
    """The same in the phase where it is greatest; unknown where it is unknown of any phase."""
    return lab.greatest(law(experiment, value, phase=s) for s in range(1, rank + 1))


def shifts(rows: pl.DataFrame, knobs: MatrixSensing) -> pl.DataFrame:
    """Rows of phases and measurements with `shift`, what ||Z_s - X*_s|| is in root mean square."""
    known = [
        (s, count, predict.minimiser_shift(knobs.spectrum, s, dim=knobs.dim, measurements=count))
        for s in range(1, len(knobs.spectrum))
        for count in knobs.amounts
    ]
    keys = ["phase", "measurements"]
    found = pl.DataFrame(known, schema=[*keys, "shift"], orient="row")
    return rows if rows.is_empty() else rows.join(found, on=keys, maintain_order="left")
