"""The charts that claims are drawn with."""

from __future__ import annotations

import polars as pl
import pytest

from undertow.lab import Charts


@pytest.mark.parametrize("kind", ["lines", "points", "bars"])
def test_names_on_an_axis_keep_their_order(kind: str) -> None:
    frame = pl.DataFrame({"decay": ["none", "0.1", "0.02"], "rank": [3.0, 2.0, 1.0]})
    (layer,) = getattr(Charts(decay="weight decay"), kind)(frame, "decay", "rank").to_dict()[
        "layer"
    ]
    axis = layer["encoding"]["x"]
    assert axis["type"] == "nominal"
    assert axis["sort"] is None
    assert axis["title"] == "weight decay"
    numbers = Charts().lines(frame.with_columns(pl.lit(1.0).alias("decay")), "decay", "rank")
    assert numbers.to_dict()["layer"][0]["encoding"]["x"]["type"] == "quantitative"


def test_panels_keep_the_order_of_the_data() -> None:
    frame = pl.DataFrame({"x": [1, 2, 3], "y": [1, 2, 3], "when": ["late", "early", "late"]})
    facet = Charts().lines(frame, "x", "y", columns="when", rows="y").to_dict()["facet"]
    assert facet["column"]["sort"] == ["late", "early"]
    assert facet["row"]["sort"] == [1, 2, 3]
