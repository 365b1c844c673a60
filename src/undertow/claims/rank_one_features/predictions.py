"""What label noise must do to the spread of neurons, at what rate, and where it must not."""

from __future__ import annotations

import math
from typing import Any

import polars as pl

from undertow.claims import Records
from undertow.claims.rank_one_features import RankOneFeatures
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
    share,
)

LEAST_TIME = 10.0  # from a random start; of a shorter one no verdict is promised
INPUTS = ("orthonormal", "independent", "digit")

LENGTH = pl.col("step").last().over("trial")
LAST = pl.col("step") == LENGTH
EXCESS = (pl.col("trace") / pl.col("least_trace") - 1).abs()

# Where neurons are near one another, and not yet as near as rounding.
NEAR = (pl.col("narrowest") > 1e-10) & (pl.col("widest") < 0.1)
SEEN = (pl.col("apart") > 1e-10) & (pl.col("path_apart") > 1e-10)


def moved(column: str | pl.Expr, where: pl.Expr) -> pl.Expr:
    """By how much a column fell from the first reading of its trial in which to the last."""
    value = pl.col(column) if isinstance(column, str) else column
    within = pl.when(where).then(value).drop_nulls
    return (within().first() - within().last()).over("trial")


STEPS = -moved("step", NEAR)
RATE = pl.when(STEPS > 0).then(moved("log_spread", NEAR) / STEPS)
SLOWEST = pl.when(STEPS > 0).then(moved("log_spread_slowest", NEAR) / STEPS)
APPROACH = moved(pl.col("apart").log(), SEEN)
FORESEEN = moved(pl.col("path_apart").log(), SEEN)
FOLDS = (pl.col("apart").first().over("trial") / pl.col("apart")).log()  # up to a reading
FALLEN = pl.col("rank_ratio") / pl.col("rank_ratio").first().over("trial")


def predictions(knobs: RankOneFeatures) -> dict[str, Prediction]:
    """From a random start, at the edges of the statement, near equal neurons, and their signs."""
    return collapse_rules() | reach_rules() | rate_rules(knobs) | sign_rules()


def collapse_rules() -> dict[str, Prediction]:
    """From a random start: rank one at the flattest fit, and as fast as the flow of the trace."""
    rules: dict[str, Prediction] = {}
    for inputs in INPUTS:
        rules |= {
            f"{inputs} inputs, s2 / s1 of the features over the start's": at_most(
                0.05, end(FALLEN, inputs=inputs), "rank one, from a random start", against=1
            ),
            f"{inputs} inputs, F - F_min over the start's": at_most(
                0.01,
                end(EXCESS / EXCESS.first().over("trial"), inputs=inputs),
                "the trace of the Hessian is at its global minimum",
                against=1,
            ),
            f"{inputs} inputs, e-folds of the distance over forecast": near(
                1,
                0.05,
                end(APPROACH / FORESEEN, inputs=inputs),
                "known from the random start",
                against=1,
            ),
            f"{inputs} inputs, e-folds over 2 lr^2 s^2 lambda_min t, least": every_seed(
                of("collapse", guaranteed(), KEPT, how="min", activation="cubic", inputs=inputs)
                >= 1,
                "at least 1, so no slower than this at any time, as phi', phi''' >= 1",
            ),
        }
    return rules


def reach_rules() -> dict[str, Prediction]:
    """Where the global statement ends: other noise, other activations, other output weights."""
    still = of("collapse", "rank_ratio", KEPT, how="last", noise="none")
    unequal = {"activation": "sinh", "weights": "unequal"}
    kept_rank = pl.col("rank_ratio") / pl.col("flattest_ratio")
    apart = "where phi''' < 0 they stay apart"
    shaken = of("signs", -grown(), KEPT, how="last", noise="isotropic")
    return {
        "tanh, all neurons where phi''' > 0, s2 / s1 over the start's": at_most(
            0.1, end(FALLEN, activation="tanh", target=1.2), "it holds on that interval", against=1
        ),
        "tanh, neurons on both sides, s2 / s1 over the start's": no_less(
            0.3, end(FALLEN, pl.col("target").is_null(), activation="tanh"), apart, control=True
        ),
        "unequal output weights, s2 / s1 of phi''(features)": at_most(
            0.01, end("bend_ratio", **unequal), "c_i / a_j is of rank one", against=1
        ),
        "unequal output weights, s2 / s1 of the features over forecast": near(
            1, 0.1, end(kept_rank, **unequal), "and not the features themselves", against=1
        ),
        "without noise, s2 / s1 of the features": no_less(
            0.1, still, "fitting alone does not give rank one", control=True
        ),
        "noise on the weights in place of the labels, e-folds lost": at_most(
            0, shaken, "it grows, as much noise of another shape does not do it", control=True
        ),
    }


