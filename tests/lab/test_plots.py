"""Charts: what is drawn at all, and what series are called."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import polars as pl

from undertow.lab import figure, labels


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
