"""The figures of saliency: both numbers of every method, and evidence in blocks."""

from __future__ import annotations

from typing import Any

import polars as pl

from undertow.claims import Records
from undertow.claims.saliency import Saliency
from undertow.claims.saliency.experiments import NOISY, RANDOM
from undertow.lab import KEPT, Charts, beside, figure, kept, means

draw = Charts(
    completeness="completeness, predicted label",
    soundness="soundness, wrong labels",
    side="side of a block, in pixels",
    left="evidence for wrong labels, of that in single pixels",
)

ALSO = ("another label's masks", "untrained network's masks")


@figure("Both numbers of every method, and of noise", "maps")
def scores(records: Records, knobs: Saliency) -> Any:
    """Completeness and soundness of each method, mean over networks. Dashed: the fine masks whose
    order of pixels is mixed with more and more noise, from left to right.
    """
    rows = kept(records["maps"]).filter(model="convolutional")
    by = ["images.data", "method"]
    both = [pl.col("completeness").mean(), pl.col("soundness").mean()]
    controls = [NOISY, RANDOM, *ALSO]
    points = (
        rows.filter(~pl.col("method").is_in(controls)).group_by(by, maintain_order=True).agg(both)
    )
    line = rows.filter(pl.col("share").is_not_null()).group_by("images.data", "share").agg(both)
    names = {"images.data": "data"}
    return draw_in_panels(points.rename(names), line.sort("share").rename(names))


def draw_in_panels(points: pl.DataFrame, line: pl.DataFrame) -> Any:
    """A panel for each data set."""
    panels = []
    for (data,), own in points.group_by("data", maintain_order=True):
        noise = draw.lines(line.filter(data=data), "soundness", "completeness", dash=True)
        methods = draw.points(own, "soundness", "completeness", "method")
        panels.append((noise + methods).properties(title=data))
    return beside(*panels, shared="color")


@figure("Blocks collect less evidence for wrong labels, as correlations foresee", "evidence")
def evidence(records: Records, knobs: Saliency) -> Any:
    """What the best mask of blocks collects for a wrong label of held-out images in a linear
    softmax, over what one of single pixels does; mean over seeds. Dashed: from the mean and the
    covariance of the attributions of training images.
    """
    rows = kept(records["evidence"]).rename({"images.data": "data"})
    columns = {"wrong_left": "left", "wrong_predicted_left": "predicted"}
    found = means(rows, ("data", "side"), columns)
    return draw.measured_against_predicted(found, "side", "left", "predicted", "data", log="xy")


FIGURES = (scores, evidence)


def table(records: Records, knobs: Saliency) -> pl.DataFrame:
    """Both numbers of every method: means over networks."""
    rows = records["maps"].filter(KEPT).rename({"images.data": "data"})
    columns = ("completeness", "soundness", "noisy")
    return means(rows, ("data", "model", "method", "share"), columns)