def rate_rules(knobs: RankOneFeatures) -> dict[str, Prediction]:
    """Near equal neurons: the rate has no free parameter."""
    least, largest = knobs.lr_curvatures[0], knobs.lr_curvatures[-1]
    small, large = pl.col("lr") == pl.col("lr").min(), pl.col("lr") == pl.col("lr").max()

    def rate(value: pl.Expr, which: pl.Expr, inputs: str) -> Reading:
        return of("rates", pl.when(which).then(value), KEPT, how="last", inputs=inputs)

    known = rate(RATE / pl.col("predicted_at_lr"), large, "orthonormal")
    eigenvalue = rate(SLOWEST / pl.col("predicted_slowest"), small, "independent")
    return {
        f"orthonormal inputs, rate over prediction, lr x curvature {largest:g}": near(
            1, 0.05, known, "2 lr^2 s^2 phi' phi''' / (1 - lr h / 2)", against=1
        ),
        f"independent inputs, slowest rate over eigenvalue, lr x curvature {least:g}": near(
            1, 0.1, eigenvalue, "the least of X X^T diag(2 lr^2 s^2 phi' phi''')", against=1
        ),
    }


def sign_rules() -> dict[str, Prediction]:
    """The sign of phi' phi''' says whether neurons meet or part."""
    near_zero = (pl.col("activation") == "tanh") & (pl.col("target") < 0.5)
    curved = pl.col("activation") != "quadratic"
    off = (RATE / pl.col("predicted_at_lr") - 1).abs()
    heard: dict[str, Any] = {"noise": "label"}
    flat, cubic = (
        of("signs", grown().abs(), KEPT, how="last", activation=name, **heard)
        for name in ("quadratic", "cubic")
    )
    return {
        "tanh near 0, where phi''' < 0: neurons move apart": every_seed(
            share("signs", RATE < 0, KEPT, near_zero, **heard),
            "there equal neurons are the sharpest way to fit",
        ),
        "the other signs of phi' phi''' of four activations": every_seed(
            share("signs", RATE * pl.col("predicted") > 0, KEPT, curved, ~near_zero, **heard),
            "all of them, tanh away from 0 among them",
        ),
        "rate against prediction, worst activation and point": every_seed(
            of("signs", off, KEPT, curved, how="max", **heard) <= 0.15,
            "off by at most 0.15 of it, lr x curvature counted",
            against=math.inf,
        ),
        "phi''' = 0, e-folds over those of the cubic": at_most(
            0.01, flat / cubic, "nothing draws the neurons of a quadratic", control=True
        ),
    }


def summary(records: Records, knobs: RankOneFeatures) -> str:
    """How many runs were lost."""
    return "{} of {} runs diverged and are left out.".format(*lost(records))


def promises_verdict(records: Records, knobs: RankOneFeatures) -> bool:
    """Whether runs from a random start are long enough to arrive."""
    return knobs.far_time >= LEAST_TIME


# ---- readings


def end(value: str | pl.Expr, *conditions: pl.Expr, **where: Any) -> Reading:
    """A value at the end of runs from a random start; of the cubic unless another is named."""
    chosen = {"activation": "cubic", "noise": "label"} | where
    return of("collapse", value, KEPT, *conditions, how="last", **chosen)


def guaranteed() -> pl.Expr:
    """E-folds up to a reading over the least that is guaranteed up to it."""
    steps = pl.when(pl.col("step") > 0, SEEN).then("step")
    return FOLDS / (steps * pl.col("predicted_least"))


def grown() -> pl.Expr:
    """E-folds by which the spread has grown since the start, wherever it is."""
    return pl.col("log_spread") - pl.col("log_spread").first().over("trial")
