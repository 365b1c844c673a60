"""The figures of low-rank: ranks against batch size, E and steps; the law; kernels; accuracy."""

from __future__ import annotations

from typing import Any

import polars as pl

from undertow import predict
from undertow.claims import Records
from undertow.claims.low_rank import LowRank
from undertow.claims.low_rank.experiments import RULES, cell, conv_cells
from undertow.claims.low_rank.predictions import fitted, learned, snapshots, value
from undertow.lab import Charts, beside, figure, intervals, means

SERIES = {
    "rank": "measured rank",
    "rank_law": "from E and what was learned",
    "survivors": "survivors of the initial weights",
    "learned_rank": "learned part",
}
draw = Charts(decay_exponent="decay exponent E", step="steps")


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
    rows = snapshots(records, knobs).filter(pl.col("weight_decay") > 0)
    rows = rows.sort("batch_size", "rule", descending=[False, True])
    named = rows.with_columns(pl.format("batch size {}", "batch_size"))
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
    rows = records["kernels"].filter(*learned())
    rank = pl.col("rank") / pl.min_horizontal("rows", "cols")
    runs = pl.concat(
        rows.filter(**where).with_columns(
            rank=rank, cell=pl.lit(f"{name}, B = {where['batch_size']}")
        )
        for name, where in conv_cells(knobs).items()
        if where["weight_decay"] and name != "same epochs"
    )
    drawn = means(runs, ("network", "cell", "decay_exponent"), ("rank",))
    return draw.lines(drawn, "decay_exponent", "rank", "cell", columns="network")


@figure("Rank and test accuracy are only loosely linked")
def accuracy(records: Records, knobs: LowRank) -> Any:
    """One point a perceptron that fitted the training set."""
    ends = records["training"].filter(*fitted(knobs), "final")
    rows = means(ends, ("rule", "trial"), ("rank", "test_accuracy"))
    return draw.points(rows.sort("rule", descending=True), "rank", "test_accuracy", "rule")


FIGURES = (batch_size, collapse, survivors, kernels, accuracy)


def table(records: Records, knobs: LowRank) -> pl.DataFrame:
    """One row a setting: E, ranks, the bound of the paper, accuracies, runs that fitted."""
    columns = {
        "decay_exponent": "E",
        "rank": "rank",
        "rank_law": "law",
        "learned_rank": "learned",
        "test_accuracy": "test",
        "fitted": "fitted",
    }
    fit = pl.all_horizontal(*fitted(knobs)).cast(pl.Float64)
    ends = records["training"].filter("final").with_columns(fitted=fit)
    rows = means(ends, ("rule", "batch_size", "lr", "weight_decay", "step"), columns)
    bound = pl.struct("rule", "batch_size", "lr", "weight_decay").map_elements(
        lambda cell: _bound(knobs, **cell), return_dtype=pl.String
    )
    return rows.with_columns(bound.alias("paper's bound"))


def _bound(knobs: LowRank, rule: str, **own: Any) -> str:
    if rule != "sgd":
        return "does not apply"
    shape = (max(knobs.widths[1:]), max(knobs.widths[:-1]))
    bound = predict.rank_bound(shape=shape, threshold=knobs.threshold, **own)
    return f"{bound.rank:.3g}{' (vacuous)' if bound.vacuous else ''}"
