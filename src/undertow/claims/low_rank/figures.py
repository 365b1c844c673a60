"""The figures of low-rank: ranks against batch size, E and steps; the law; kernels."""

from __future__ import annotations

import math
from typing import Any

import polars as pl

from undertow.claims import Records
from undertow.claims.low_rank import LowRank
from undertow.claims.low_rank.experiments import RULES, cell, conv_cells
from undertow.claims.low_rank.predictions import fitted, snapshots, value
from undertow.lab import Charts, beside, figure, intervals, means

SERIES = {
    "rank": "measured rank",
    "rank_law": "from E and what was learned",
    "survivors": "survivors of the initial weights",
    "learned_rank": "learned part",
}
draw = Charts(decay_exponent="decay exponent E", step="steps", share="rank, share of its side")


@figure("Smaller batches give lower rank, until the steps are matched")
def batch_size(records: Records, knobs: LowRank) -> Any:
    """Threshold rank of the hidden matrices with 95% intervals over seeds. At the same number of
    epochs a smaller batch takes more steps, so weight decay shrinks the initial weights further. At
    the same number of steps the effect of the batch size is gone, or reversed.
    """
    sizes = sorted(knobs.batch_sizes)
    cells = {
        ("same epochs (E differs)", n): cell(knobs, batch_size=n, steps_as=n) for n in sizes
    } | {("same steps (same E)", n): cell(knobs, batch_size=n) for n in sizes}
    ranks = {key: value(knobs, "rank", **where)(records) for key, where in cells.items()}
    rows = intervals(ranks, "compared", "batch_size", value="rank")
    return draw.lines(rows, "batch_size", "rank", "compared", log="x")


@figure("Rank follows the decay exponent, not the steps, nor the batch size")
def collapse(records: Records, knobs: LowRank) -> Any:
    """Every snapshot of every perceptron that had fitted, at all batch sizes, learning rates,
    weight decays above zero and numbers of steps. E = sum of lr x weight decay (over 1 - momentum).
    """
    rows = snapshots(records, knobs).sort("batch_size", "rule", descending=[False, True])
    decayed = rows.filter(pl.col("weight_decay") > 0)
    named = decayed.with_columns(pl.format("batch size {}", "batch_size"))
    return beside(
        draw.points(named, "decay_exponent", "rank", "batch_size", shape="rule"),
        draw.points(named, "step", "rank", "batch_size", shape="rule"),
    )


@figure("What is left of the initial weights, and what was learned, add up to the rank")
def survivors(records: Records, knobs: LowRank) -> Any:
    """W = f W_0 + G. The law is that of a random matrix of the initialiser's variance, shrunk by
    f = exp(-E), plus one with the singular values of the learned part G, in general position; it
    knows neither W nor its norm.
    """
    kept = records["training"].filter(*fitted(knobs))
    at = ("rule", "decay_exponent")
    runs = pl.concat(means(kept.filter(**cell(knobs, rule)), at, SERIES) for rule in RULES)
    rows = runs.drop("runs").unpivot(index=at, variable_name="what", value_name="rank")
    return draw.lines(rows, "decay_exponent", "rank", "what", dash="what", columns="rule")


@figure("Kernels lose rank with E, too, and the batch size shifts it through the norm", "kernels")
def kernels(records: Records, knobs: LowRank) -> Any:
    """Share of a kernel's singular values above a tenth of its norm, mean over the kernels of a
    convolutional and of a residual network. Under a norm layer a small batch's noise makes the
    weights larger, so that at equal E less of the start is above the threshold, for a while.
    """
    names = {"small": "small batch", "same steps": "large batch"}
    share = pl.col("rank") / pl.min_horizontal("rows", "cols")
    rows = records["kernels"].filter(*fitted(knobs)).with_columns(share=share)
    runs = (
        rows.filter(**conv_cells(knobs)[name]).with_columns(batch=pl.lit(shown))
        for name, shown in names.items()
    )
    drawn = means(pl.concat(runs), ("network", "batch", "decay_exponent"), ("share",))
    return draw.lines(drawn, "decay_exponent", "share", "batch", columns="network")


FIGURES = (batch_size, collapse, survivors, kernels)


def table(records: Records, knobs: LowRank) -> pl.DataFrame:
    """One row a setting: E, ranks, the paper's bound for SGD, test accuracy, runs that fitted."""
    columns = {
        "decay_exponent": "E",
        "rank": "rank",
        "rank_law": "law",
        "learned_rank": "learned",
        "bound": "paper's bound",
        "test_accuracy": "test",
        "fitted": "fitted",
    }
    bound = math.log(2 / knobs.threshold) * pl.col("batch_size")
    ends = (
        records["training"]
        .filter("final")
        .with_columns(
            fitted=pl.all_horizontal(*fitted(knobs)).cast(pl.Float64),
            bound=pl.when(rule="sgd").then(bound / (pl.col("lr") * pl.col("weight_decay"))),
        )
    )
    return means(ends, ("rule", "batch_size", "lr", "weight_decay", "step"), columns)
