"""The figures of square-loss: rho and errors of the flow, SGD at rest or not, collapse, bounds."""

from __future__ import annotations

from typing import Any

import polars as pl

from undertow.claims import Records
from undertow.claims.square_loss import SquareLoss
from undertow.claims.square_loss.experiments import ALL
from undertow.claims.square_loss.predictions import BOUND, PLAIN, REST, USABLE
from undertow.lab import Charts, beside, figure, kept, labels, means

draw = Charts(
    fraction="share of the time",
    end_error="test error at the end",
    margin_cv="spread of the margins (CV)",
    unrest="step over norm of the weights",
    rank="rank of the hidden layers",
    step="steps",
    value="distance from collapse",
    bound="kernel norms over margin",
    error="test error",
)


@figure("With decay every start heads for the same rho", "flows")
def rho(records: Records, knobs: SquareLoss) -> Any:
    """Lines: rho along the flow, one per seed. Points: 2 lambda as the rate at which the largest
    start falls. The time is horizon / lambda, and that of the weakest decay for lambda = 0, where
    a large start stays large.
    """
    rows = kept(records["flows"]).filter(**PLAIN).sort("initial_rho", "fraction")
    rows = rows.with_columns(start=labels("from {:g}", "initial_rho"))
    view: dict[str, Any] = {"log": "xy", "domain": (rows["rho"].min(), rows["rho"].max())}
    falls = (-2 * pl.col("rho_decay") * pl.col("at")).exp() * knobs.initial_rho[-1]
    panels = []
    for decay in knobs.rho_decay:
        own = rows.filter(rho_decay=decay)
        ends = own.filter(pl.col("fraction") <= 0.3, initial_rho=knobs.initial_rho[-1])
        lines = draw.lines(own, "fraction", "rho", "start", detail="seed", **view)
        points = draw.points(ends.with_columns(rho=falls), "fraction", "rho", "start", **view)
        panels.append((lines + points).properties(title=f"lambda = {decay:g}"))
    return beside(*panels, shared="color")


@figure("Fitting equalises the margins, and a smaller rho alone tests no better", "flows")
def margins(records: Records, knobs: SquareLoss) -> Any:
    """Left: coefficient of variation of y f, median over starts and seeds: without decay it falls
    furthest. Right: test error against rho at the end, a point per flow; with flipped labels decay
    moves both, without decay the larger rho tests better.
    """
    rows = kept(records["flows"]).sort("rho_decay", "fraction")
    rows = rows.with_columns(decay=labels("lambda = {:g}", "rho_decay"))
    cells = rows.filter(**PLAIN).group_by("decay", "fraction", maintain_order=True)
    along = cells.agg(pl.col("margin_cv").median())
    panels = [draw.lines(along, "fraction", "margin_cv", "decay", log="xy")]
    for flipped in (0.0, knobs.flipped):
        ends = rows.filter(fraction=1.0, flipped=flipped)
        drawn = draw.points(ends, "rho", "end_error", "decay", log="x")
        panels.append(drawn.properties(title=f"{flipped:.0%} of the labels flipped"))
    return beside(*panels, shared="color")


@figure("With decay SGD does not come to rest, and low rank is of decay", "networks")
def rest(records: Records, knobs: SquareLoss) -> Any:
    """Median over seeds of the root mean square of grad L_S + weight_decay W, over ||W||, on the
    batches that a network is trained with; and how many singular values of its two hidden layers
    are above a hundredth of their norm.
    """
    rows = kept(records["networks"]).sort("batch_size", "weight_decay", "step")
    size = pl.when(pl.col("batch_size") == ALL).then(pl.lit("full batch"))
    rows = rows.with_columns(
        batches=size.otherwise(labels("batches of {}", "batch_size")),
        decay=labels("weight decay {:g}", "weight_decay"),
    )
    cells = rows.group_by("batches", "decay", "step", maintain_order=True)
    median = cells.agg(pl.col("unrest", "rank").median())
    panels = (
        draw.lines(median, "step", name, "decay", dash="batches", log="y")
        for name in ("unrest", "rank")
    )
    return beside(*panels, shared="color strokeDash")


@figure("Neural collapse along training, with decay and without", "collapse")
def collapse(records: Records, knobs: SquareLoss) -> Any:
    """All three are zero at collapse: NC1 is the spread within classes, NC2 the distance of the
    class means from a simplex, NC3 that of the weights from the class means.
    """
    measures = {"nc1": "NC1", "nc2": "NC2", "nc3": "NC3"}
    rows = means(kept(records["collapse"]), ("weight_decay", "step"), measures)
    rows = rows.with_columns(decay=labels("weight decay {:g}", "weight_decay"))
    long = rows.unpivot([*measures.values()], index=["decay", "step"], variable_name="measure")
    return draw.lines(long, "step", "value", "decay", columns="measure", log="y")


@figure("The bound follows the test error of networks from one start", "bounds")
def bounds(records: Records, knobs: SquareLoss) -> Any:
    """A point per network that has fitted its labels. Left: the share of random labels, from one
    initial scale. Right: true labels, over initial scales and decays.
    """
    rows = records["bounds"].filter(*USABLE).sort("label_noise", "scale", "weight_decay")
    rows = rows.with_columns(
        bound=BOUND,
        noise=labels("{:.0%} random", "label_noise"),
        start=labels("{:g} x, decay {:g}", "scale", "weight_decay"),
    )
    noisy = rows.filter(scale=knobs.bound_scales[0], weight_decay=0.0)
    true = rows.filter(label_noise=0.0)
    left = draw.points(noisy, "bound", "error", "noise", log="x")
    return beside(left, draw.points(true, "bound", "error", "start", log="x"))


FIGURES = (rho, margins, rest, collapse, bounds)


def table(records: Records, knobs: SquareLoss) -> pl.DataFrame:
    """Flows by labels, lambda and start: where rho ended, and margins, rank and error there."""
    flows = kept(records["flows"])
    if flows.is_empty():
        return flows
    ends = flows.filter(fraction=1.0).with_columns(at_rest=REST)
    columns = ["rho", "at_rest", "margin", "least_margin"]
    columns += ["margin_cv", "stable_rank", "fitted", "end_error"]
    return means(ends, ("flipped", "rho_decay", "initial_rho"), columns)
