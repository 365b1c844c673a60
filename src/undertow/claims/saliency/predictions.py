"""What 2211.02912 says of masks of wrong labels, what coarse ones are worth, and what noise is."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import polars as pl

from undertow.claims import Records
from undertow.claims.saliency import Saliency
from undertow.claims.saliency.experiments import (
    ALIEN,
    BLIND,
    COARSE,
    DEARER,
    DOUBLE,
    FINE,
    FINE_TV,
    GRADIENTS,
    PLAIN,
    RANDOM,
    SMOOTH,
    UNTAUGHT,
)
from undertow.lab import KEPT, Prediction, Reading, at_most, greatest, lost, no_less, of, of_means

GAIN = 0.1  # of soundness, at least


def predictions(knobs: Saliency) -> dict[str, Prediction]:
    """Masks, noise beside them, other methods, controls, and evidence in blocks.

    Every number is that of the less favourable data set, seed by seed, or where it says so the mean
    of the two; the middle one of the seeds', or where it says so the mean of all.
    """
    return (
        of_masks(knobs)
        | of_noise(knobs)
        | of_methods(knobs)
        | of_controls(knobs)
        | of_blocks(knobs)
    )


def of_masks(knobs: Saliency) -> dict[str, Prediction]:
    """Free masks, and what regularises them."""
    dearer = f"total variation at a price of {knobs.dearer:g}"
    return {
        f"{FINE}, completeness": no_less(
            0.95, least(knobs, score(FINE, "completeness")), "they keep their label", against=0.8
        ),
        f"{FINE}, soundness": at_most(
            0.5, most(knobs, score(FINE)), "and are there for wrong labels, too", against=0.9
        ),
        f"{COARSE}, soundness gained over {FINE}": no_less(
            GAIN, least(knobs, gained(COARSE)), "the two heuristics together", against=0
        ),
        f"{COARSE}, soundness gained less completeness lost": no_less(
            0, least(knobs, both(COARSE)), "completeness must not drop as much"
        ),
        "total variation at its published price, soundness gained": at_most(
            0.05,
            most(knobs, gained(FINE_TV), gained(COARSE, PLAIN)),
            f"in {FINE} and in coarse ones, whichever is more",
            against=GAIN,
        ),
        f"{dearer}, soundness gained": no_less(
            GAIN, mean(knobs, gained(DEARER)), f"in {FINE}, at this price; mean", against=0
        ),
        "double softmax, soundness gained": no_less(
            GAIN, least(knobs, gained(DOUBLE)), "by the published loss alone", against=0
        ),
        f"linear softmax, {PLAIN}, soundness gained": no_less(
            GAIN,
            least(knobs, gained(PLAIN, model="linear")),
            "no property of networks",
            against=0,
        ),
    }


def of_noise(knobs: Saliency) -> dict[str, Prediction]:
    """The completeness of masks, less that of fine ones with so much noise that they are as sound.

    Were soundness a reason for what regularises them, it would be above zero.
    """
    why = "noise that makes fine masks as sound keeps more; mean of all"
    linear = beyond_noise(PLAIN, model="linear")
    found = {
        COARSE: at_most(0, on_average(knobs, beyond_noise(COARSE)), why),
        DEARER: at_most(0, on_average(knobs, beyond_noise(DEARER)), why),
        f"linear softmax, {PLAIN}": at_most(0, on_average(knobs, linear), why),
        DOUBLE: no_less(
            0, on_average(knobs, beyond_noise(DOUBLE)), "noise keeps less; mean of all"
        ),
    }
    return {f"{name}, completeness beyond noise": rule for name, rule in found.items()}


def of_methods(knobs: Saliency) -> dict[str, Prediction]:
    """Gradients beside masks, and masks that do not heed the label they are asked for."""
    return {
        f"gradient x input, soundness less that of {FINE}": at_most(
            0, most(knobs, gained("gradient x input")), "less than masks that nothing regularises"
        ),
        f"{SMOOTH}, soundness less that of {COARSE}": no_less(
            0.2, least(knobs, gained(SMOOTH, COARSE)), "far sounder", against=0
        ),
        f"{SMOOTH}, completeness less that of a random map": no_less(
            0.1, least(knobs, kept(SMOOTH, RANDOM)), "and not because it says nothing", against=0
        ),
        f"{COARSE}, better in both numbers than a gradient method by": at_most(
            0,
            greatest([mean(knobs, better(COARSE, method)) for method in GRADIENTS]),
            "the lesser of the two differences, for whichever method it is most; mean",
        ),
        f"{BLIND} for every label, soundness": no_less(
            0.9, least(knobs, score(BLIND)), "complete as before: neither number asks", against=0.5
        ),
    }


def of_controls(knobs: Saliency) -> dict[str, Prediction]:
    """Maps that know nothing of the network or of the label."""
    words = {
        RANDOM: "sound, and it keeps no label",
        ALIEN: "masks are of their label",
        UNTAUGHT: "masks are of what was learned",
    }
    return {
        f"{name}, completeness less that of {COARSE}": at_most(
            -0.1, most(knobs, kept(name, COARSE)), why, control=True
        )
        for name, why in words.items()
    }


def of_blocks(knobs: Saliency) -> dict[str, Prediction]:
    """A linear softmax: what masks of blocks collect for wrong labels, over single pixels'."""
    sides = knobs.sides[1:]
    error = pl.col("wrong_left") / pl.col("wrong_predicted_left")
    white = pl.col("wrong_left") * pl.col("side")
    off = [distance(evidence(error, side)) for side in sides]
    return {
        "evidence in blocks over that in pixels, error of its prediction": at_most(
            0.15, most(knobs, *off), f"at the worst of sides {sides}, nothing fitted", against=0.5
        ),
        f"the same at {sides[-1]}, over the law of white attributions": no_less(
            1.3, least(knobs, evidence(white, sides[-1])), "they are correlated", control=True
        ),
    }


