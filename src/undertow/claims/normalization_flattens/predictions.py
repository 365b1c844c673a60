"""What the paper predicts of descent with decay, and where the prediction must fail."""

from __future__ import annotations

import math
from typing import Any

import polars as pl

from undertow.claims import Records
from undertow.claims.normalization_flattens import SPEED_READINGS, NormalizationFlattens
from undertow.claims.normalization_flattens.experiments import REGRESSION_DECAY
from undertow.lab import (
    Prediction,
    Reading,
    at_most,
    near,
    no_less,
    of,
    per_seed,
    slope_by_seed,
)

FULL, NONE = 1.0, 0.0  # branches: all of the decay, and no decay
_FALLEN, _STILL = math.log(0.7), math.log(0.9)


def predictions(knobs: NormalizationFlattens) -> dict[str, Prediction]:
    """On circles, in regression, of networks, of their pace and of what flatness is worth."""
    return (
        _of_circles(knobs) | _of_regressions() | _of_networks(knobs) | _of_pace() | _of_tests(knobs)
    )


def summary(records: Records, knobs: NormalizationFlattens) -> str:
    """How many eigenvalues are at the edge of the networks whose pace is foreseen."""
    counts: list[int] = records["pace"]["at_edge"].drop_nulls().to_list()
    if not counts:
        return ""
    return f"{min(counts)} to {max(counts)} eigenvalues are at the edge where pace is foreseen."


def _of_circles(knobs: NormalizationFlattens) -> dict[str, Prediction]:
    finest = min(knobs.intrinsic_rates)

    def last(column: str) -> Reading:
        return of("circles", column, last=True, intrinsic_rate=finest)

    at = f"circle, sqrt(2 lr wd) = {finest:g}"
    return {
        "circle, order in the intrinsic rate of the distance to the flow": no_less(
            0.25, order_on_circles(), "the theorem's", against=0
        ),
        f"{at}: log sharpness lost, over the flow's": near(
            1, 0.05, last("fall") / last("flow_fall"), "-2 s^2 / (4 + s^2)", against=0.5
        ),
        f"{at}: effective rate x sharpness": near(2, 0.05, last("edge"), "the edge", against=1),
        f"{at}, no decay: log sharpness lost, over the flow's": at_most(
            0.1, last("still_fall") / last("flow_fall"), "decay is what drives it", control=True
        ),
    }


def _of_regressions() -> dict[str, Prediction]:
    return {
        "batch-norm regression: tan psi over (1 - lr wd)^t": near(
            1, 0.05, tangent(True), "only decay reaches the null space", against=0.5
        ),
        "batch-norm regression: log sharpness lost, over its law": near(
            1, 0.05, lost(True) / lawful_loss(), "sharpness is as 1 / cos^2 psi", against=0.5
        ),
        "batch-norm regression, no decay: tan psi over (1 - lr wd)^t": no_less(
            2, tangent(False), "it stays where it is", control=True
        ),
    }


def _of_networks(knobs: NormalizationFlattens) -> dict[str, Prediction]:
    found: dict[str, Prediction] = {}
    for data, width in cells(knobs):
        cell: dict[str, Any] = {"images.data": data, "width": width}
        name = f"network, {data}, width {width}"
        found[f"{name}: log sharpness, end - fit"] = at_most(
            _FALLEN, fall(FULL, **cell), "it falls on and on", against=0
        )
        found[f"{name}: effective rate x sharpness"] = near(
            2, 0.25, edge(FULL, **cell), "at the edge all the while", against=1
        )
        found[f"{name}, no decay: log sharpness, end - fit"] = no_less(
            _STILL, fall(NONE, **cell), "nothing drives it", control=True
        )
    main = main_cell(knobs)
    slowest = min(knobs.slower)
    beyond = (edge(branch, **main) - 2 for branch in (slowest, FULL))
    return found | {
        "network: power of lr wd in the steps to a fixed sharpness": near(
            -1, 0.2, clock(knobs), "the clock is 1 / (lr wd)", against=1
        ),
        f"network: distance from the edge, {slowest:g} of the decay over all of it": at_most(
            0.75, next(beyond) / next(beyond), "it vanishes with lr wd", against=1
        ),
    }


def _of_pace() -> dict[str, Prediction]:
    measured = pace()
    foreseen, alone = (of("pace", column) for column in ("foreseen", "alone"))
    return {
        "network: d log sharpness / d tau, over what gradients foresee": near(
            1, 0.1, measured / foreseen, "by all eigenvalues at the edge", against=0.5
        ),
        "network: 2 + d log sharpness / d tau, over what gradients foresee": near(
            1, 0.5, (measured + 2) / (foreseen + 2), "what the oscillation takes", against=1
        ),
        "network: the same, by the largest eigenvalue alone": no_less(
            2, (measured + 2) / (alone + 2), "it is not alone at the edge", control=True
        ),
    }


