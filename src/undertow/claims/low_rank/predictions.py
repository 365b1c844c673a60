"""What the paper predicts of rank, and that rank is what survives of the initial weights."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import polars as pl

from undertow import lab, predict
from undertow.claims import Records
from undertow.claims.low_rank import LowRank
from undertow.claims.low_rank.experiments import WIDE, WIDE_BATCH, cell, conv_cells, wide_cells
from undertow.lab import PerSeed, Prediction, Reading, at_most, near, no_less, of

Cell = Mapping[str, Any]

# Shares of the initial directions that survive, by which errors of the law are told apart.
STRATA = ((0.8, 1.0), (0.5, 0.8), (0.2, 0.5), (0.0, 0.2))


def predictions(knobs: LowRank) -> dict[str, Prediction]:
    """At a fixed number of epochs, at equal E, of the law, of kernels, and of the bound."""
    ours = _equal_exponents(knobs) | _law(knobs)
    return _published(knobs) | ours | _kernels(knobs) | _bounded(knobs)


def summary(records: Records, knobs: LowRank) -> str:
    """How many runs were left out."""
    ends = records["training"].filter("final").unique("trial")
    left = len(ends) - len(ends.filter(*fitted(knobs)))
    return f"{left} of {len(ends)} perceptrons had not fitted their images and were left out."


def _published(knobs: LowRank) -> dict[str, Prediction]:
    small, (_, most) = cell(knobs), _ends(knobs.batch_sizes)
    other, undecayed = cell(knobs, batch_size=most, steps_as=most), {"weight_decay": 0.0}
    rank, law = (ratio(knobs, column, small, other) for column in ("rank", "rank_law"))
    explained = "from E and what was learned"
    kept = value(knobs, "kept_fine", how="min", rule="sgd", **undecayed)
    rules = {
        "rank, small over large batch, same epochs": at_most(0.9, rank, against=1),
        "that ratio, over the law's": near(1, 0.1, rank / law, explained, against=0.5),
        "initial rank kept without decay": no_less(0.98, kept, "at threshold 1e-3", control=True),
    }
    for knob in ("lr", "weight_decay"):
        low, high = _ends([value for value in getattr(knobs, knob) if value > 0])
        read = ratio(knobs, "rank", small | {knob: high}, small | {knob: low})
        rules[f"rank, high over low {knob}"] = at_most(0.9, read, against=1)
    gap = value(knobs, "test_accuracy", **small) - value(knobs, "test_accuracy", **other)
    rules["test accuracy, small less large batch, same epochs"] = near(
        0, 0.02, gap, "a marginal effect", against=0.05
    )
    return rules


def _equal_exponents(knobs: LowRank) -> dict[str, Prediction]:
    """Whether the batch size, or steps alone, say anything that E does not."""
    early, end = (batch_gap(knobs, when) for when in (pl.col("survivors") > 0, "final"))
    few, left = max(knobs.widths[1:]) / 64, "while initial weights survive"
    alone, curve = unexplained(knobs, pl.col("decay_exponent")), "about one falling curve"
    gap = "rank, small less large batch, same E"
    rules = {
        gap: near(0, few, early, left, against=5 * few),
        f"{gap}, at the end": no_less(-few, end, "no lower", against=math.inf),
        "ranks apart at equal E, all settings": at_most(few, alone, curve, against=5 * few),
    }
    steps = pl.col("step").cast(pl.Float64)
    for name, by in {"steps": steps, "lr x steps": steps * pl.col("lr")}.items():
        share, note = alone / unexplained(knobs, by), f"E explains what {name} do not"
        rules[f"that over ranks apart at equal {name}"] = at_most(0.5, share, note, against=1)
    return rules


def _law(knobs: LowRank) -> dict[str, Prediction]:
    """Whether rank is that of a shrunk random start and of what was learned, in every stratum."""
    errors = {
        f"where {low:g} to {high:g} survive": law_error(knobs, "rank_law", survive(low, high))
        for low, high in STRATA
    } | {rule: law_error(knobs, "rank_law", rule=rule) for rule in ("momentum", "adamw")}
    rules = {
        f"error of the law, {name}": at_most(0.1, error, "of the rank", against=0.5)
        for name, error in errors.items()
    }
    note = "where at most half survives"
    for name, column in {"forgetting": "rank_unforgotten", "what was learned": "survivors"}.items():
        error = law_error(knobs, column, survive(0.0, 0.5))
        rules[f"error of the law without {name}"] = no_less(0.2, error, note, control=True)
    learned = ratio(knobs, "learned_rank", cell(knobs), cell(knobs, "adamw"))
    return rules | {"learned rank, SGD over AdamW": at_most(1, learned, "at the same E")}


def _kernels(knobs: LowRank) -> dict[str, Prediction]:
    """Kernels of convolutional and residual networks, at the same epochs and at the same E."""

    def gaps(name: str) -> Reading:
        return Reading(lambda records: lab.per_seed(kernel_gaps(records, knobs), name))

    def least(records: Records) -> PerSeed:
        ends = kernel_gaps(records, knobs).filter("final").group_by("seed", "network")
        return lab.per_seed(ends.agg(pl.col("same epochs").mean()), "same epochs", how="max")

    kept = of("kernels", "kept", *fitted(knobs), how="min", **conv_cells(knobs)["undecayed"])
    left = (gaps("same steps") / gaps("same epochs")).then(lambda one: one.map(float))
    gap, side = "kernel rank, small less large batch", "of its side, in the network that loses less"
    return {
        f"{gap}, same epochs": at_most(-0.1, least, side, against=0),
        "share of that left at the same E": at_most(0.75, left, "over all snapshots", against=1),
        "kernel norm, small over large batch, same E": no_less(1.1, gaps("norm"), against=1),
        "initial kernel rank kept without decay": no_less(0.98, kept, "at worst", control=True),
    }


def _bounded(knobs: LowRank) -> dict[str, Prediction]:
    """The paper's bound in networks so wide, under so much decay, that it is below their width."""
    shape, at = (knobs.wide, knobs.wide), wide_cells(knobs)
    found = predict.rank_bound(batch_size=1, shape=shape, threshold=knobs.threshold, **WIDE)
    bound = math.nan if found.vacuous else found.rank

    def rank(name: str) -> Reading:
        keys = ("batch_size", "weight_decay")
        return of("wide", "rank", *fitted(knobs), **{key: at[name][key] for key in keys})

    over, apart = rank("small") / bound, rank("small") - rank("large")
    undecayed, unbounded = rank("undecayed") / bound, "though only the first is bounded"
    return {
        "rank over the paper's bound": at_most(1, over, "where it is below the width"),
        "that without decay": no_less(1, undecayed, "the bound needs the decay", control=True),
        f"rank, batch of 1 less batch of {WIDE_BATCH}": near(0, 4, apart, unbounded, against=100),
    }


