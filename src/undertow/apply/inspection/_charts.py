"""The charts of an inspection: spectra, and what each role takes at a given error."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import polars as pl
from torch import Tensor

from undertow.apply._names import role

# Points of a spectrum that are drawn, and all spectra together: the page stays below 3 MB.
_POINTS = 64
_ALL_POINTS = 12_000
_FLOOR = 1e-9


def spectra_chart(spectra: Mapping[str, Tensor], threshold: float) -> Any:
    """Singular values over the norm, against their place; the rule is the threshold."""
    import altair as alt

    points = _points(spectra)
    frame = pl.DataFrame(points).with_columns(
        role=pl.Series([role(name) for name in points["matrix"]], dtype=pl.String)
    )
    lines = (
        alt.Chart(frame)
        .mark_line(strokeWidth=1.2, opacity=0.55)
        .encode(
            alt.X("place:Q").title("place in the order, as a share").scale(domain=[0, 1]),
            alt.Y("value:Q").scale(type="log").title("singular value / Frobenius norm"),
            alt.Color("role:N")
            .title(None)
            .legend(orient="bottom", columns=2, labelLimit=360, symbolOpacity=1),
            detail="matrix:N",
            tooltip=["matrix:N", "place:Q", "value:Q"],
        )
    )
    rule = alt.Chart(pl.DataFrame({"threshold": [threshold]})).mark_rule(strokeDash=[5, 4])
    return lines + rule.encode(y="threshold:Q")


def _points(spectra: Mapping[str, Tensor]) -> dict[str, list[Any]]:
    each = max(8, min(_POINTS, _ALL_POINTS // len(spectra)))
    drawn: dict[str, list[Any]] = {"matrix": [], "place": [], "value": []}
    for name, spectrum in spectra.items():
        values = spectrum.numpy()
        norm = np.linalg.norm(values) or 1.0
        chosen = np.unique(np.linspace(0, len(values) - 1, each).round().astype(int))
        drawn["matrix"] += [name] * len(chosen)
        drawn["place"] += list((chosen + 0.5) / len(values))
        drawn["value"] += list(np.maximum(values[chosen] / norm, _FLOOR))
    return drawn


def compression_chart(table: pl.DataFrame, errors: Mapping[str, str]) -> Any:
    """The mean share of its parameters that each role takes, a bar for each relative error.

    `errors` maps what an error is called to the table's column of parameters for it.
    """
    import altair as alt

    shares: dict[str, list[Any]] = {"role": [], "error": [], "share": []}
    for row in table.iter_rows(named=True):
        for label, column in errors.items():
            shares["role"].append(role(row["name"]))
            shares["error"].append(label)
            shares["share"].append(row[column] / row["parameters"])
    frame = pl.DataFrame(shares).group_by("role", "error", maintain_order=True).mean()
    count = frame["role"].n_unique()
    return (
        alt.Chart(frame)
        .mark_bar()
        .encode(
            alt.Y("role:N").title(None).sort(None).axis(labelLimit=280),
            alt.X("share:Q").title("share of the parameters").axis(format="%"),
            alt.YOffset("error:N").sort(list(errors)),
            alt.Color("error:N").title("relative error").sort(list(errors)).legend(orient="bottom"),
            tooltip=["role:N", "error:N", alt.Tooltip("share:Q", format=".1%")],
        )
        .properties(height=max(120, 34 * count))
    )