def _of_tests(knobs: NormalizationFlattens) -> dict[str, Prediction]:
    name = "test accuracy, flattened - twin without decay, mean over the networks"
    return {
        name: no_less(0, mean_gain(knobs), "flatter minima generalise better"),
        f"{name}, less what no input reaches": no_less(
            0,
            mean_gain(knobs, "seen_accuracy"),
            "it is not that decay forgets what training does not see",
            against=math.inf,
        ),
    }


# ---- readings


def cells(knobs: NormalizationFlattens) -> list[tuple[str, int]]:
    """Data sets and widths of the networks."""
    sources = (knobs.images.data, knobs.other)
    return [(data, width) for data in sources if data is not None for width in knobs.widths]


def main_cell(knobs: NormalizationFlattens) -> dict[str, Any]:
    """The networks that have slower branches."""
    return {"images.data": knobs.images.data, "width": knobs.widths[0]}


def order_on_circles() -> Reading:
    """The power of the intrinsic rate in the largest distance of descent from the flow."""
    return slope_by_seed("circles", pl.col("intrinsic_rate").log(), pl.col("log_gap"), last=True)


def tangent(decay: bool) -> Reading:
    """Tan psi at the end over that at the second reading, over (1 - lr weight_decay)^steps."""
    kept = pl.col("tangent") / (pl.col("step") * math.log1p(-REGRESSION_DECAY)).exp()
    first, last = (
        of("regressions", kept, pl.col("step") > 0, decay=decay, how=how)
        for how in ("first", "last")
    )
    return last / first


def lost(decay: bool) -> Reading:
    """Log sharpness of the regression at the second reading less that at the end."""
    moving = pl.col("step") > 0
    first, last = (
        of("regressions", "log_sharpness", moving, decay=decay, how=how)
        for how in ("first", "last")
    )
    return first - last


def lawful_loss() -> Reading:
    """What it should be, from tan psi at the second reading alone."""
    start = pl.col("tangent").first()
    steps = pl.col("step").last() - pl.col("step").first()
    end = start * (steps * math.log1p(-REGRESSION_DECAY)).exp()
    law = ((1 + start**2) / (1 + end**2)).log()

    def read(records: Records) -> Any:
        frame = records["regressions"]
        if frame.is_empty():
            return per_seed(frame, "step")
        moving = frame.filter(pl.col("step") > 0, decay=True)
        return per_seed(moving.group_by("seed", maintain_order=True).agg(law=law), "law")

    return Reading(read)


def fall(branch: float, **cell: Any) -> Reading:
    """Log sharpness of a branch, the median of the last readings less that of the fit."""
    last = of("networks", "log_sharpness", branch=branch, last=True, how="median", **cell)
    return last - of("networks", "log_sharpness", branch=branch, step=0, **cell)


def edge(branch: float, **cell: Any) -> Reading:
    """Effective rate x sharpness, the median over the readings of a branch."""
    return of("networks", "edge", pl.col("step") > 0, branch=branch, how="median", **cell)


def clock(knobs: NormalizationFlattens) -> Reading:
    """The power of the decay in the steps after which sharpness has fallen by so much."""
    steps = pl.col("crossing").cast(pl.Float64)  # null altogether where none has fallen so far
    return slope_by_seed("networks", pl.col("branch").log(), steps.log(), **main_cell(knobs))


def pace() -> Reading:
    """Each network's d log sharpness / d tau: the median over windows of a quarter of the time.

    A burst, in which an eigenvalue jumps up, is in fewer than half of them.
    """
    tau, height = (
        pl.col(name).sort_by("tau").diff(SPEED_READINGS // 4) for name in ("tau", "log_sharpness")
    )

    def read(records: Records) -> Any:
        frame = records["pace"]
        if frame.is_empty():
            return per_seed(frame, "tau")
        return per_seed(frame.group_by("seed").agg(pace=(height / tau).median()), "pace")

    return Reading(read)


def gain(data: str, width: int, column: str = "accuracy") -> Reading:
    """Test accuracy of the flattened network less that of its twin without decay."""
    cell: dict[str, Any] = {"images.data": data, "width": width, "last": True}
    flat = of("networks", "accuracy", branch=FULL, **cell)
    return flat - of("networks", column, branch=NONE, **cell)


def mean_gain(knobs: NormalizationFlattens, column: str = "accuracy") -> Reading:
    """Each seed's gain, averaged over data sets and widths."""
    first, *others = (gain(data, width, column) for data, width in cells(knobs))
    for other in others:
        first = first + other
    return first * (1 / (len(others) + 1))
