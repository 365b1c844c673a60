"""What the memo predicts of the floor, and what a displacement shows of the noise."""

from __future__ import annotations

import math
import operator
from functools import reduce
from itertools import pairwise
from typing import Any

import polars as pl

from undertow import lab
from undertow.claims import Records
from undertow.claims.sgd_noise import LR, SHRINK_BATCH, SgdNoise
from undertow.lab import KEPT, PerSeed, Prediction, Reading, at_most, no_less, of, within

_LEAST_PAIRS = 1_000  # (layer, batch) pairs; fewer say little of the code
_DECAYED = pl.col("weight_decay") > 0
_LEAST, _FLOOR = pl.col("least"), pl.col("floor")


def predictions(knobs: SgdNoise) -> dict[str, Prediction]:
    """The floor at rest, then displacements; the thresholds were fixed on other seeds."""
    return floor(knobs) | displacements(knobs)


def floor(knobs: SgdNoise) -> dict[str, Prediction]:
    """Networks at rest that have fitted, as a collapsed one has no rank to speak of."""
    fitted, decays = at_rest(knobs), sorted(knobs.weight_decay)
    hidden = (*fitted, _DECAYED, _FLOOR > 0, pl.col("batch_size") == 1, pl.col("layer") == 2)
    quiet = noise(knobs, 0.0) / noise(knobs, decays[1])
    resting = of("rest", pl.col("residual") / _LEAST, *fitted, _DECAYED, how="max")
    doubled = lab.share("rest", _LEAST < 2 * _FLOOR, *hidden)
    tight = of("rest", _LEAST / _FLOOR, *hidden)
    enough = f"{_LEAST_PAIRS:,} (layer, batch) pairs or more"
    return {
        "guaranteed floor violated": lab.no_seed(violated(knobs), enough, exact=True),
        "measured minimum over floor, hidden matrix": at_most(
            1.5, tight, "the floor is not far below, at batch size 1, mean over the decays"
        ),
        "noise rises with decay": lab.every_seed(rises(knobs, decays), "over all the decays"),
        "noise without decay over weakest decay": at_most(
            1 / 30, quiet, f"of that at {decays[1]:g}: no decay, no noise", control=True
        ),
        "full-batch gradient over least batch gradient": at_most(
            0.1, resting, "descent is at rest, no batch is, in the worst layer", control=True
        ),
        "twice the floor broken, hidden matrix": no_less(
            0.5,
            doubled,
            "of the seeds, at every decay: lambda is half of weight_decay",
            control=True,
        ),
    }


def displacements(knobs: SgdNoise) -> dict[str, Prediction]:
    """An epoch's displacement with decay: shrinkage after fitting, noise much later."""
    moved, sideways, late = pl.col("displacement"), pl.col("tangential"), knobs.late_epochs
    noisy = pl.col("noise") / moved
    reference = knobs.shrink_decay * LR * (knobs.shrink_samples // SHRINK_BATCH)
    same, nearer = (
        epoch(of_what, when, "SGD") / epoch(of_what, when, "GD")
        for of_what, when in ((moved, 0), (sideways, late))
    )
    undecayed = of("displacement", moved / reference, KEPT, method="SGD", weight_decay=0.0)
    plateau = epoch(moved / pl.col("shrinkage"), 0, "SGD")
    return {
        "displacement over shrinkage, after fitting": within(
            0.9, 1.1, plateau, "of lr x weight_decay x steps: the plateau is shrinkage"
        ),
        "displacement, SGD over GD, after fitting": within(
            0.95, 1.05, same, "descent has the same plateau, so it shows no noise", control=True
        ),
        "displacement without decay over shrinkage": at_most(
            0.1, undecayed, "of what the decay would shrink", control=True
        ),
        "noise over displacement, after fitting": at_most(
            0.1, epoch(noisy, 0, "SGD"), "depends on the order of the data"
        ),
        "tangential displacement, SGD over GD, late": no_less(
            1.5, nearer, f"descent comes nearer to rest, after {late:,} epochs of each"
        ),
        "noise over displacement, late": no_less(
            0.5, epoch(noisy, late, "SGD"), f"after {late:,} epochs it shows"
        ),
    }


def summary(records: Records, knobs: SgdNoise) -> str:
    """How many runs count."""
    (counted, wanted), (gone, _) = runs(records, knobs), lab.lost(records)
    return (
        f"{counted} of {wanted} runs were kept; {gone} diverged, the others failed or had not "
        "fitted."
    )


def promises_verdict(records: Records, knobs: SgdNoise) -> bool:
    """Nine in ten runs must count: those that are left of many lost are no fair sample."""
    counted, wanted = runs(records, knobs)
    return counted >= 0.9 * wanted


def runs(records: Records, knobs: SgdNoise) -> tuple[int, int]:
    """How many runs count, and how many there should be."""
    frames = records["rest"].filter(*at_rest(knobs)), lab.kept(records["displacement"])
    counted = sum(frame["trial"].n_unique() for frame in frames)
    return counted, knobs.seeds * (len(knobs.weight_decay) + 2)


# ---- readings


def at_rest(knobs: SgdNoise) -> tuple[pl.Expr, ...]:
    """The conditions under which a network at rest counts."""
    return KEPT, pl.col("train_accuracy") >= knobs.fit


def violated(knobs: SgdNoise) -> Reading:
    """The share of seeds in which a batch goes below the floor; unknown for want of pairs."""
    conditions = (*at_rest(knobs), _DECAYED)
    broken = of("rest", pl.col("violations") > 0, *conditions, how="any").then(PerSeed.share)

    def read(records: Records) -> lab.Effect:
        pairs = records["rest"].filter(*conditions)["pairs"].sum()
        found = broken.effect(records)
        return found if found.value > 0 or pairs >= _LEAST_PAIRS else lab.unknown()

    return Reading(read)


def noise(knobs: SgdNoise, weight_decay: float) -> Reading:
    """The root of the matrices' mean square gradient, of single samples."""
    where: dict[str, Any] = {"batch_size": 1, "weight_decay": weight_decay}
    squares = of("rest", pl.col("rms") ** 2, *at_rest(knobs), **where)
    return squares.then(lambda found: found.map(math.sqrt))


def rises(knobs: SgdNoise, decays: list[float]) -> Reading:
    """The share of seeds in which the noise rises at each step; unknown of one step alone."""
    steps = [
        (noise(knobs, more) - noise(knobs, less)).then(lambda own: own.map(lambda rise: rise > 0))
        for less, more in pairwise(decays)
    ]
    if len(steps) < 2:
        return Reading(lambda _: lab.unknown())
    return reduce(operator.mul, steps).then(PerSeed.share)


def epoch(value: pl.Expr, after: int, method: str) -> Reading:
    """A value of one epoch's displacement with decay, so many epochs after fitting."""
    return of("displacement", value, KEPT, _DECAYED, epoch=after, method=method)
