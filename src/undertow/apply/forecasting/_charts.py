"""The page of a forecast: how the start is forgotten, layer by layer."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import polars as pl

from undertow import lab
from undertow.apply.forecasting._forecast_text import facts_of

if TYPE_CHECKING:
    from undertow.apply.forecasting._forecast import Forecast

_LINES = 40  # layers that are drawn


def forecast_page(found: Forecast) -> lab.Page:
    """The forecast as a page that `lab.write_report` writes."""
    sections = [
        lab.Section(
            "What is left of the initial weights",
            "Weight decay multiplies what was there before by 1 - lr x weight_decay at every step: "
            "the residue is e^-E, E the sum of these products.",
            chart=_residue_chart(found),
            caption="The dashed line is 1 / e, one memory length.",
        )
    ]
    if found.layers:
        sections.append(
            lab.Section(
                "Surviving initial directions",
                "Singular values of the initialisation that decay leaves above "
                f"{found.threshold:g} of each matrix's norm. Below the number of directions that "
                "training itself needs, the learned part is what shows.",
                chart=_rank_chart(found),
                caption="Shares of the full rank; one line for each shape.",
            )
        )
        sections.append(lab.Section("Every matrix", table=found.table))
    if found.comparison is not None:
        sections.append(
            lab.Section(
                "Beside what was measured",
                repr(found.comparison),
                chart=_comparison_chart(found.comparison.table),
                caption="Each point is a record; on the line forecast and measurement agree.",
            )
        )
    sections.append(
        lab.Section(
            "Local SGD",
            "Steps between two averages under the quadratic rule H = max(base, (alpha / lr)^2).",
            chart=_sync_chart(found),
            caption=f"{found.sync.share:.1%} of the communication of averaging at every step.",
        )
    )
    said = "\n\n".join([*found.notes, *found.assumptions])
    sections.append(lab.Section("What this rests on", said))
    return lab.Page("Forecast", repr(found), tuple(sections), facts=facts_of(found))


def _residue_chart(found: Forecast) -> Any:
    import altair as alt
    import numpy as np

    frame = pl.DataFrame({"step": found.steps, "residue": np.exp(-np.array(found.exponents))})
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


def _rank_chart(found: Forecast) -> Any:
    import altair as alt

    rows: dict[str, list[Any]] = {"shape": [], "step": [], "share": []}
    seen: set[str] = set()
    for layer in found.layers:
        shape = f"{layer.rows} x {layer.cols}"
        if shape in seen or len(seen) >= _LINES:
            continue
        seen.add(shape)
        full = min(layer.rows, layer.cols)
        rows["shape"] += [shape] * len(found.steps)
        rows["step"] += found.steps
        rows["share"] += [rank / full for rank in layer.ranks]
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


def _sync_chart(found: Forecast) -> Any:
    import altair as alt
    import numpy as np

    count = len(found.sync.starts)
    chosen = np.unique(np.linspace(0, count - 1, min(count, 500)).round().astype(int))
    frame = pl.DataFrame({"step": found.sync.starts[chosen], "period": found.sync.periods[chosen]})
    return (
        alt.Chart(frame)
        .mark_line(interpolate="step-after")
        .encode(
            alt.X("step:Q"),
            alt.Y("period:Q").scale(type="log").title("steps between averages"),
        )
    )


def _comparison_chart(table: pl.DataFrame) -> Any:
    import altair as alt

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
