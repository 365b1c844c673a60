"""What the slow equation predicts of Local SGD, and what must be gone without its conditions."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import polars as pl

from undertow import lab, predict
from undertow.claims import Records
from undertow.claims.local_sgd_flatness import GENTLE_LR, GENTLE_PERIODS, LocalSGDFlatness
from undertow.claims.local_sgd_flatness.networks import falling_rates
from undertow.lab import KEPT, Prediction, Reading, at_most, near, no_less, of, outside, within

ORDER = 0.25  # of the theorem's error in lr
_LATE = pl.col("step") > pl.col("few_steps")  # a run's trace is read there once


def predictions(knobs: LocalSGDFlatness) -> dict[str, Prediction]:
    """In a valley, along it, of diagonal networks, and of convolutional ones."""
    return _in_valley(knobs) | _along(knobs) | _diagonal(knobs) | _networks(knobs)


def summary(records: Records, knobs: LocalSGDFlatness) -> str:
    """What the rounds of QSR cost."""
    gone, runs = lab.lost(records, "networks")
    share = quadratic(knobs).share
    return f"{gone} of {runs} networks diverged; QSR's had {share:.1%} of SGD's communication."


def _in_valley(knobs: LocalSGDFlatness) -> dict[str, Prediction]:
    workers, steep, gentle = knobs.num_workers, knobs.valley_lr, GENTLE_LR
    shortest, longest = knobs.valley_periods[0], knobs.valley_periods[-1]
    found: dict[str, Prediction] = {}
    for lr, periods in ((steep, (1, *knobs.valley_periods)), (gentle, GENTLE_PERIODS)):
        ratios = [multiplier(lr, period, workers, "exact") for period in periods]
        found[f"drift over the exact multiplier's, lr lambda {lr:g}"] = within(
            0.98,
            1.02,
            lab.worst(ratios, 1, of_ratios=True),
            "at the worst period",
            against=(0.9, 1.1),
        )
    loose = multiplier(steep, shortest, workers, "continuous")
    one = multiplier(steep, longest, 1)
    same = multiplier(steep, longest, workers, shared=True)
    return found | {
        f"drift over the continuous form's, lr lambda {steep:g}, H = {shortest}": outside(
            1, 0.1, loose, "its steps are no longer small", control=True
        ),
        f"drift over SGD's, one worker, H = {longest}": near(
            1, 0.02, one, "there is nothing to average", control=True
        ),
        f"drift over SGD's, workers with one noise, H = {longest}": near(
            1, 0.02, same, "noise must be each worker's own", control=True
        ),
    }


def _along(knobs: LocalSGDFlatness) -> dict[str, Prediction]:
    rates, finest = knobs.lrs, knobs.lrs[0]
    mean, along = pl.col("mean"), {"lr": knobs.lrs[1]}
    gaps, others = (
        lab.of_means(
            [path(mean - pl.col(end), lr=lr, period=round(1 / lr), along=0.0) for lr in rates],
            lambda far: power(rates, far),
        )
        for end in ("slow", "plain")
    )
    drift = path(mean / pl.col("slow"), lr=finest, period=round(1 / finest), along=0.0)
    wide = pl.col("spread") / pl.col("slow_spread")
    spreads = [
        path(wide, pl.col("along") > 0, period=period, **along)
        for period in (1, round(1 / knobs.lrs[1]))
    ]
    return {
        "order in lr of the slow equation's error": no_less(
            ORDER, gaps, "the theorem's 1 / 4", against=0
        ),
        f"drift over the slow equation's, lr = 1/{1 / finest:g}": near(
            1, 0.05, drift, "after 1 / lr^2 steps", against=0.5
        ),
        "spread along the floor over the slow equation's": within(
            0.9,
            1.1,
            lab.worst(spreads, 1, of_ratios=True),
            "with long rounds as with SGD",
            against=(0.5, 2),
        ),
        "order in lr of the error of SGD's own slow equation": at_most(
            0.1, others, "Local SGD goes elsewhere", control=True
        ),
    }


def _diagonal(knobs: LocalSGDFlatness) -> dict[str, Prediction]:
    every, last = knobs.diagonal_periods, knobs.diagonal_periods[-1]
    usual: dict[str, Any] = {"num_workers": knobs.num_workers, "batch_size": 1, "noise": 1.0}

    def rate(period: int, column: str = "rate", **where: Any) -> Reading:
        """How fast log tr H falls, in time lr^2 x steps."""
        return -of("diagonal", column, period=period, **(usual | where))

    plain, local = rate(1), rate(last)
    exact = [rate(period) / rate(period, "sampled") for period in (1, *every)]
    of_small = [
        (rate(period) / plain) / (rate(period, "additive") / rate(1, "additive"))
        for period in every
    ]
    lone = rate(1, num_workers=1)
    whole = rate(last, num_workers=1, batch_size=knobs.num_workers)
    still = rate(last, noise=0.0)
    soon = [of("diagonal", "log_trace", "early", period=own, **usual) for own in (1, last)]
    name = "diagonal network, d log tr H / dt"
    return {
        f"{name}, H = {last} over H = 1": within(
            6.5, 9.5, local / plain, f"K = {knobs.num_workers}, or nearly", against=(3, math.inf)
        ),
        f"{name}, H = {last} over one worker's": within(
            0.85, 1.15, local / lone, "as noisy as it, and averaged", against=(0.5, 2)
        ),
        f"{name}, over the forecast": within(
            *(0.85, 1.15, lab.worst(exact, 1, of_ratios=True), "at the worst period"),
            against=(0.5, 2),
        ),
        f"{name}, over H = 1, and over the mean multiplier": within(
            *(0.8, 1.25, lab.worst(of_small, 1, of_ratios=True), "at the worst period"),
            against=(0.5, 2),
        ),
        f"{name}, without label noise over with it": near(
            0, 0.01, still / local, "nothing pushes", control=True
        ),
        f"{name}, one worker of all the batch, H = {last}, over H = 1": within(
            0.85, 1.15, whole / plain, "there is nothing to average", control=True
        ),
        f"diagonal network, log tr H, H = {last} less H = 1, after 1 / lr steps": near(
            0, 0.03, soon[1] - soon[0], "too few steps, far below 1 / lr^2", control=True
        ),
    }


def _networks(knobs: LocalSGDFlatness) -> dict[str, Prediction]:
    small, large, brief = {"lr": knobs.lr}, {"lr": knobs.large_lr}, knobs.brief_period
    fall: dict[str, Any] = {"lr": knobs.falling_lr, "falling": True}
    local, base = {"period": knobs.period}, {"period": knobs.base}
    usual: dict[str, Any] = small | local
    soon = pl.col("step") == knobs.few_steps
    at = f"Local SGD over SGD, lr {knobs.lr:g}"
    gain = f"test loss, Local SGD - SGD, lr {knobs.lr:g}"
    longer = network("trace", "local", **usual) / network("trace", "local", **small, period=brief)
    shares = abs(network("share", "qsr", **fall) - quadratic(knobs).share)
    return {
        f"tr H, {at}": at_most(0.75, flatter("local", **usual), f"H = {knobs.period}", against=1),
        f"tr H, H = {knobs.period} over H = {brief}, lr {knobs.lr:g}": at_most(
            0.95, longer, "longer rounds go farther", against=1
        ),
        f"tr H, falling rates, H = {knobs.base} over SGD": at_most(
            0.9, flatter("local", **fall, **base), "H is short, but flattens", against=1
        ),
        "tr H, falling rates, QSR over SGD": at_most(
            0.9, flatter("qsr", **fall, **base), "with fewer rounds", against=1
        ),
        "share of communication of QSR, off what is known before": lab.every_seed(
            shares <= 1e-12, "at most 1e-12", exact=True
        ),
        f"{gain}, H = {knobs.period}": at_most(0, gained(**usual), "a little better"),
        f"{gain}, H = {brief}": at_most(0, gained(**small, period=brief), "so, too"),
        f"tr H, {at}, after {knobs.few_steps} steps": no_less(
            0.75, flatter("local", soon, **usual), "too few steps", control=True
        ),
        f"tr H, {at}, labels not flipped but smooth": no_less(
            0.9,
            flatter("local", **usual, noise="smooth"),
            "no noise at minima",
            control=True,
        ),
        f"test loss, Local SGD - SGD, lr {knobs.large_lr:g}, H = {brief}": no_less(
            0, gained(**large, period=brief), "too large a rate", control=True
        ),
    }


# ---- readings


def multiplier(
    lr: float, period: int, workers: int, over: str = "", *, shared: bool = False
) -> Reading:
    """How much faster than parallel SGD the drift down the valley is, or that over a column."""
    value = pl.col("multiplier") / (pl.col(over) if over else 1.0)
    return of("valley", value, lr=lr, period=period, num_workers=workers, shared=shared)


def path(value: pl.Expr, *conditions: pl.Expr, **where: Any) -> Reading:
    """A value of paths along the valley."""
    return of("paths", value, *conditions, **where)


def power(rates: Sequence[float], far: np.ndarray) -> float:
    """Of the rates, by which |far| grows: the slope of the logarithms."""
    return float(np.polyfit(np.log(rates), np.log(np.abs(far)), 1)[0])


def network(column: str | pl.Expr, method: str, *conditions: pl.Expr, **where: Any) -> Reading:
    """A value of convolutional networks, at the end unless conditions say when."""
    cell: dict[str, Any] = {"falling": False, "noise": "flips"} | where
    return of("networks", column, KEPT, *(conditions or (_LATE,)), method=method, **cell)


def over_sgd(column: str, method: str, *conditions: pl.Expr, **where: Any) -> list[Reading]:
    """A method's value, and SGD's at the same rate."""
    cells = {method: where, "sgd": where | {"period": 1}}
    return [network(column, name, *conditions, **cell) for name, cell in cells.items()]


def flatter(method: str, *conditions: pl.Expr, **where: Any) -> Reading:
    """The Hessian's trace over SGD's."""
    own, plain = over_sgd("trace", method, *conditions, **where)
    return own / plain


def gained(**where: Any) -> Reading:
    """Test loss of Local SGD less SGD's."""
    own, plain = over_sgd("test_loss", "local", **where)
    return own - plain


def quadratic(knobs: LocalSGDFlatness) -> predict.SyncRounds:
    """The rounds of QSR."""
    return predict.sync_rounds(falling_rates(knobs), alpha=knobs.alpha, base=knobs.base)
