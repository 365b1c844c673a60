"""What the paper predicts of functions, weights and norms under decay, and where it must fail."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import polars as pl

from undertow import lab
from undertow.claims import Records
from undertow.claims.intrinsic_lr import KINDS, IntrinsicLr
from undertow.claims.intrinsic_lr.trials import EARLY, LONGER, SMALLER, SPLIT, TIMES
from undertow.lab import (
    PerSeed,
    Prediction,
    Reading,
    at_most,
    every_seed,
    near,
    no_less,
    of,
    outside,
)

SETTLED = 2.0  # a distance in parts of what chance sets apart, down to which ensembles have met
_FAR = pl.col("distance") / pl.col("null")


def predictions(knobs: IntrinsicLr) -> dict[str, Prediction]:
    """In function space, of weights, at rest, of schedules, and in full batches."""
    found: dict[str, Prediction] = {}
    for kind in KINDS:
        for part in (_functions, _weights, _norms, _schedules):
            rules = part(knobs, kind)
            found |= {f"{name}, {kind}": rule for name, rule in rules.items()}
    return found | _controls(knobs) | _circle()


def summary(records: Records, knobs: IntrinsicLr) -> str:
    """How many networks an ensemble has, and until when it is read."""
    return (
        f"Ensembles of {knobs.members} networks a start and seed, read up to {knobs.horizon} / (lr "
        f"x weight_decay) steps on {knobs.shown} test images."
    )


def _functions(knobs: IntrinsicLr, kind: str) -> dict[str, Prediction]:
    last = float(knobs.horizon)
    half = "half the intrinsic lr"
    return {
        "distance of two starts over chance, at the end": at_most(
            1.2, apart(kind, "starts", last), "equal products meet", against=1.5
        ),
        "distance of two starts over chance, at first": no_less(
            SETTLED, apart(kind, "starts", TIMES[0]), "they are far apart then", control=True
        ),
        f"distance to {half} over chance, at the end": no_less(
            1.3, apart(kind, "products", last), "another law, and it is seen", control=True
        ),
        "distance of the least product to the largest over chance, after equal steps": no_less(
            1.5, apart(kind, "steps", EARLY), "time goes by the product", control=True
        ),
        "power of the product in the steps until they meet": near(
            -1, 0.25, power(knobs, kind), "its inverse", against=0.75
        ),
        "steps until they meet over what is exponential in 1 / product": at_most(
            0.75, exponential(knobs, kind), "from the two larger products", control=True
        ),
    }


def _weights(knobs: IntrinsicLr, kind: str) -> dict[str, Prediction]:
    last, middle = float(knobs.horizon), float(knobs.horizon // 2 + 1)
    apart = of("weights", pl.col("within") - pl.col("across"), kind=kind, time=last)
    ways = [of("weights", "moved", kind=kind, time=time) for time in (last, middle)]
    losses = [of("weights", name, kind=kind, time=last) for name in ("averaged_loss", "loss")]
    return {
        "cosine of weights from one start above that from two, at the end": every_seed(
            apart > 0, "weights do not meet"
        ),
        "square distance of weights, later over earlier": no_less(
            1.1, ways[0] / ways[1], "it keeps growing", against=1
        ),
        "test loss of weights averaged over time over that of the last": at_most(
            0.95, losses[0] / losses[1], "averages still help", against=1
        ),
    }


def _norms(knobs: IntrinsicLr, kind: str) -> dict[str, Prediction]:
    large, small = knobs.lr * SPLIT, knobs.lr / SPLIT
    heavy = knobs.lr * (1 - knobs.momentum)
    both = pl.col("lr").is_in([large, small])
    found = {
        f"||w||^4 over the law's, lr {small:g} and {large:g}": near(
            1, 0.1, at_rest(kind, "fourth", "predicted", both), "at rest", against=0.5
        ),
        f"turn of a step over the law's, lr {small:g} and {large:g}": near(
            1, 0.1, at_rest(kind, "turned", "predicted_turn", both), "at rest", against=0.5
        ),
        f"||w||^4 over the law's, momentum {knobs.momentum:g}": near(
            1,
            0.3,
            at_rest(kind, "fourth", "predicted", lr=heavy),
            "gradients remember",
            against=0.5,
        ),
    }
    equal = effective(kind, large) / effective(kind, small)
    found[f"effective lr, lr {large:g} over lr {small:g}"] = near(
        1, 0.1, equal, "the product decides, not the rate", against=0.5
    )
    found["effective lr at twice the product over it"] = no_less(
        1.1, effective(kind, knobs.lr) / effective(kind, small), "not so of others", control=True
    )
    for name, lr in (("", knobs.lr), (f", momentum {knobs.momentum:g}", heavy)):
        found[f"rate at which ||w||^4 comes back over lr x weight_decay{name}"] = near(
            -4, 0.2, clock(kind, lr), "from far too large", against=2
        )
    return found


def _schedules(knobs: IntrinsicLr, kind: str) -> dict[str, Prediction]:
    usual = accuracy(kind, knobs.annealed_lr, knobs.steps)
    small = knobs.annealed_lr / SMALLER
    name = f"test accuracy, initial lr / {SMALLER}"
    return {
        f"{name} and {LONGER} times as long, less the usual": near(
            0,
            0.02,
            accuracy(kind, small, LONGER * knobs.steps) - usual,
            "as good",
            against=0.05,
        ),
        f"{name} and as long, less the usual": at_most(
            -0.05, accuracy(kind, small, knobs.steps) - usual, "it needs the steps", control=True
        ),
    }


def _controls(knobs: IntrinsicLr) -> dict[str, Prediction]:
    bare = at_rest("no norm", "fourth", "predicted")
    head = at_rest("trained head", "fourth", "predicted", layer=3)
    kept = of("rest", "fourth", kind="batch norm", decayed=False)
    decayed = of("rest", "fourth", "decayed", kind="batch norm", lr=knobs.lr)
    return {
        "||w||^4 over the law's, no norm": outside(
            1, 0.5, bare, "nothing is scale-invariant", control=True
        ),
        "||w||^4 over the law's, trained last layer": outside(
            1, 0.5, head, "it is not scale-invariant", control=True
        ),
        "||w||^4 without decay over with, batch norm": no_less(
            4, kept / decayed, "nothing brings it to rest", control=True
        ),
        "rate at which ||w||^4 comes back over lr x weight_decay, no norm": outside(
            -4, 0.2, clock("no norm", knobs.lr), "the gradient pulls, too", control=True
        ),
    }


def _circle() -> dict[str, Prediction]:
    high, low, twin = (of("circle", name, "decayed") for name in ("highest", "lowest", "apart"))
    still = of("circle", "highest", ~pl.col("decayed"))
    return {
        "full batches with decay: the late loss rises above 0.1": every_seed(
            high > 0.1, "it never settles"
        ),
        "full batches with decay: and falls below 1e-6": every_seed(low < 1e-6, "and comes back"),
        "full batches with decay: a twin 1e-9 off ends elsewhere": every_seed(
            twin > 0.1, "by 0.1 of loss"
        ),
        "full batches once decay is off: the late loss is below 1e-12": every_seed(
            still < 1e-12, "it settles", control=True
        ),
    }


# ---- readings


def apart(kind: str, compared: str, time: float) -> Reading:
    """A distance in function space in parts of what chance sets apart, mean over products."""
    return of("functions", _FAR, kind=kind, compared=compared, time=time).then(as_ratio)


def as_ratio(found: PerSeed) -> PerSeed:
    """The same, its median taken in logarithms."""
    return PerSeed(found.values, is_ratio=True)


def settling(kind: str, product: float) -> Reading:
    """Log of the steps after which two starts are no farther than `SETTLED` times chance."""

    def read(records: Records) -> PerSeed:
        frame = records["functions"]
        if frame.is_empty():
            return PerSeed({})
        rows = frame.filter(kind=kind, compared="starts", product=product)
        found = {}
        for own in rows.sort("seed", "time").partition_by("seed"):
            far = (own["distance"] / own["null"]).log().to_numpy() - math.log(SETTLED)
            found[own["seed"][0]] = math.log(crossing(own["time"].to_numpy(), far) / product)
        return PerSeed(found)

    return Reading(read)


def crossing(times: np.ndarray, far: np.ndarray) -> float:
    """When something first is below zero, by interpolation; NaN if never or from the first on."""
    below = np.flatnonzero(far <= 0)
    if not len(below) or below[0] == 0:
        return math.nan
    after = below[0]
    pair = slice(after - 1, after + 1)
    return float(np.interp(0, far[pair][::-1], times[pair][::-1]))


def power(knobs: IntrinsicLr, kind: str) -> Reading:
    """Of the products, by which the steps until two starts meet grow: each seed's own slope."""
    steps = [settling(kind, product) for product in knobs.products]

    def read(records: Records) -> PerSeed:
        found: list[PerSeed] = [own(records) for own in steps]
        across = np.log(knobs.products)
        common = sorted(set.intersection(*(set(own.values) for own in found)))
        return PerSeed(
            {
                seed: float(np.polyfit(across, [own.values[seed] for own in found], 1)[0])
                for seed in common
            }
        )

    return Reading(read)


