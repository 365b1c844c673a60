"""The figures of square-loss: rho along the flow, margins, layer norms, and neural collapse."""

from __future__ import annotations

from typing import Any

import polars as pl

from undertow.claims import Records
from undertow.claims.square_loss import SquareLoss
from undertow.claims.square_loss.predictions import PLAIN, REST
from undertow.lab import Charts, beside, figure, kept, labels, means

draw = Charts(
    fraction="share of the time",
    end="rho at the end",
    margin="mean normalised margin",
    margin_cv="spread of the margins (CV)",
    square="squared layer norm",
    step="steps",
    value="distance from collapse",
)


@figure("With decay every start heads for the same rho", "flows")
def rho(records: Records, knobs: SquareLoss) -> Any:
    """Lines: rho along the flow, one per seed. Points: the predicted mu / (M + lambda) at its end.
    The time is horizon / lambda, and that of the weakest decay for lambda = 0, where a large start
    stays large.
    """
    rows = kept(records["flows"]).filter(**PLAIN).sort("initial_rho", "fraction")
    rows = rows.with_columns(start=labels("from {:g}", "initial_rho"))
    view: dict[str, Any] = {"log": "xy", "domain": (rows["rho"].min(), rows["rho"].max())}
    panels = []
    for decay in knobs.rho_decay:
        own = rows.filter(rho_decay=decay)
        ends = own.filter(fraction=1.0).with_columns(rho="equilibrium")
        lines = draw.lines(own, "fraction", "rho", "start", detail="seed", **view)
        points = draw.points(ends, "fraction", "rho", "start", **view)
        panels.append((lines + points).properties(title=f"lambda = {decay:g}"))
    return beside(*panels, shared="color")


@figure("A smaller rho is a larger margin, and fitting equalises the margins", "flows")
def margins(records: Records, knobs: SquareLoss) -> Any:
    """Left: mean of y f at the end against rho, a point per flow. Right: their coefficient of
    variation, median over starts and seeds. Without decay it falls furthest.
    """
    rows = kept(records["flows"]).filter(**PLAIN).sort("rho_decay", "fraction")
    rows = rows.with_columns(decay=labels("lambda = {:g}", "rho_decay"), end="rho")
    cells = rows.group_by("decay", "fraction", maintain_order=True)
    along = cells.agg(pl.col("margin_cv").median())
    ends = rows.filter(pl.col("margin") > 0, fraction=1.0)
    size = draw.points(ends, "end", "margin", "decay", log="xy")
    spread = draw.lines(along, "fraction", "margin_cv", "decay", log="xy")
    return beside(size, spread, shared="color")


@figure("Weight decay equalises the layers of a network that is not normalised", "norms")
def layer_norms(records: Records, knobs: SquareLoss) -> Any:
    """Mean over seeds. Without decay the differences of the squared norms are those of the initial
    weights.
    """
    layers = {f"square_{layer}": f"layer {layer}" for layer in (1, 2, 3)}
    rows = means(kept(records["norms"]), ["weight_decay"], layers)
    rows = rows.with_columns(decay=labels("weight decay {:g}", "weight_decay"))
    long = rows.unpivot(
        [*layers.values()], index="decay", variable_name="layer", value_name="square"
    )
    return draw.bars(long, "layer", "square", "decay")


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


FIGURES = (rho, margins, layer_norms, collapse)


def table(records: Records, knobs: SquareLoss) -> pl.DataFrame:
    """Flows by lambda and start: where rho ended, and margins and rank there."""
    flows = kept(records["flows"])
    if flows.is_empty():
        return flows
    ends = flows.filter(fraction=1.0).with_columns(at_rest=REST)
    columns = ["rho", "equilibrium", "at_rest", "margin", "least_margin"]
    columns += ["margin_cv", "stable_rank", "fitted"]
    named = {name: name.replace("_", " ") for name in columns}
    return means(ends, ("shuffled", "rho_decay", "initial_rho", "speed"), named)
