"""How near descent comes to each saddle and when, and where the prediction must fail."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import polars as pl

from undertow import lab
from undertow.claims import Records
from undertow.claims.matrix_sensing import MatrixSensing
from undertow.lab import PerSeed, Prediction, Reading, at_most, greatest, no_less, of, per_seed

SMALL = 1e-2  # from here down a scale counts as small
_ROUNDING = 1e-12  # closest approaches below are rounding
_POINTS = 5  # scales that the power law is fitted to, the smallest above rounding
_LAST = 3  # scales that the exponent in the limit is fitted to

_FORECAST = "^(exponent|early_exponent|arrival)$"  # columns, where there are any

CLOSEST, TRUNCATED = pl.col("closest"), pl.col("closest_to_truncated")
NEARNESS = CLOSEST / pl.col("size")
SATURATION = TRUNCATED / pl.col("apart")
OFF = (pl.col("slope") / pl.col("exponent") - 1).abs()
LATE = (pl.col("time") / pl.col("arrival") - 1).abs()
BENDS = pl.col("limit").is_between(0.95 * pl.col("exponent"), 1.05 * pl.col("early_exponent"))
LATER = pl.col("closest_step").diff().over("seed", "scale", order_by="phase") > 0
FALLS = CLOSEST.diff().over("seed", "phase", order_by="scale") > 0


def predictions(knobs: MatrixSensing) -> dict[str, Prediction]:
    """Approaches, phases, narrow runs and controls; the thresholds are the pilots'."""
    return approaches(knobs) | phases(knobs) | controls(knobs)


def approaches(knobs: MatrixSensing) -> dict[str, Prediction]:
    """How near descent comes to the minimisers, and by which power of the scale."""
    rank, smallest = len(knobs.spectrum), min(knobs.scales)
    before = pl.col("phase") < rank
    halved = lab.share("sensing", CLOSEST / TRUNCATED < 0.5, before, scale=smallest)
    plateau = of("sensing", SATURATION, before, scale=smallest)
    bracketed = law(BENDS, before, how="all").then(PerSeed.share)
    of_z = [f"Z_{s}" for s in range(1, rank + 1)]
    rising = {
        f"slope of the closest approach to {z}": no_less(
            0, law("slope", phase=s).then(PerSeed.known), "it is a power of the scale"
        )
        for s, z in enumerate(of_z, start=1)
    }
    limits = {
        f"exponent in the limit against the predicted, {z}, median": lab.near(
            0, 0.1, departure(s), "2 g k / (k + 2 v), from the spectra at the saddles"
        )
        for s, z in enumerate(of_z[:-1], start=1)
    }
    fitted = f"over the {_POINTS} smallest scales above rounding"
    return {
        **rising,
        "one minus R^2 of these power laws, worst phase": at_most(
            0.02, worst_phase("misfit", rank), fitted
        ),
        **limits,
        "exponent between the predicted limit and the predicted early one": no_less(
            0.8, bracketed, "of the problems, to 5% in every phase before the last"
        ),
        "closest approach to Z_s below half of that to X*_s": lab.every_seed(
            halved, "and phase before the last, at the smallest scale"
        ),
        "plateau of the approach to X*_s over ||Z_s - X*_s||": lab.within(
            0.9, 1.1, plateau, "the truncated SVD is the wrong target"
        ),
    }


def phases(knobs: MatrixSensing) -> dict[str, Prediction]:
    """One after the other, when the spectra say, at the matrices of greedy learning."""
    rank = len(knobs.spectrum)
    greedy = greatest(of("sensing", "to_greedy", phase=s) for s in range(1, rank + 1))
    in_order = lab.share("sensing", LATER, pl.col("scale") <= SMALL)
    nearer = lab.share("sensing", FALLS, pl.col("scale") < 1, CLOSEST > _ROUNDING)
    ended = of("narrow", pl.col("end_distance") / pl.col("size"), how="max")
    return {
        "T_1 < T_2 < ...": lab.every_seed(in_order, f"in all runs of scale {SMALL:g} or less"),
        "time of arrival against the predicted, worst phase": at_most(
            0.05, worst_phase(LATE, rank), "steps per log(1 / scale), from the saddles' spectra"
        ),
        "greedy learning's phase s against Z_s, worst phase": at_most(
            1e-6, greedy, "of ||Z_s||: it finds the minimisers of each rank"
        ),
        "descent comes nearer to greedy learning's phase with every smaller scale": lab.every_seed(
            nearer, "and phase"
        ),
        "end of runs with too few columns against Z_width": at_most(
            1e-5, ended, "of its norm: U of r columns ends at Z_r"
        ),
    }


def controls(knobs: MatrixSensing) -> dict[str, Prediction]:
    """Every entry measured, a large start, no gap, and too few measurements."""
    rank, few, many = len(knobs.spectrum), knobs.few_measurements, knobs.measurements
    large = of("sensing", NEARNESS, pl.col("phase") < rank, how="min", scale=1.0)
    enough = of("sensing", "final_error", phase=1, scale=knobs.narrow_scale)
    every = worst_phase(OFF, rank, "identity")
    return {
        "every entry measured: exponents against 2 (x_s - x_s+1) / (x_s + x_s+1)": at_most(
            0.03, every, "in the worst phase", control=True
        ),
        "closest approach at scale 1 over ||Z_s||, nearest phase": no_less(
            0.15, large, "a large start has no phases", control=True
        ),
        "slope of the approach to Z_1 without a gap, over that with one": at_most(
            1 / 3, Reading(slope_without_gap), "without a gap phase 1 vanishes", control=True
        ),
        f"error of recovery from {few} measurements": no_less(
            0.3, of("few", "final_error"), "of ||X*||", control=True
        ),
        f"error of recovery from {many} measurements": at_most(
            1e-4, enough, "of ||X*||", control=True
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
    """Of each seed and phase: `slope` and `misfit` (1 - R^2) of log closest approach on log scale.

    Fitted to the smallest scales above rounding; `limit` is the slope over the last of them, and
    `time` that of the learned step on log(1 / scale), in units of 1 / lr. NaN where points are too
    few. What is forecast stands beside them.
    """
    keys = ("seed", "phase")

    def lines(x: pl.Expr, y: pl.Expr, *where: pl.Expr, smallest: int | None = None) -> pl.DataFrame:
        return lab.slopes(rows, x, y, *where, by=keys, smallest=smallest).drop("points")

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
    return laws.with_columns(pl.col("slope", "misfit", "limit", "time").fill_null(math.nan))


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


def departure(phase: int) -> Reading:
    """The median over seeds of limit / predicted - 1: single ones bend beyond the smallest."""

    def median(ratios: PerSeed) -> lab.Effect:
        known = list(ratios.known().values.values())
        return lab.paired_sign_test(known, np.ones(len(known))) if known else lab.unknown()

    return law(pl.col("limit") / pl.col("exponent"), phase=phase).then(median)


def slope_without_gap(records: Records) -> PerSeed:
    """The slope of the approach to Z_1 without a gap, in parts of the mean with one."""
    without: PerSeed = law("slope", experiment="degenerate", phase=1)(records).known()
    with_gap = law("slope", phase=1)(records).mean()
    return without / with_gap
