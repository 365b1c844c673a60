"""Charts: every kind draws, from every shape of frame; captions are filled in from knobs."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import polars as pl
import pytest

from undertow import lab
from undertow.lab import Charts, PerSeed, beside, figure, intervals, labels

FRAME = pl.DataFrame(
    {
        "x": [1.0, 2.0, 4.0] * 4,
        "y": [1.0, 3.0, 2.0] * 4,
        "z": [1.1, 2.9, 2.2] * 4,
        "by": ["b"] * 6 + ["a"] * 6,
        "panel": (["left"] * 3 + ["right"] * 3) * 2,
    }
)
BANDED = FRAME.with_columns(low=pl.col("y") - 0.2, high=pl.col("y") + 0.2)
draw = Charts(x="the words of x")


@pytest.mark.parametrize("frame", [FRAME, BANDED], ids=["plain", "banded"])
@pytest.mark.parametrize("panels", [{}, {"columns": "panel"}, {"columns": "by", "rows": "panel"}])
@pytest.mark.parametrize(
    "kind",
    [
        lambda frame, **o: draw.lines(frame, "x", "y", "by", log="xy", **o),
        lambda frame, **o: draw.lines(frame, "x", "y", "by", dash="panel", **o),
        lambda frame, **o: draw.lines(frame, "x", "y", detail="by", **o),
        lambda frame, **o: draw.points(frame, "x", "y", "by", shape="panel", **o),
        lambda frame, **o: draw.bars(frame, "panel", "y", "by", domain=(0, 4), **o),
        lambda frame, **o: draw.measured_against_predicted(frame, "x", "y", "z", "by", **o),
    ],
)
def test_every_kind_of_chart_draws(
    kind: Any, panels: dict[str, str], frame: pl.DataFrame, tmp_path: Path
) -> None:
    written = lab.save_chart(kind(frame, **panels), tmp_path / "chart.svg")
    assert written.read_text().startswith("<svg")


def test_a_diagonal_reaches_from_zero_to_the_largest(tmp_path: Path) -> None:
    chart = draw.diagonal(FRAME, "x", "y", "by")
    shown = list(chart.to_dict()["datasets"].values())
    assert [{"x": 0.0, "y": 0.0}, {"x": 4.0, "y": 4.0}] in shown
    assert FRAME.to_dicts() in shown
    assert lab.save_chart(chart, tmp_path / "chart.svg").read_text().startswith("<svg")
    assert draw.diagonal(FRAME.clear(), "x", "y") is None


def test_a_frame_without_rows_gives_no_chart_and_no_panel() -> None:
    none = draw.lines(FRAME.clear(), "x", "y", "by", log="xy", columns="panel")
    assert none is None
    assert draw.points(intervals({}, "x", value="y"), "x", "y") is None
    assert draw.spectra({}) is None
    some = draw.points(FRAME, "x", "y")
    assert beside(none, some) is some
    assert beside(none, none) is None
    assert len(beside(none, some, some).to_dict()["hconcat"]) == 2


def test_axes_carry_the_words_and_colours_the_order_of_appearance() -> None:
    spec = draw.lines(FRAME, "x", "y", "by").to_dict()
    (layer,) = spec["layer"]
    assert layer["encoding"]["x"]["title"] == "the words of x"
    assert layer["encoding"]["y"]["title"] == "y"
    assert layer["encoding"]["color"]["sort"] is None


def test_panels_stand_in_the_order_of_appearance() -> None:
    spec = draw.lines(FRAME, "x", "y", columns="by", rows="panel").to_dict()
    assert spec["facet"]["column"]["sort"] == ["b", "a"]
    assert spec["facet"]["row"]["sort"] == ["left", "right"]


def test_layers_lie_on_each_other_and_panels_beside(tmp_path: Path) -> None:
    one = draw.lines(FRAME, "x", "y", "by") + draw.level(2.0, across="y")
    lab.save_chart(beside(one, draw.spectra({"w": [3.0, 1.0, 0.0]})), tmp_path / "two.png")


def test_a_spectrum_is_drawn_in_descending_order_without_its_zeros() -> None:
    spec = draw.spectra({"w": [1.0, 3.0, 0.0]}).to_dict()
    (rows,) = spec["datasets"].values()
    assert [row["value"] for row in rows] == [3.0, 1.0]


def test_intervals_are_a_row_a_reading_and_leave_out_what_is_unknown() -> None:
    readings = {("a", 1): PerSeed({0: 1.0, 1: 3.0}), ("b", 2): PerSeed({0: 1.0})}
    frame = intervals(readings, "name", "x", value="y")
    assert frame.columns == ["name", "x", "y", "low", "high"]
    assert frame.select("name", "x", "y").rows() == [("a", 1, 2.0)]
    assert intervals({}, "x").columns == ["x", "value", "low", "high"]
    assert intervals({3: PerSeed({0: 1.0, 1: 2.0})}, "x")["x"].to_list() == [3]


def test_a_docstring_is_the_caption_with_the_knobs_filled_in() -> None:
    @figure("A title")
    def rate_of_fall(records: Any, knobs: Any) -> Any:
        """Drawn at {lr:g},
        over two lines.
        """
        return records or None

    drawn = rate_of_fall({"any": FRAME}, SimpleNamespace(lr=0.50))
    assert drawn is not None
    assert (drawn.name, drawn.title) == ("rate-of-fall", "A title")
    assert drawn.caption == "Drawn at 0.5, over two lines."
    assert rate_of_fall({}, SimpleNamespace(lr=1)) is None


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


def test_many_panels_go_on_in_a_further_row(tmp_path: Path) -> None:
    names = ["d", "a", "e", "b", "c"]
    frame = pl.DataFrame({"x": range(5), "y": range(5), "part": names})
    few, many = (Charts().lines(part, "x", "y", columns="part") for part in (frame[:4], frame))
    assert "columns" not in few.to_dict()
    assert (many.to_dict()["columns"], many.to_dict()["facet"]["sort"]) == (3, names)
    lab.save_chart(many, tmp_path / "wrapped.svg")


def test_a_figure_is_not_drawn_without_what_it_needs() -> None:
    @figure("Losses", "runs")
    def losses(records: Any, knobs: Any) -> Any:
        """The losses of {count} runs."""
        return records["runs"]["loss"].item()

    runs = pl.DataFrame({"trial": ["a"], "diverged": [False], "loss": [0.5]})
    knobs = SimpleNamespace(count=1)
    drawn = losses({"runs": runs}, knobs)
    assert drawn is not None
    assert (drawn.name, drawn.caption, drawn.chart) == ("losses", "The losses of 1 runs.", 0.5)
    diverged = runs.with_columns(diverged=pl.lit(True))
    for nothing in (diverged, pl.DataFrame(schema={"trial": pl.String})):
        assert losses({"runs": nothing}, knobs) is None


def test_series_are_called_by_their_numbers() -> None:
    frame = pl.DataFrame({"lr": [0.1, 2.0], "method": ["sgd", "adam"]})
    named = frame.select(labels("{} at {:g}", "method", "lr").alias("name"))
    assert named["name"].to_list() == ["sgd at 0.1", "adam at 2"]


def test_logarithmic_axes_alone_have_few_ticks() -> None:
    (layer,) = draw.lines(FRAME, "x", "y", log="x").to_dict()["layer"]
    assert layer["encoding"]["x"]["axis"] == {"tickCount": 5}
    assert "axis" not in layer["encoding"]["y"]


def test_a_caption_in_whose_braces_is_no_knob_says_so() -> None:
    def drawn(records: Any, knobs: Any) -> Any:
        """Of {nothing}."""
        return object()

    with pytest.raises(ValueError, match=r"caption of drawn: .* names of knobs, got 'nothing'"):
        lab.figure("It")(drawn)({}, SimpleNamespace(steps=3))
