"""What the paper predicts of rho, margins, layers and collapse, and where it must not hold."""

from __future__ import annotations

import math
from typing import Any

import polars as pl

from undertow.claims import Records
from undertow.claims.square_loss import SquareLoss
from undertow.claims.square_loss.experiments import (
    COLLAPSE_READINGS,
    FLOW_READINGS,
    experiments,
)
from undertow.lab import (
    KEPT,
    Prediction,
    Reading,
    at_most,
    kept,
    lost,
    no_less,
    of,
    slope_of,
    within,
)

MOVED = 0.01  # a flow is at rest when rho moved by less than this since the reading before
REST = pl.col("moved") < MOVED
FITTED = 0.95  # share of the samples with a positive margin, of a flow or net that has fitted
COLLAPSE_FIT = 0.99  # accuracy from which on neural collapse can be spoken of
EARLY, COLLAPSE_EARLY = FLOW_READINGS[0], COLLAPSE_READINGS[0]
ERROR = (pl.col("rho") / pl.col("equilibrium") - 1).abs()
PLAIN: dict[str, Any] = {"shuffled": False, "speed": "scaled"}

Rules = dict[str, Prediction]


def predictions(knobs: SquareLoss) -> Rules:
    """All of them; the thresholds were fixed on pilot seeds."""
    return flow_rules(knobs) | margin_rules(knobs) | norm_rules(knobs) | collapse_rules(knobs)


def flow_rules(knobs: SquareLoss) -> Rules:
    """Where rho ends: with decay and without, at V's own speed, and with shuffled labels."""
    weakest, middle, strongest = knobs.weakest, knobs.middle, knobs.rho_decay[-1]
    least, second, *_ = knobs.initial_rho
    *_, before, largest = knobs.initial_rho
    gated = of("flows", ERROR, KEPT, REST, how="max", fraction=1.0)
    shrunk = gap(second, least, 0.0) / gap(second, least, weakest)
    met, begun = gap(largest, least, weakest), math.log(largest / least)
    stays = gap(largest, before, 0.0) / math.log(largest / before)
    own = final("rho", least, strongest, speed="own") / final("rho", least, strongest)
    shuffled = final("rho", least, middle, shuffled=True) / final("rho", least, middle)
    rank = final("stable_rank", least, 0.0) / final("stable_rank", largest, 0.0)
    return {
        "rho against mu / (M + lambda), error": at_most(
            0.02, gated, f"worst flow of those whose rho moved by < {MOVED:g} in the last tenth"
        ),
        f"log-gap of rho, no decay over lambda = {weakest:g}": no_less(
            2, shrunk, f"starts at {second:g} and {least:g} draw together"
        ),
        f"log-gap of rho from {largest:g} and {least:g}, lambda = {weakest:g}": at_most(
            0.1, met, f"all head for one rho; at the start it is {begun:.3g}"
        ),
        f"log-gap of rho from {largest:g} and {before:g} kept without decay": no_less(
            0.8, stays, "of the gap at the start: without decay rho stays", control=True
        ),
        "rho, V at its own speed over V slowed by rho^2": within(
            0.98, 1.02, own, f"the scaled steps change no end, at lambda = {strongest:g}"
        ),
        "rho, shuffled labels over true ones": no_less(
            1.2, shuffled, f"no small rho without structure, at lambda = {middle:g}", control=True
        ),
        f"stable rank without decay, rho_0 = {least:g} over {largest:g}": at_most(
            0.5, rank, "a small start alone gives it, so low rank shows no decay", control=True
        ),
    }


def margin_rules(knobs: SquareLoss) -> Rules:
    """Margins equalise where the flow fits, and are 1 / rho."""
    weakest, least = knobs.weakest, knobs.initial_rho[0]
    # Before it has fitted a flow's mean margin is near zero, and any fit would lower the spread.
    fitted = at("fitted", EARLY) >= FITTED
    logs, cell = pl.col("margin_cv").log(), PLAIN | {"rho_decay": weakest}
    end, early = (
        of("flows", logs, KEPT, fitted, fraction=when, **cell).then(
            lambda found: found.map(math.exp)
        )
        for when in (1.0, EARLY)
    )
    over_none = final("margin_cv", least, weakest) / final("margin_cv", least, 0.0)
    ends = (KEPT, pl.col("fitted") >= FITTED, pl.col("margin") > 0)
    rho, margin = pl.col("rho").log(), pl.col("margin").log()
    return {
        "spread of the margins, end over early": at_most(
            0.5,
            end / early,
            f"of their CV at {EARLY:g} of the time, in the flows fitted by then, at lambda = "
            f"{weakest:g}",
        ),
        "spread of the margins, decay over none": no_less(
            1, over_none, "it is the fit that equalises, and decay limits the fit", control=True
        ),
        "normalised margin's power of rho": within(
            -1.1,
            -0.9,
            slope_of("flows", rho, margin, *ends, fraction=1.0, **PLAIN),
            "the smaller rho, the larger the margin, over fitted flows",
        ),
    }


def norm_rules(knobs: SquareLoss) -> Rules:
    """Layer norms of trained networks, and Toeplitz norms of convolutions."""
    fitted = pl.col("fitted") >= FITTED  # the layers of a dead net are equal too
    decay = knobs.norms_decay
    spread, free, error = (
        of("norms", column, KEPT, fitted, weight_decay=own)
        for column, own in (("norm_spread", decay), ("norm_spread", 0.0), (ERROR, decay))
    )
    off = pl.max_horizontal((pl.col("ratio", "measured_ratio") - 1).abs())
    return {
        "squared layer norms, largest over least less 1": at_most(
            0.05, spread, f"they equalise, not normalised and at weight decay {decay:g}"
        ),
        "the same without decay": no_less(
            0.15, free, "their differences are conserved", control=True
        ),
        "rho of trained networks against equilibrium, error": at_most(
            0.02, error, "of mu / (M + weight_decay / 2 rho^(2/L - 2)), L = 3"
        ),
        "Toeplitz norm over sqrt(positions) x kernel norm, error": at_most(
            1e-12, of("convolutions", off, padding=0), "as a matrix, and as measured"
        ),
        "the same ratio with zero padding": at_most(
            0.99, of("convolutions", "ratio", padding=1), "some taps do not count", control=True
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
    rules = {
        f"NC{number}, end over early": at_most(most, fell(number, decay), when)
        for number, most in ((1, 0.5), (2, 0.75), (3, 0.5))
    }
    return rules | {
        "NC4 at the end": at_most(
            0.01, value("nc4", decay), "of the samples: the nearest class mean decides"
        ),
        "NC3 without decay, end over early": no_less(
            0.8, fell(3, 0.0), "weights and class means do not align", control=True
        ),
    }


def summary(records: Records, knobs: SquareLoss) -> str:
    """How many runs were lost."""
    gone, _ = lost(records)
    left = " and were left out" if gone else ""
    return f"{gone or 'None'} of {planned(knobs)} runs diverged or ran out of steps{left}."


def promises_verdict(records: Records, knobs: SquareLoss) -> bool:
    """Nine in ten of the runs, some of each kind, and half of the flows at rest."""
    if any(kept(frame).is_empty() for frame in records.values()):
        return False
    (gone, found), ends = lost(records), kept(records["flows"]).filter(fraction=1.0)
    enough = found - gone >= 0.9 * planned(knobs)  # a run that failed has no records at all
    return enough and len(ends.filter(REST)) >= len(ends) / 2


def planned(knobs: SquareLoss) -> int:
    """How many runs there should be."""
    return sum(len(experiment.trials) for experiment in experiments(knobs, 0).values())


# ---- readings


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