# ---- readings


def _ends(values: Sequence[float]) -> tuple[Any, Any]:
    """The least and the greatest; where they are one, the greatest is NaN, and no cell has it."""
    return min(values), max(values) if max(values) > min(values) else math.nan


def fitted(knobs: LowRank) -> tuple[pl.Expr, ...]:
    """Of networks that had fitted the training set by then; a collapsed one looks low-rank."""
    return ~pl.col("diverged"), pl.col("train_accuracy") >= knobs.fit


def value(
    knobs: LowRank, column: str, *conditions: pl.Expr, how: Any = "mean", **at: Any
) -> Reading:
    """Each seed's value over the layers at the end of the perceptrons of a cell."""
    return of("training", column, *fitted(knobs), *conditions, "final", how=how, **at)


def ratio(knobs: LowRank, column: str, above: Cell, below: Cell) -> Reading:
    """A value in one cell over that in another."""
    return value(knobs, column, **above) / value(knobs, column, **below)


def survive(low: float, high: float) -> pl.Expr:
    """That this share of the initial directions is still above the threshold."""
    left = pl.col("survivors") / pl.min_horizontal("rows", "cols")
    return (left > low if low else left >= 0) & (left <= high)


def law_error(knobs: LowRank, column: str, *conditions: pl.Expr, rule: str = "sgd") -> Reading:
    """The mean of |law - rank| / rank over the snapshots of runs with decay."""
    error = (pl.col(column).cast(pl.Float64) - pl.col("rank")).abs() / pl.col("rank")
    decayed = pl.col("weight_decay") > 0
    return of("training", error, *fitted(knobs), decayed, *conditions, rule=rule)


def batch_gap(knobs: LowRank, condition: pl.Expr | str) -> Reading:
    """Rank at the smallest batch size less that at the largest, snapshot by snapshot at equal E."""
    _, large = _ends(knobs.batch_sizes)
    small, other = cell(knobs), cell(knobs, batch_size=large)

    def read(records: Records) -> PerSeed:
        rows = records["training"].filter(*fitted(knobs), condition)
        keys = ("seed", "matrix", "step")
        pairs = rows.filter(**small).join(rows.filter(**other), on=keys, suffix="_other")
        return lab.per_seed(pairs, pl.col("rank") - pl.col("rank_other"))

    return Reading(read)


def unexplained(knobs: LowRank, by: pl.Expr) -> Reading:
    """The mean distance of a seed's ranks from the falling curve in `by` that fits them best."""

    def read(records: Records) -> PerSeed:
        points = snapshots(records, knobs).filter(pl.col("weight_decay") > 0, rule="sgd")
        each = points.select("seed", "rank", x=by).partition_by("seed", as_dict=True)
        return PerSeed({seed: _apart(own["x"], own["rank"]) for (seed,), own in each.items()})

    return Reading(read)


def _apart(x: pl.Series, y: pl.Series) -> float:
    from scipy.optimize import isotonic_regression

    _, place, count = np.unique(x.round(9), return_inverse=True, return_counts=True)
    means = np.bincount(place, y) / count
    curve = isotonic_regression(means, weights=count, increasing=False).x
    return float(np.abs(y - curve[place]).mean())


def snapshots(records: Records, knobs: LowRank) -> pl.DataFrame:
    """A row for each snapshot of each perceptron that had fitted: its mean rank over the layers."""
    run = ("seed", "trial", "step", "rule", "batch_size", "lr", "weight_decay", "decay_exponent")
    return lab.means(records["training"].filter(*fitted(knobs)), run, ("rank",))


def kernel_gaps(records: Records, knobs: LowRank) -> pl.DataFrame:
    """Rank at the small batch size less that at the large, as a share of the kernel's side.

    A row for each seed, network, kernel and snapshot, with the difference at the same epochs and
    at the same E, and the ratio of the norms at the same E.
    """
    at, keys = conv_cells(knobs), ("seed", "network", "matrix", "part", "final")
    rows = records["kernels"].filter(*fitted(knobs))
    share = pl.col("rank") / pl.min_horizontal("rows", "cols")
    gaps = rows.filter(**at["small"]).select(*keys, small=share, small_norm="norm")
    for name in ("same epochs", "same steps"):
        large = rows.filter(**at[name]).select(*keys, "norm", share.alias(name))
        gaps = gaps.drop("norm", strict=False).join(large, on=keys)
        gaps = gaps.with_columns((pl.col("small") - pl.col(name)).alias(name))
    return gaps.with_columns(norm=pl.col("small_norm") / pl.col("norm"))
