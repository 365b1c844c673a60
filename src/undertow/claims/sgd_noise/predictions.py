"""What the memo predicts of the floor, of the noise and of the rank that SGD with decay leaves."""

from __future__ import annotations

import math
import operator
from functools import reduce
from itertools import pairwise
from typing import Any

import polars as pl

from undertow import lab
from undertow.claims import Records
from undertow.claims.sgd_noise import KINDS, SgdNoise
from undertow.lab import KEPT, PerSeed, Prediction, Reading, at_most, no_less, of

LEARNED = 0.9  # training accuracy of a network that counts: a collapsed one has no rank
DECAYED, _LEAST, _FLOOR = pl.col("weight_decay") > 0, pl.col("least"), pl.col("floor")
_RMS = pl.col("rms")
_EPOCHS, _STEPS = pl.col("equal_epochs"), pl.col("equal_steps")
_NORMED = "batch norm"  # the kind for which the memo's words do not hold


def predictions(knobs: SgdNoise) -> dict[str, Prediction]:
    """Networks at rest, then ranks and noise under SGD with decay throughout."""
    return floor(knobs) | ranks(knobs) | noises(knobs)


def floor(knobs: SgdNoise) -> dict[str, Prediction]:
    """Networks at rest that have fitted, as a collapsed one has no rank to speak of."""
    fitted, decays = at_rest(knobs), sorted(knobs.weight_decay)
    hidden = (*fitted, DECAYED, _FLOOR > 0, pl.col("batch_size") == 1, pl.col("layer") == 2)
    quiet = noise(knobs, 0.0) / noise(knobs, decays[1])
    resting = of("rest", pl.col("residual") / _LEAST, *fitted, DECAYED, how="max", classes=10)
    doubled = lab.share("rest", _LEAST < 2 * _FLOOR, *hidden, classes=10)
    tight = of("rest", _LEAST / _FLOOR, *hidden, classes=10)
    single: dict[str, Any] = {"classes": 2, "layer": 2, "batch_size": 1}
    return {
        "measured minimum over floor, hidden matrix": at_most(
            1.5,
            tight,
            "the floor is not far below, at batch size 1, mean over the decays",
            against=math.inf,
        ),
        "noise rises with decay": lab.every_seed(rises(knobs, decays), "over all the decays"),
        "noise without decay over weakest decay": at_most(
            1 / 30, quiet, f"of that at {decays[1]:g}: no decay, no noise", control=True
        ),
        "full-batch gradient over least batch gradient": lab.every_seed(
            resting <= 0.1,
            "at most 0.1: descent is at rest, no batch is, in the worst layer",
            control=True,
        ),
        "twice the floor broken, hidden matrix": no_less(
            0.5,
            doubled,
            "of the seeds, at every decay: lambda is half of weight_decay",
            control=True,
        ),
        "noise over weight_decay x ||W||, hidden matrix of two classes": no_less(
            1,
            of("rest", _RMS / pl.col("decay"), *fitted, **single),
            "it has come to rank one: nothing is in excess, and noise is there all the same",
            control=True,
        ),
        "floor over noise, hidden matrix of two classes": at_most(
            1e-2, of("rest", _FLOOR / _RMS, *fitted, **single), "no floor", control=True
        ),
    }


def ranks(knobs: SgdNoise) -> dict[str, Prediction]:
    """The rank that a small batch leaves over that of a large one, of the hidden matrices."""
    found: dict[str, Prediction] = {}
    for kind in KINDS:
        epochs, steps = (ratio(knobs, kind, when) for when in (_EPOCHS, _STEPS))
        name = f"rank, batch {knobs.small_batch} over {knobs.large_batch}"
        if kind == _NORMED:
            found[f"{name}, equal epochs, {kind}"] = no_less(
                0.9, epochs, "not so under batch norm, whose noise stays", control=True
            )
            continue
        found[f"{name}, equal epochs, {kind}"] = at_most(
            0.9, epochs, "with decay throughout", against=1
        )
        found[f"{name}, equal steps, {kind}"] = no_less(
            0.9, steps, "as much is forgotten: no effect is left", control=True
        )
    found[f"{name}, equal epochs, no decay"] = no_less(
        0.9,
        ratio(knobs, "", _EPOCHS, decayed=False),
        "without decay nothing is forgotten; over all kinds",
        control=True,
    )
    return found


def noises(knobs: SgdNoise) -> dict[str, Prediction]:
    """Where SGD with decay has got to: what of the noise is the decay's, and how it moves."""
    small = knobs.small_batch
    found: dict[str, Prediction] = {}
    for kind in KINDS:
        squares = [trained(kind, small, _RMS**2, decayed=own) for own in (False, True)]
        over = squares[0].then(root) / squares[1].then(root)
        if kind == _NORMED:
            found[f"noise without decay over with, {kind}"] = no_less(
                1 / 3, over, "batch statistics are noise of their own", control=True
            )
            continue
        found[f"noise without decay over with, {kind}"] = at_most(
            1 / 3, over, "no decay, no noise", against=1
        )
    moved = trained("perceptron", small, "displacement")
    still = trained("perceptron", small, "displacement", decayed=False) / moved
    return found | {
        "displacement in an epoch without decay over with": at_most(
            0.1, still, "no decay, no plateau", control=True
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
    frames = records["rest"].filter(*at_rest(knobs)), records["training"].filter(*learned())
    counted = sum(frame["trial"].n_unique() for frame in frames)
    return counted, knobs.seeds * (len(knobs.weight_decay) + 1 + 4 * len(KINDS))


# ---- readings


def at_rest(knobs: SgdNoise) -> tuple[pl.Expr, ...]:
    """The conditions under which a network at rest counts."""
    return KEPT, pl.col("train_accuracy") >= knobs.fit


def learned() -> tuple[pl.Expr, ...]:
    """The conditions under which a network that SGD has trained counts."""
    return KEPT, pl.col("train_accuracy") >= LEARNED


def noise(knobs: SgdNoise, weight_decay: float) -> Reading:
    """The root of the matrices' mean square gradient, of single samples."""
    where: dict[str, Any] = {"batch_size": 1, "weight_decay": weight_decay, "classes": 10}
    return of("rest", _RMS**2, *at_rest(knobs), **where).then(root)


def root(found: PerSeed) -> PerSeed:
    """The square root of each seed's number."""
    return found.map(math.sqrt)


def rises(knobs: SgdNoise, decays: list[float]) -> Reading:
    """The share of seeds in which the noise rises at each step; unknown of one step alone."""
    steps = [noise(knobs, more) - noise(knobs, less) > 0 for less, more in pairwise(decays)]
    if len(steps) < 2:
        return Reading(lambda _: lab.unknown())
    return reduce(operator.mul, steps).then(PerSeed.share)


def ratio(knobs: SgdNoise, kind: str, when: pl.Expr, *, decayed: bool = True) -> Reading:
    """The mean rank of hidden matrices after the small batch over that after the large one."""
    sizes = (knobs.small_batch, knobs.large_batch)
    small, large = (trained(kind, size, "rank", when, decayed=decayed) for size in sizes)
    return small / large


def trained(
    kind: str,
    batch_size: int,
    value: str | pl.Expr,
    when: pl.Expr = _STEPS,
    *,
    decayed: bool = True,
) -> Reading:
    """A value where SGD has got to, mean over hidden matrices, of one kind or of all."""
    chosen = (*learned(), when, DECAYED if decayed else ~DECAYED)
    where: dict[str, Any] = {"batch_size": batch_size} | ({"kind": kind} if kind else {})
    return of("training", value, *chosen, **where)
