"""The figures of low-rank: ranks against batch size and E, survivors, spectra, accuracy."""

from __future__ import annotations

from typing import Any

import polars as pl

from undertow import predict
from undertow.claims import Records
from undertow.claims.low_rank import LowRank
from undertow.claims.low_rank.experiments import RULES, cell
from undertow.claims.low_rank.predictions import fitted, snapshots, value
from undertow.lab import Charts, figure, intervals, means

SERIES = {
    "rank": "measured rank",
    "survivors": "survivors of the initial weights",
    "survivors_theory": "the same, forecast without training",
    "learned_rank": "learned part",
}
draw = Charts(decay_exponent="decay exponent E", value="singular value / norm")


@figure("Smaller batches give lower rank, until the steps are matched")
def batch_size(records: Records, knobs: LowRank) -> Any:
    """Mean threshold rank of the hidden matrices with 95% intervals over seeds. At the same
    number of epochs a smaller batch takes more steps, so weight decay shrinks the initial weights
    further. At the same number of steps the effect of the batch size is gone.
    """
    sizes = sorted(knobs.batch_sizes)
    cells = {
        ("same epochs (E differs)", n): cell(knobs, batch_size=n, steps_as=n) for n in sizes
    } | {("same steps (same E)", n): cell(knobs, batch_size=n) for n in sizes}
    ranks = {key: value(knobs, "rank", where)(records) for key, where in cells.items()}
    rows = intervals(ranks, "compared", "batch_size", value="rank")
    return draw.lines(rows, "batch_size", "rank", "compared", log="x")


@figure("Rank follows the decay exponent, not the batch size")
def collapse(records: Records, knobs: LowRank) -> Any:
    """Every snapshot of every run that had fitted, at all batch sizes, learning rates, weight
    decays and numbers of steps. E = sum of lr x weight decay (over 1 - momentum).
    """
    rows = snapshots(records, knobs).sort("batch_size", "rule", descending=[False, True])
    named = rows.with_columns(pl.format("batch size {}", "batch_size"))
    return draw.points(named, "decay_exponent", "rank", "batch_size", shape="rule")


@figure("What is left of the initial weights, and what was learned")
def survivors(records: Records, knobs: LowRank) -> Any:
    """W = f W_0 + G: the initial residue keeps as many directions above the threshold as the
    survivor law says, until the learned part G takes over. The forecast without training uses the
    Marchenko-Pastur spectrum of the initialiser, E and the final norm.
    """
    kept = records["training"].filter(*fitted(knobs))
    at = ("rule", "decay_exponent")
    runs = pl.concat(means(kept.filter(**cell(knobs, rule)), at, SERIES) for rule in RULES)
    rows = runs.drop("runs").unpivot(index=at, variable_name="what", value_name="rank")
    return draw.lines(rows, "decay_exponent", "rank", "what", dash="what", columns="rule")


@figure("Singular values of one hidden matrix at the end of training")
def spectra(records: Records, knobs: LowRank) -> Any:
    """One seed; the dashed line is the rank threshold, {threshold:g}."""
    large = max(knobs.batch_sizes)
    cells = {
        "small batch": cell(knobs),
        "large batch": cell(knobs, batch_size=large, steps_as=large),
        "large batch, same steps": cell(knobs, batch_size=large),
    }
    kept = records["training"].filter(*fitted(knobs), "final").sort("seed", "layer")
    drawn = {
        name: values
        for name, where in cells.items()
        for values in kept.filter(**where)["spectrum"].head(1)
    }
    if not drawn:
        return None
    return draw.spectra(drawn) + draw.level(knobs.threshold, across="value", log="y")


@figure("Rank and test accuracy are only loosely linked")
def accuracy(records: Records, knobs: LowRank) -> Any:
    """One point a run that fitted the training set."""
    ends = records["training"].filter(*fitted(knobs), "final")
    rows = means(ends, ("rule", "trial"), ("rank", "test_accuracy"))
    return draw.points(rows.sort("rule", descending=True), "rank", "test_accuracy", "rule")


FIGURES = (batch_size, collapse, survivors, spectra, accuracy)


def table(records: Records, knobs: LowRank) -> pl.DataFrame:
    """One row a setting: E, ranks, the bound of the paper, accuracies, runs that fitted."""
    columns = {
        "decay_exponent": "E",
        "rank": "rank",
        "survivors": "survivors",
        "survivors_theory": "forecast",
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