def exponential(knobs: IntrinsicLr, kind: str) -> Reading:
    """The steps at the third product over what an exponential law through the first two says.

    With log steps linear in 1 / product, it grows twice as much from the second to the third.
    """
    one, two, three = (settling(kind, product) for product in knobs.products[:3])
    return (three - two - (two - one) * 2).then(exponentiated)


def exponentiated(found: PerSeed) -> PerSeed:
    """E to the power of each seed's number, as ratios."""
    return PerSeed(found.map(math.exp).values, is_ratio=True)


def at_rest(kind: str, column: str, law: str, *conditions: pl.Expr, **where: Any) -> Reading:
    """What is measured at rest over what a closed form says, mean over layers."""
    ratio = pl.col(column) / pl.col(law)
    return of("rest", ratio, *conditions, kind=kind, **where).then(as_ratio)


def effective(kind: str, lr: float) -> Reading:
    """Lr / ||w||^2 at rest, mean over layers."""
    return of("rest", lr / pl.col("fourth").sqrt(), "decayed", kind=kind, lr=lr)


def clock(kind: str, lr: float) -> Reading:
    """The slope in time x lr x weight_decay of the logarithm of ||w||^4 less that at rest."""
    above = (pl.col("ratio") - 1).log()
    return lab.slope_by_seed("clock", pl.col("time"), above, kind=kind, lr=lr)


def accuracy(kind: str, lr: float, steps: int) -> Reading:
    """Test accuracy at the end of a schedule."""
    return of("schedules", "accuracy", kind=kind, lr=lr, steps=steps)
