"""What label noise must do to the spread of neurons, at what rate, and where it must not."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import polars as pl

from undertow.claims import Records
from undertow.claims.rank_one_features import RankOneFeatures
from undertow.lab import (
    KEPT,
    PerSeed,
    Prediction,
    Reading,
    at_most,
    every_seed,
    lost,
    no_less,
    of,
    share,
    within,
)

DECIDING = ("collapse", "rates", "signs")
LEAST_STEPS = 100_000  # from a random start; of fewer no verdict is promised


def moved(column: str) -> pl.Expr:
    """By how much a column fell from its trial's first reading to its last."""
    return (pl.col(column).first() - pl.col(column).last()).over("trial")


LENGTH = pl.col("step").last().over("trial")
LAST = pl.col("step") == LENGTH
FOLDS = moved("log_spread")
RATE = FOLDS / LENGTH
EXCESS = pl.col("trace") / pl.col("least_trace") - 1


def predictions(knobs: RankOneFeatures) -> dict[str, Prediction]:
    """All of them; the thresholds were fixed on pilot seeds."""
    return collapse_rules() | rate_rules(knobs) | sign_rules()


def collapse_rules() -> dict[str, Prediction]:
    """From a random start: rank one at the flattest fit, and not without label noise."""
    rules = {}
    for inputs in ("orthonormal", "independent"):
        rules[f"{inputs} inputs, s2 / s1 of the features"] = at_most(
            0.05, end("rank_ratio", inputs), "the features are of rank one, from a random start"
        )
        rules[f"{inputs} inputs, F over its minimum, less one"] = at_most(
            0.01, end(EXCESS, inputs), "the trace of the Hessian is at its global minimum"
        )
    still = end("rank_ratio", noise="none")
    shaken = of("signs", FOLDS, KEPT, noise="isotropic")
    return rules | {
        "without noise, s2 / s1 of the features": no_less(
            0.3, still, "fitting alone does not give rank one", control=True
        ),
        "without noise, e-folds of the spread": at_most(
            1e-6, end(FOLDS.abs(), noise="none"), "nothing moves at zero loss", control=True
        ),
        "noise on the weights in place of the labels, e-folds lost": at_most(
            0, shaken, "it grows, as much noise of another shape does not do it", control=True
        ),
    }


def rate_rules(knobs: RankOneFeatures) -> dict[str, Prediction]:
    """Near equal neurons: the rate has no free parameter."""
    largest, limit = max(knobs.lrs), "where a line through the learning rates meets 0"
    eigenvalue = moved("log_spread_slowest") / LENGTH / pl.col("predicted_slowest")
    known = of("rates", RATE / pl.col("predicted_at_lr"), KEPT, inputs="orthonormal", lr=largest)
    return {
        "orthonormal inputs, rate over 2 lr^2 s^2 phi' phi''', lr to 0": within(
            0.9, 1.1, at_zero(RATE / pl.col("predicted"), knobs.lrs, "orthonormal"), limit
        ),
        "independent inputs, slowest rate over the eigenvalue, lr to 0": within(
            0.9, 1.1, at_zero(eigenvalue, knobs.lrs, "independent"), limit
        ),
        f"rate over prediction that knows lr x curvature, lr = {largest:g}": within(
            0.95, 1.05, known, "at the largest learning rate, without extrapolation"
        ),
    }


def sign_rules() -> dict[str, Prediction]:
    """The sign of phi' phi''' says whether neurons meet or part."""
    near_zero = (pl.col("activation") == "tanh") & (pl.col("target") < 0.5)
    curved = pl.col("activation") != "quadratic"
    off = (RATE / pl.col("predicted_at_lr") - 1).abs()
    heard: dict[str, Any] = {"noise": "label"}
    flat, cubic = (
        of("signs", RATE, KEPT, activation=name, **heard) for name in ("quadratic", "cubic")
    )
    drift = abs(flat / cubic.then(lambda found: found.mean() or math.nan))

    return {
        "tanh near 0, where phi''' < 0: neurons move apart": every_seed(
            share("signs", RATE < 0, KEPT, near_zero, **heard),
            "there equal neurons are the sharpest way to fit",
        ),
        "the other signs of phi' phi''' of four activations": every_seed(
            share("signs", RATE * pl.col("predicted") > 0, KEPT, curved, ~near_zero, **heard),
            "all of them, tanh away from 0 among them",
        ),
        "rate against prediction, worst activation and point": at_most(
            0.15, of("signs", off, KEPT, curved, how="max", **heard), "lr x curvature counted"
        ),
        "phi''' = 0, rate over that of the cubic": at_most(
            0.01, drift, "nothing draws the neurons of a quadratic", control=True
        ),
    }


def summary(records: Records, knobs: RankOneFeatures) -> str:
    """How many of the runs that decide were lost."""
    return "{} of {} runs diverged and are left out.".format(*lost(records, *DECIDING))


def promises_verdict(records: Records, knobs: RankOneFeatures) -> bool:
    """Whether runs from a random start are long enough to arrive."""
    return knobs.collapse_steps >= LEAST_STEPS


# ---- readings


def end(value: str | pl.Expr, inputs: str = "orthonormal", noise: str = "label") -> Reading:
    """A value at the end of the runs from a random start."""
    return of("collapse", value, KEPT, how="last", inputs=inputs, noise=noise)


def at_zero(ratio: pl.Expr, lrs: tuple[float, ...], inputs: str) -> Reading:
    """A ratio extrapolated to lr = 0 along a line for every seed that has two learning rates."""
    readings = [of("rates", ratio, KEPT, inputs=inputs, lr=lr) for lr in lrs]

    def read(records: Records) -> PerSeed:
        found = [reading(records).values for reading in readings]
        ends = {}
        for seed in sorted(set().union(*found)):
            own = {
                lr: values[seed] for lr, values in zip(lrs, found, strict=True) if seed in values
            }
            if len(own) > 1:
                ends[seed] = float(np.polyfit(list(own), list(own.values()), 1)[1])
        return PerSeed(ends)

    return Reading(read)
