"""What the paper predicts of rho, SGD, margins, collapse and bounds, and where it must not hold."""

from __future__ import annotations

import math
from typing import Any

import polars as pl

from undertow import lab
from undertow.claims import Records
from undertow.claims.square_loss import SquareLoss, experiments
from undertow.claims.square_loss.experiments import ALL, COLLAPSE_READINGS, FLOW_READINGS
from undertow.lab import KEPT, Prediction, Reading, at_most, every_seed, kept, near, no_less, of

MOVED = 0.01  # a flow is at rest when rho moved by less than this since the reading before
REST = pl.col("moved") < MOVED
FITTED = 0.95  # share of the samples with a positive margin, of a flow or net that has fitted
COLLAPSE_FIT = 0.99  # accuracy from which on neural collapse can be spoken of
EARLY, COLLAPSE_EARLY = FLOW_READINGS[0], COLLAPSE_READINGS[0]
FALLING = 0.1  # of the time: until then a large rho is far above its end
SOON, LATE = (pl.col("fraction").is_between(*ends) for ends in ((0.2, 0.4), (0.8, 1.0)))
PLAIN: dict[str, Any] = {"flipped": 0.0}
BOUND = pl.col("log_kernel").exp() / pl.col("margin")

Rules = dict[str, Prediction]


def predictions(knobs: SquareLoss) -> Rules:
    """All of them; the thresholds were fixed on pilot seeds."""
    rules = flow_rules(knobs) | error_rules(knobs) | margin_rules(knobs) | network_rules(knobs)
    return rules | collapse_rules(knobs) | bound_rules(knobs)


def flow_rules(knobs: SquareLoss) -> Rules:
    """How rho falls and where it ends: with decay and without, and with flipped labels."""
    weakest, middle = knobs.weakest, knobs.middle
    least, second, *_ = knobs.initial_rho
    *_, before, largest = knobs.initial_rho
    shrunk = gap(second, least, 0.0) / gap(second, least, weakest)
    met, begun = gap(largest, least, weakest), math.log(largest / least)
    stays = gap(largest, before, 0.0) / math.log(largest / before)
    flipped = final("rho", least, middle, flipped=knobs.flipped) / final("rho", least, middle)
    rank = final("stable_rank", least, 0.0) / final("stable_rank", largest, 0.0)
    return {
        f"rate at which rho falls from {largest:g} over 2 lambda, lambda = {weakest:g}": near(
            1, 0.03, rate(knobs, weakest), "while V keeps the fit nothing else moves rho", against=1
        ),
        "the same rate without decay": at_most(
            0.1, rate(knobs, 0.0), "over the same times", control=True
        ),
        f"log-gap of rho, no decay over lambda = {weakest:g}": no_less(
            2, shrunk, f"starts at {second:g} and {least:g} draw together", against=1
        ),
        f"log-gap of rho from {largest:g} and {least:g}, lambda = {weakest:g}": at_most(
            0.1, met, f"all head for one rho; at the start it is {begun:.3g}", against=begun
        ),
        f"log-gap of rho from {largest:g} and {before:g} kept without decay": no_less(
            0.8, stays, "of the gap at the start: without decay rho stays", control=True
        ),
        f"rho, {knobs.flipped:.0%} of the labels flipped, over true ones": no_less(
            1.1, flipped, f"no small rho without structure, at lambda = {middle:g}", control=True
        ),
        f"stable rank without decay, rho_0 = {least:g} over {largest:g}": at_most(
            0.5, rank, "a small start alone gives it, so low rank shows no decay", control=True
        ),
    }


def error_rules(knobs: SquareLoss) -> Rules:
    """Whether a smaller rho tests better: with decay on noisy labels, but not otherwise."""
    least, *_, largest = knobs.initial_rho
    strongest, noisy = knobs.rho_decay[-1], f"{knobs.flipped:.0%} of the labels flipped"

    def error(start: float, decay: float, flipped: float = knobs.flipped) -> Reading:
        return final("end_error", start, decay, flipped=flipped)

    free, decayed = error(least, 0.0), error(least, strongest)
    gained = error(least, 0.0, 0.0) - error(least, strongest, 0.0)
    part = gained / (free - decayed)
    return {
        f"test error, lambda = {strongest:g} over none, {noisy}": at_most(
            0.7, decayed / free, "decay lowers rho and the error", against=1
        ),
        f"test error without decay, from {largest:g} over {least:g}, {noisy}": at_most(
            1, error(largest, 0.0) / free, "the smaller rho is no better", control=True
        ),
        f"what lambda = {strongest:g} takes off the test error, true labels over {noisy}": at_most(
            0.5, part, "decay gains little where there is no noise", control=True
        ),
    }


