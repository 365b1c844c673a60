"""The figures of janus: what is forgotten, what never rests, and ranks of deep networks."""

from __future__ import annotations

from typing import Any

import polars as pl

from undertow.claims import Records
from undertow.claims.janus import Janus
from undertow.claims.janus.experiments import LINEAR
from undertow.lab import Charts, beside, figure, kept, means

draw = Charts(
    step="steps",
    epochs="epochs",
    null_ratio="null-space component left",
    null_predicted="null-space component left",
    fluctuation="fluctuation of updates / ||W||",
    foreseen="what the gradients say",
)


def trained_by(full: int | None) -> pl.Expr:
    """What a run was trained by, in words; `full` is the batch of gradient descent."""
    sgd = pl.format("SGD, batch {}", pl.col("batch_size"))
    return pl.when(pl.col("batch_size") == full).then(pl.lit("GD")).otherwise(sgd)


@figure("What the data cannot see is forgotten at one rate per step", "gaussian")
def null_space(records: Records, knobs: Janus) -> Any:
    """Points are measured, lines are (1 - lr weight_decay)^steps. At equal epochs SGD has forgotten
    N / B times as many e-folds; at equal steps all batch sizes agree.
    """
    ends = {"epochs": knobs.epochs, "step": knobs.steps_of(1)}
    early = pl.col("steps") <= ends["step"]
    runs = kept(records["gaussian"]).filter(early, weight_decay=knobs.strongest)
    rows = means(
        runs, ["batch_size", "step", "epochs"], ["null_ratio", "null_predicted"]
    ).with_columns(method=trained_by(knobs.samples))
    panels = []
    for x, most in ends.items():
        shown = rows.filter(pl.col(x) <= most)
        law = draw.lines(shown, x, "null_predicted", "method", dash=True, log="y")
        measured = draw.points(shown, x, "null_ratio", "method", log="y")
        panels.append(law + measured)
    return beside(*panels, shared="color")


@figure("With weight decay SGD never comes to rest", "gaussian", "deep")
def noise(records: Records, knobs: Janus) -> Any:
    """Fluctuation of the updates against what the gradients say, a point a run: at the ridge
    solution of the regressions (left), and where descent rests on the deep network (right). On the
    dashed line they are equal; orders are shuffled (`epochs`) and fixed (`cyclic`).
    """
    late = kept(records["gaussian"]).filter("final", pl.col("steps") >= knobs.late_steps)
    linear = late.drop_nulls("ridge").select("order", "fluctuation", foreseen="ridge")
    ends = kept(records["deep"]).filter("final", pl.col("weight_decay") > 0, activation="relu")
    rest = ends.filter(order="full").select("seed", "weight_decay", foreseen="predicted")
    pairs = ends.filter(pl.col("order") != "full").join(rest, on=["seed", "weight_decay"])
    panels = []
    for rows in filter(len, (linear, pairs)):
        equal = rows.select("foreseen", fluctuation="foreseen")
        law = draw.lines(equal, "foreseen", "fluctuation", dash=True, log="xy")
        panels.append(
            law + draw.points(rows, "foreseen", "fluctuation", "order", shape="order", log="xy")
        )
    return beside(*panels, shared="color shape")


@figure("A deep network: gradient descent gets low rank as well", "deep")
def deep(records: Records, knobs: Janus) -> Any:
    """Threshold rank (1e-3) of the middle matrix by weight decay: at equal steps (final), and of
    descent after as many epochs as SGD has had.
    """
    runs = kept(records["deep"]).filter(pl.col("order") != "cyclic", activation="relu")
    full = pl.col("batch_size") == knobs.images.train_size
    same = runs.filter(full & (pl.col("step") == pl.col("step").min()))
    kinds = {"steps": runs.filter("final"), "epochs": same}
    rows = []
    for kind, own in kinds.items():
        method = pl.format("{}, same {}", trained_by(knobs.images.train_size), pl.lit(kind))
        cells = means(own, ["batch_size", "weight_decay"], ["rank"])
        rows.append(cells.with_columns(method=method))
    return draw.lines(pl.concat(rows), "weight_decay", "rank", "method", domain=(0, knobs.width))


FIGURES = (null_space, noise, deep)


def table(records: Records, knobs: Janus) -> pl.DataFrame:
    """Regressions by batch size: what is left of the null space, and the fluctuation at the end."""
    ends = [kept(records[kind]).with_columns(inputs=pl.lit(kind)) for kind in LINEAR]
    names = {"null_ratio": "null space left", "null_predicted": "predicted"}
    names |= {"fluctuation": "fluctuation", "ridge": "of the ridge's gradients"}
    names |= {"stable_rank": "stable rank"}
    cell = ["inputs", "steps", "order", "batch_size", "weight_decay"]
    return means(pl.concat(ends, how="diagonal_relaxed").filter("final"), cell, names)