def summary(records: Records, knobs: Saliency) -> str:
    """How many diverged."""
    diverged, total = lost(records)
    return f"{diverged} of {total} classifiers diverged; on {' and '.join(knobs.data)}."


# ---- readings, each of one data set


OfData = Callable[[str], Reading]


def score(method: str, column: str = "soundness", model: str = "convolutional") -> OfData:
    """One number of a method in each network."""
    return lambda data: of("maps", column, KEPT, **cell(data, method=method, model=model))


def cell(data: str, **where: Any) -> dict[str, Any]:
    """What columns must equal."""
    return {"images.data": data} | where


def gained(method: str, over: str = FINE, model: str = "convolutional") -> OfData:
    """The soundness of a method less that of another in the same network."""
    own, other = (score(name, model=model) for name in (method, over))
    return lambda data: own(data) - other(data)


def kept(method: str, over: str) -> OfData:
    """The completeness of a method less that of another in the same network."""
    own, other = (score(name, "completeness") for name in (method, over))
    return lambda data: own(data) - other(data)


def both(method: str) -> OfData:
    """Soundness gained over fine masks, less completeness lost."""
    return lambda data: gained(method)(data) + kept(method, FINE)(data)


def better(method: str, over: str) -> OfData:
    """The lesser of what a method has more of completeness and of soundness than another."""
    return lambda data: -greatest([-kept(method, over)(data), -gained(method, over)(data)])


def beyond_noise(method: str, model: str = "convolutional") -> OfData:
    """The completeness of a method, less that of noisy fine masks as sound."""
    excess = pl.col("completeness") - pl.col("noisy")
    return lambda data: of("maps", excess, KEPT, **cell(data, method=method, model=model))


def evidence(value: pl.Expr, side: int) -> OfData:
    """Of blocks of one side."""
    return lambda data: of("evidence", value, KEPT, **cell(data, side=side))


def distance(reading: OfData) -> OfData:
    """How far it is from one."""
    return lambda data: abs(reading(data) - 1)


def most(knobs: Saliency, *readings: OfData) -> Reading:
    """The greatest of readings on any data set, seed by seed."""
    return greatest([reading(data) for reading in readings for data in knobs.data])


def least(knobs: Saliency, *readings: OfData) -> Reading:
    """The least of them."""
    return -greatest([-reading(data) for reading in readings for data in knobs.data])


def mean(knobs: Saliency, reading: OfData) -> Reading:
    """The mean of a reading over the data sets, seed by seed."""
    first, *others = (reading(data) for data in knobs.data)
    for other in others:
        first = first + other
    return first / len(knobs.data)


def on_average(knobs: Saliency, reading: OfData) -> Reading:
    """The mean of a reading over the data sets and over seeds."""
    return of_means([mean(knobs, reading)], lambda found: float(found[0]), least=8)
