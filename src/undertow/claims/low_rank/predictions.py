"""What the paper predicts of rank, and that rank is what survives of the initial weights."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import polars as pl

from undertow import lab
from undertow.claims import Records
from undertow.claims.low_rank import LowRank
from undertow.claims.low_rank.experiments import RULES, cell
from undertow.lab import Prediction, Reading, at_most, every_seed, near, no_less, no_seed, of

Cell = Mapping[str, Any]


def predictions(knobs: LowRank) -> dict[str, Prediction]:
    """At a fixed number of epochs, of the rank identity, and at equal E."""
    note = "a residual of rank above n m_l B, in every run of either network"
    identity = {rule: every_seed(broken(rule), note, control=True) for rule in RULES}
    identity["sgd"] = no_seed(broken("sgd"), note.replace("every", "any"), exact=True)
    broken_by = {f"rank identity broken, {rule}": found for rule, found in identity.items()}
    return _published(knobs) | broken_by | _forgetting(knobs)


def summary(records: Records, knobs: LowRank) -> str:
    """How many runs were left out."""
    fit, every = _fitted_runs(records, knobs)
    return f"{every - fit} of {every} runs had not fitted the training set and were left out."


def promises_verdict(records: Records, knobs: LowRank) -> bool:
    """Whether most runs fitted."""
    fit, every = _fitted_runs(records, knobs)
    return 2 * fit >= every


def _fitted_runs(records: Records, knobs: LowRank) -> tuple[int, int]:
    ends = records["training"].filter("final").unique("trial")
    return len(ends.filter(*fitted(knobs))), len(ends)


def _published(knobs: LowRank) -> dict[str, Prediction]:
    small, large = cell(knobs), max(knobs.batch_sizes)
    other = cell(knobs, batch_size=large, steps_as=large)
    sizes = f"batch size {small['batch_size']} over {large}"
    rules = {}
    rules["rank, small over large batch, same epochs"] = at_most(
        0.65, ratio(knobs, "rank", small, other), sizes
    )
    for knob, label in {"lr": "learning rate", "weight_decay": "weight decay"}.items():
        values = [value for value in getattr(knobs, knob) if value > 0]
        low, high = min(values), max(values)
        if low < high:
            read = ratio(knobs, "rank", small | {knob: high}, small | {knob: low})
            rules[f"rank, high over low {label}"] = at_most(0.8, read, f"{high:g} over {low:g}")
    least = "of it at threshold 1e-3, in the worst layer and batch size"
    accuracy = value(knobs, "test_accuracy", small) - value(knobs, "test_accuracy", other)
    return rules | {
        "initial rank kept without decay": no_less(
            0.98, kept_without_decay(knobs), least, control=True
        ),
        "test accuracy, small less large batch": near(0, 0.03, accuracy, "though the ranks differ"),
    }


def _forgetting(knobs: LowRank) -> dict[str, Prediction]:
    """Whether rank is what survives of the initial weights, whatever the batch size."""
    small, same_steps = cell(knobs), cell(knobs, batch_size=max(knobs.batch_sizes))
    batches = ratio(knobs, "rank", small, same_steps)
    learned = ratio(knobs, "learned_rank", small, cell(knobs, "adamw"))
    on_exponent, alike = rank_on_exponent(knobs), "over all snapshots the runs collapse on E"
    rules = {
        "rank, small over large batch, same E": no_less(0.95, batches, "no pull beyond E"),
        "rank against E (Spearman)": at_most(-0.85, on_exponent, alike),
    }
    twice = "where survivors are at least twice the learned part"
    for rule in RULES:
        error = forecast_error(knobs, "survivors", rule)
        rules[f"survivor forecast error, {rule}"] = at_most(0.1, error, twice)
    late = pl.col("decay_exponent") > 1.5
    error = forecast_error(knobs, "survivors_unforgotten", "sgd", late)
    fails = "without E the same forecast fails, read at E > 1.5"
    return rules | {
        "forecast error, forgetting left out": no_less(0.2, error, fails, control=True),
        "learned rank, SGD over AdamW": at_most(0.8, learned, "at the same E"),
    }


# ---- readings


def fitted(knobs: LowRank) -> tuple[pl.Expr, ...]:
    """Of networks that had fitted the training set by then; a collapsed one looks low-rank."""
    return ~pl.col("diverged"), pl.col("train_accuracy") >= knobs.fit


def value(knobs: LowRank, column: str, where: Cell) -> Reading:
    """Each seed's mean over the layers at the end of the runs of a cell."""
    return of("training", column, *fitted(knobs), "final", **where)


def ratio(knobs: LowRank, column: str, above: Cell, below: Cell) -> Reading:
    """A value in one cell over that in another."""
    return value(knobs, column, above) / value(knobs, column, below)


def kept_without_decay(knobs: LowRank) -> Reading:
    """The share of the initial rank that SGD without decay keeps, the least of a seed."""
    share = pl.col("rank_fine") / pl.col("initial_rank_fine")
    undecayed = (pl.col("weight_decay") == 0, pl.col("rule") == "sgd")
    return of("training", share, *fitted(knobs), *undecayed, "final", how="min")


def broken(rule: str) -> Reading:
    """The share of runs whose residual has a rank above the bound."""

    def read(records: Records) -> lab.Effect:
        runs = records["identity"].filter(rule=rule)
        above = runs.filter(pl.col("residual_rank") > pl.col("residual_bound"))
        return lab.proportion(len(above), len(runs))

    return Reading(read)


def forecast_error(knobs: LowRank, forecast: str, rule: str, *conditions: pl.Expr) -> Reading:
    """The mean of |forecast - rank| / rank where the initial residue dominates."""
    count = pl.col("survivors")
    dominates = (pl.col("weight_decay") > 0, count > 0, count >= 2 * pl.col("learned_rank"))
    error = (pl.col(forecast).cast(pl.Float64) - pl.col("rank")).abs() / pl.col("rank")
    return of("training", error, *fitted(knobs), *dominates, *conditions, rule=rule)


def rank_on_exponent(knobs: LowRank) -> Reading:
    """The rank correlation of rank with E, over every snapshot of SGD."""

    def read(records: Records) -> lab.Effect:
        points = snapshots(records, knobs).filter(rule="sgd")
        if points.is_empty():
            return lab.unknown()
        own = points["seed"].to_list()
        return lab.spearman(points["decay_exponent"], points["rank"], clusters=own)

    return Reading(read)


def snapshots(records: Records, knobs: LowRank) -> pl.DataFrame:
    """A row for each snapshot of each run that had fitted: its mean rank over the layers."""
    run = ("seed", "trial", "step", "rule", "batch_size", "decay_exponent")
    return lab.means(records["training"].filter(*fitted(knobs)), run, ("rank",))
