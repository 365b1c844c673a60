"""The charts of a forecast: how the start is forgotten, layer by layer.

What draws is imported when something is drawn: a forecast at a terminal needs none of it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    import polars as pl

_LINES = 40  # shapes that are drawn


def residue_chart(steps: Sequence[int], exponents: Sequence[float]) -> Any:
    """The share e^-E of the initial weights that is left, by step."""
    import altair as alt
    import polars as pl

    frame = pl.DataFrame({"step": steps, "residue": np.exp(-np.array(exponents))})
    curve = (
        alt.Chart(frame)
        .mark_line()
        .encode(
            alt.X("step:Q"),
            alt.Y("residue:Q").title("share of the initial weights").scale(domain=[0, 1]),
        )
    )
    level = pl.DataFrame({"level": [float(np.exp(-1))]})
    return curve + alt.Chart(level).mark_rule(strokeDash=[5, 4]).encode(y="level:Q")


def rank_chart(steps: Sequence[int], shares: Mapping[str, Sequence[float]]) -> Any:
    """The share of its full rank that a matrix of each shape keeps, by step."""
    import altair as alt
    import polars as pl

    rows: dict[str, list[Any]] = {"shape": [], "step": [], "share": []}
    for shape in list(shares)[:_LINES]:
        rows["shape"] += [shape] * len(steps)
        rows["step"] += steps
        rows["share"] += shares[shape]
    return (
        alt.Chart(pl.DataFrame(rows))
        .mark_line()
        .encode(
            alt.X("step:Q"),
            alt.Y("share:Q").title("surviving rank / full rank").axis(format="%"),
            alt.Color("shape:N").title(None).legend(orient="bottom", columns=4),
            tooltip=["shape:N", "step:Q", alt.Tooltip("share:Q", format=".1%")],
        )
    )


def sync_chart(starts: np.ndarray, periods: np.ndarray) -> Any:
    """The steps between two averages of Local SGD, by the step at which a round starts."""
    import altair as alt
    import polars as pl

    count = len(starts)
    chosen = np.unique(np.linspace(0, count - 1, min(count, 500)).round().astype(int))
    frame = pl.DataFrame({"step": starts[chosen], "period": periods[chosen]})
    return (
        alt.Chart(frame)
        .mark_line(interpolate="step-after")
        .encode(
            alt.X("step:Q"),
            alt.Y("period:Q").scale(type="log").title("steps between averages"),
        )
    )


def comparison_chart(table: pl.DataFrame) -> Any:
    """Forecast against measured rank, a point a record, beside the line on which they agree."""
    import altair as alt
    import polars as pl

    shown = table if len(table) <= 3000 else table.sample(3000, seed=0)
    points = (
        alt.Chart(shown)
        .mark_point(opacity=0.4, size=24)
        .encode(
            alt.X("rank:Q").title("measured rank"),
            alt.Y("forecast:Q").title("forecast"),
            alt.Color("decay_exponent:Q").title("E").scale(scheme="viridis"),
            tooltip=table.columns,
        )
    )
    top = int(max(table["rank"].max(), table["forecast"].max()))  # type: ignore[arg-type, type-var]
    line = pl.DataFrame({"rank": [0, top], "forecast": [0, top]})
    return points + alt.Chart(line).mark_line(strokeDash=[5, 4], color="gray").encode(
        x="rank:Q", y="forecast:Q"
    )
