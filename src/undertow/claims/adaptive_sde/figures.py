"""The figures of adaptive-sde: weak orders, trajectories under SVAG, and batch sizes."""

from __future__ import annotations

from typing import Any

import polars as pl

from undertow.claims import Records
from undertow.claims.adaptive_sde import AdaptiveSde
from undertow.claims.adaptive_sde.experiments import AVERAGES, OPTIMIZERS, SCALINGS, UNJUDGED
from undertow.claims.adaptive_sde.predictions import deviations, error, nearer
from undertow.lab import Charts, beside, figure, kept, means

CELL = ("series", "factor", "scaling")
LEGEND = pl.col("scaling").cast(pl.Enum(("base", *SCALINGS)))  # its order
# Half-lives lie on the square root's line, and another order on the base run's.
SHOWN = ~pl.col("scaling").is_in(["half-life", "other order"])
BETAS = dict(zip(AVERAGES, ("1 - k (1 - beta)", "beta^k", "betas kept"), strict=True))
RIGHT, WEAK = "SVAG", "weaker noise (control)"
Row = tuple[str, int, str, float, float | None]
draw = Charts(
    level="SVAG's l",
    error="|error of E x²|",
    distance="distance, over that at l = 1",
    factor="k",
    share="deviation / drop in log loss",
    loss="training loss",
)


@figure("SVAG tends to the SDE, as 1/l²")
def order(records: Records, knobs: AdaptiveSde) -> Any:
    """An oscillator with noise of two values. Dashed: 1/l², through the finest level. Adam from
    step 0 is not judged: its bias correction diverges there.
    """
    rows: list[Row] = []
    *_, last = knobs.levels
    for process, name in (OPTIMIZERS | UNJUDGED).items():
        found = {level: abs(error(process, level)(records).mean()) for level in knobs.levels}
        scale = found[last] * last**2
        rows += [(name, at, RIGHT, far, scale / at**2) for at, far in found.items()]
        if process in OPTIMIZERS:
            weak = abs(error(process, last, "too weak")(records).mean())
            rows.append((name, last, WEAK, weak, None))
    return _beside_law(rows, "process", "error")


@figure("On a network, too, trajectories converge as the noise takes over")
def limit(records: Records, knobs: AdaptiveSde) -> Any:
    """Distance of mean log-loss curves on clean images, where plain Adam is far from its SDE, from
    those of the finest level, as a share of that at l = 1. Dashed: 1/l². Averages over replicas
    leave a floor of sampling noise under the last point.
    """

    def far(optimizer: str, level: int, weights: str) -> float:
        return nearer(optimizer, level, weights, knobs).effect(records).value

    rows: list[Row] = []
    *levels, last = knobs.limit_levels
    for optimizer, name in OPTIMIZERS.items():
        for level in levels:
            law = (level**-2 - last**-2) / (1 - last**-2)
            rows.append((name, level, RIGHT, far(optimizer, level, "svag"), law))
        rows.append((name, levels[-1], WEAK, far(optimizer, levels[-1], "too weak"), None))
    return _beside_law(rows, "optimizer", "distance")


def _beside_law(rows: list[Row], panels: str, measured: str) -> Any:
    schema = [panels, "level", "noise", measured, "law"]
    frame = pl.DataFrame(rows, schema=schema, orient="row").fill_nan(None)
    axes = ("level", measured, "law", "noise")
    return draw.measured_against_predicted(frame, *axes, columns=panels, log="xy")


@figure("The square-root rule keeps the path; neither linear scaling nor none does")
def rule(records: Records, knobs: AdaptiveSde) -> Any:
    """Deviation from the run at the base batch, at k times the batch. Without scaling the SDE
    predicts the base curve run sqrt(k) times slower, from no free number. The rule is worst where
    labels are clean, as signal then dominates.
    """
    shares = means(_deviations(records).filter(SHOWN), CELL, ["share", "predicted_share"])
    predicted = shares.filter(scaling="none").with_columns(
        scaling=pl.lit("none, predicted"), share="predicted_share"
    )
    frame = pl.concat([shares.sort(LEGEND, maintain_order=True), predicted])
    return draw.lines(frame, "factor", "share", "scaling", columns="series", log="xy")


@figure("The curves behind it, at the largest of the batches", "images", "text")
def curves(records: Records, knobs: AdaptiveSde) -> Any:
    """Geometric means over seeds, at the largest of {factors} times the batch for images and of
    {text_factors} times for text.
    """
    largest = dict.fromkeys(("clean labels", "noisy labels"), max(knobs.factors))
    panels = []
    for series, factor in (largest | {"text": max(knobs.text_factors)}).items():
        runs = kept(records["text" if series == "text" else "images"])
        runs = runs.filter(SHOWN, pl.col("factor").is_in([1, factor]), series=series)
        logs = means(runs, ["scaling", "epoch"], ["log_loss"])
        frame = logs.sort(LEGEND, "epoch").with_columns(loss=pl.col("log_loss").exp())
        lines = draw.lines(frame, "epoch", "loss", "scaling", log="y")
        panels.append(lines if lines is None else lines.properties(title=series))
    return beside(*panels, shared="color")


@figure("Half-lives in samples do as well as the equation's betas, and have no end")
def betas(records: Records, knobs: AdaptiveSde) -> Any:
    """Deviation from the run at the base batch under the square-root rule, by what becomes of the
    betas. With beta1 = 0.9 (short memory) the equation's is cut off at 0 from k = 10 on.
    """
    averages = _deviations(records).filter(pl.col("scaling").is_in(AVERAGES))
    shares = means(averages, CELL, ["share"])
    frame = shares.sort(LEGEND, maintain_order=True).with_columns(
        betas=pl.col("scaling").replace_strict(BETAS)
    )
    return draw.lines(frame, "factor", "share", "betas", columns="series", log="xy")


FIGURES = (order, limit, rule, betas, curves)


def table(records: Records, knobs: AdaptiveSde) -> pl.DataFrame:
    """Deviations at every batch size, scaling and series, with what theory says of no scaling."""
    columns = {
        "deviation": "deviation",
        "share": "over drop in loss",
        "accuracy_change": "test accuracy off by",
        "test_change": "test log loss off by",
        "clipped": "beta1 cut off",
        "predicted": "predicted",
        "noise": "noise over signal",
    }
    return means(_deviations(records), CELL, columns).fill_nan(None)


def _deviations(records: Records) -> pl.DataFrame:
    return pl.concat([deviations(records[name]) for name in ("images", "text")])
