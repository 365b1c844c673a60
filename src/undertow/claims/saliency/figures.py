"""The figures of saliency: both numbers of every method, and evidence in blocks."""

from __future__ import annotations

from typing import Any

import polars as pl

from undertow.claims import Records
from undertow.claims.saliency import Saliency
from undertow.claims.saliency.experiments import (
    BLIND,
    COARSE,
    DEARER,
    DOUBLE,
    FINE,
    GRADIENTS,
)
from undertow.lab import KEPT, Charts, beside, figure, kept, means

draw = Charts(
    completeness="completeness, predicted label",
    soundness="soundness, wrong labels",
    side="side of a block, in pixels",
    left="evidence for wrong labels, of that in single pixels",
)

GRADIENT, _, ABSOLUTE, SMOOTH = GRADIENTS
SHOWN = (FINE, COARSE, DEARER, DOUBLE, GRADIENT, ABSOLUTE, SMOOTH, BLIND)


@figure("Both numbers of each method, and of noise", "maps")
def scores(records: Records, knobs: Saliency) -> Any:
    """Completeness and soundness of each method, mean over networks. Dashed: fine masks whose order
    of pixels is mixed with noise, from none on the left to a random map on the right. What lies
    below the line, noise does better.
    """
    both = [pl.col("completeness", "soundness").mean()]
    rows = kept(records["maps"]).filter(model="convolutional")
    panels = []
    for data in knobs.data:
        own = rows.filter(**{"images.data": data})
        noise = own.drop_nulls("share").group_by("share").agg(both).sort("share")
        points = own.group_by("method").agg(both)
        named = pl.DataFrame({"method": SHOWN}).join(points, on="method", maintain_order="left")
        line = draw.lines(noise, "soundness", "completeness", dash=True)
        methods = draw.points(named, "soundness", "completeness", "method")
        if line is not None and methods is not None:
            panels.append((line + methods).properties(title=data))
    return beside(*panels, shared="color")


@figure("Blocks collect less evidence for wrong labels, as correlations foresee", "evidence")
def evidence(records: Records, knobs: Saliency) -> Any:
    """What the best mask of blocks collects for a wrong label of held-out images in a linear
    softmax, over what one of single pixels does; mean over seeds. Dashed: from the mean and the
    covariance of the attributions of training images, and as it would be were they white.
    """
    rows = kept(records["evidence"]).rename({"images.data": "data"})
    columns = {"wrong_left": "left", "wrong_predicted_left": "predicted"}
    found = means(rows, ("data", "side"), columns).select("data", "side", "left", "predicted")
    sides = found["side"].unique().sort()
    white = pl.DataFrame({"data": "white", "side": sides, "left": None, "predicted": 1 / sides})
    both = pl.concat([found, white.cast({"left": pl.Float64})])
    return draw.measured_against_predicted(both, "side", "left", "predicted", "data", log="xy")


FIGURES = (scores, evidence)


def table(records: Records, knobs: Saliency) -> pl.DataFrame:
    """Both numbers of every method: means over networks."""
    rows = records["maps"].filter(KEPT).rename({"images.data": "data"})
    columns = ("completeness", "soundness", "noisy")
    return means(rows, ("data", "model", "method", "share"), columns)