def margin_rules(knobs: SquareLoss) -> Rules:
    """Margins equalise where the flow fits."""
    weakest, least = knobs.weakest, knobs.initial_rho[0]
    # Before it has fitted a flow's mean margin is near zero, and any fit would lower the spread.
    fitted = at("fitted", EARLY) >= FITTED
    cell: dict[str, Any] = PLAIN | {"rho_decay": weakest}
    end, early = (
        of("flows", "margin_cv", KEPT, fitted, fraction=when, **cell) for when in (1.0, EARLY)
    )
    over_none = final("margin_cv", least, weakest) / final("margin_cv", least, 0.0)
    return {
        "spread of the margins, end over early": at_most(
            0.5,
            end / early,
            f"of their CV at {EARLY:g} of the time, in the flows fitted by then, at lambda = "
            f"{weakest:g}",
            against=1,
        ),
        "spread of the margins, decay over none": no_less(
            1, over_none, "it is the fit that equalises, and decay limits the fit", control=True
        ),
    }


def network_rules(knobs: SquareLoss) -> Rules:
    """SGD beside full-batch descent, with decay and without: rest, ranks and layer norms."""
    decay, size = knobs.network_decay, knobs.batch_size
    fitted = at("fitted", 1.0) >= FITTED  # the layers of a dead net are equal too

    def value(column: str, when: pl.Expr, batch_size: int, weight_decay: float) -> Reading:
        cell: dict[str, Any] = {"batch_size": batch_size, "weight_decay": weight_decay}
        return of("networks", column, KEPT, fitted, when, **cell)

    late, free_late = (value("unrest", LATE, size, own) for own in (decay, 0.0))
    stays = late / value("unrest", SOON, size, decay)
    vanishes = free_late / value("unrest", SOON, size, 0.0)
    quiet = value("unrest", LATE, ALL, decay) / late
    end = pl.col("fraction") == 1.0
    left, whole = (
        value("rank", end, own, decay) / value("rank", end, own, 0.0) for own in (size, ALL)
    )
    spread, free = (value("norm_spread", end, ALL, own) for own in (decay, 0.0))
    return {
        f"steps of SGD late in training, weight decay {decay:g} over none": no_less(
            5, late / free_late, "noise remains", against=1
        ),
        "steps of SGD, late over soon, decay over none": no_less(
            1.5, stays / vanishes, "they do not go as those without do", against=1
        ),
        "steps of SGD without decay, late over soon": at_most(
            0.7, vanishes, "they go as the labels are interpolated", control=True
        ),
        "steps of full-batch descent over those of SGD, with decay": at_most(
            0.5, quiet, "at rest", control=True
        ),
        "ranks under SGD, decay over none": at_most(
            0.5, left, "mean of the two hidden layers", against=1
        ),
        "the same under the full batch": at_most(
            0.5, whole, "low rank is of decay, not of SGD", control=True
        ),
        "squared layer norms, largest over least less 1": every_seed(
            *(spread <= 0.05, f"at most 0.05, at the full batch and weight decay {decay:g}"),
            against=math.inf,
        ),
        "spread of the squared layer norms without decay": no_less(
            0.15, free, "their differences are conserved", control=True
        ),
    }


def collapse_rules(knobs: SquareLoss) -> Rules:
    """Neural collapse of the networks that are right at the end."""
    right = at("accuracy", 1.0) >= COLLAPSE_FIT

    def value(column: str, decay: float, fraction: float = 1.0) -> Reading:
        return of("collapse", column, KEPT, right, weight_decay=decay, fraction=fraction)

    def fell(number: int, decay: float) -> Reading:
        name = f"nc{number}"
        return value(name, decay) / value(name, decay, COLLAPSE_EARLY)

    decay, when = knobs.collapse_decay, f"of that at {COLLAPSE_EARLY:g} of the steps"
    further = fell(2, decay) / fell(2, 0.0)
    return {
        "NC1, end over early": at_most(0.5, fell(1, decay), when, against=1),
        "NC2 falls further than without decay": every_seed(further < 1, "from early to the end"),
        "NC3 at the end, decay over none": at_most(
            0.5, value("nc3", decay) / value("nc3", 0.0), "it needs decay", against=1
        ),
        "NC4 at the end": at_most(
            0.01,
            value("nc4", decay),
            "of the samples: the nearest class mean decides",
            against=math.inf,
        ),
        "NC3 without decay, end over early": no_less(
            0.8, fell(3, 0.0), "weights and class means do not align", control=True
        ),
    }


def bound_rules(knobs: SquareLoss) -> Rules:
    """Kernel norms over margins beside the test errors of CNNs, and where they mislead."""
    first, *_, last = knobs.bound_scales
    true, start = pl.col("label_noise") == 0, pl.col("scale") == first
    noise = start & (pl.col("weight_decay") == 0)

    def cell(value: str | pl.Expr, scale: float, noise: float, decay: float = 0.0) -> Reading:
        where: dict[str, Any] = {"scale": scale, "label_noise": noise, "weight_decay": decay}
        return of("bounds", value, *USABLE, **where)

    decayed = cell("error", last, 0.0, knobs.bound_decay) / cell("error", last, 0.0)
    return {
        "rank correlation of bound and error, label noise": no_less(
            0.5, agreement(BOUND, noise), "Kendall's, of one architecture and start", against=0
        ),
        "rank correlation of bound and error, true labels": no_less(
            0.3, agreement(BOUND, true), "over decays and initial scales", against=0
        ),
        "pairs from one start that the bound orders as the errors": no_less(
            0.75, Reading(ordered), "decay and none, true labels; chance is half", against=0.5
        ),
        "rank correlation of bound and error, all": no_less(
            0.3, agreement(BOUND), "over labels, decays and initial scales", against=0
        ),
        "rank correlation of the untrained bound, all": at_most(
            0.2, agreement(pl.col("log_untrained")), "training must decide", control=True
        ),
        "bound, random labels over true ones": no_less(
            1, cell(BOUND, first, 1.0) / cell(BOUND, first, 0.0), "from one start"
        ),
        f"bound, true labels from {last:g} over random ones from {first:g}": no_less(
            1, cell(BOUND, last, 0.0) / cell(BOUND, first, 1.0), "starts differ", control=True
        ),
        "size of the bound, true labels": no_less(
            1, cell(BOUND, first, 0.0), "it guarantees nothing: it is vacuous", control=True
        ),
        f"test error, decay over none, true labels, from {last:g}": at_most(
            1, decayed, "the smaller rho tests better"
        ),
    }


def summary(records: Records, knobs: SquareLoss) -> str:
    """How many runs were lost."""
    gone, _ = lab.lost(records)
    left = " and were left out" if gone else ""
    return f"{gone or 'None'} of {planned(knobs)} runs diverged or ran out of steps{left}."


def promises_verdict(records: Records, knobs: SquareLoss) -> bool:
    """Nine in ten of the runs, some of each kind, and half of the flows at rest."""
    if any(kept(frame).is_empty() for frame in records.values()):
        return False
    (gone, found), ends = lab.lost(records), kept(records["flows"]).filter(fraction=1.0)
    enough = found - gone >= 0.9 * planned(knobs)  # a run that failed has no records at all
    return enough and len(ends.filter(REST)) >= len(ends) / 2


def planned(knobs: SquareLoss) -> int:
    """How many runs there should be."""
    return sum(len(experiment.trials) for experiment in experiments.experiments(knobs, 0).values())


# ---- readings

# CNNs that have fitted their labels: a margin below zero has no bound.
USABLE = (KEPT, pl.col("fitted") >= FITTED, pl.col("margin") > 0)


def at(column: str, fraction: float) -> pl.Expr:
    """A column's value in the trial's reading at a fraction of its time or steps."""
    return pl.col(column).filter(pl.col("fraction") == fraction).first().over("trial")


def final(column: str | pl.Expr, start: float, decay: float, **kind: Any) -> Reading:
    """A value at the end of the flows from one start at one decay."""
    cell = PLAIN | {"initial_rho": start, "rho_decay": decay, "fraction": 1.0} | kind
    return of("flows", column, KEPT, **cell)


def gap(high: float, low: float, decay: float) -> Reading:
    """How far rho ends apart from two starts, in logarithms."""
    logs = pl.col("rho").log()
    return abs(final(logs, high, decay) - final(logs, low, decay))


def rate(knobs: SquareLoss, decay: float) -> Reading:
    """How fast log rho falls early, from the largest start, in parts of 2 lambda."""
    logs, largest = pl.col("rho").log(), knobs.initial_rho[-1]
    fell = final(logs, largest, decay, fraction=EARLY) - final(
        logs, largest, decay, fraction=FALLING
    )
    return fell / (2 * knobs.horizon * (FALLING - EARLY))


def ordered(records: Records) -> lab.PerSeed:
    """The share of the scales at which decay moves bound and test error the same way."""
    rows = records["bounds"]
    if rows.is_empty():
        return lab.PerSeed({})
    pairs = rows.filter(*USABLE, label_noise=0.0).group_by("seed", "scale")
    same = (BOUND.arg_max() == pl.col("error").arg_max()).cast(pl.Float64)
    return lab.per_seed(pairs.agg(same.alias("same"), nets=pl.len()).filter(nets=2), "same")


def agreement(value: pl.Expr, *conditions: pl.Expr) -> Reading:
    """Kendall's rank correlation of a value and the test error over each seed's CNNs."""
    return lab.agreement_of("bounds", value, "error", *USABLE, *conditions)
