"""The charts of an inspection: spectra, and what each role takes at a given error."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np
import polars as pl
from torch import Tensor

from undertow.apply._names import role, short_names
from undertow.lab import printable

# Points of a spectrum that are drawn, and all spectra together: the page stays below 3 MB.
_POINTS = 64
_ALL_POINTS = 12_000
_FLOOR = 1e-9
_LABEL = 22  # characters in a line of a label


def spectra_chart(spectra: Mapping[str, Tensor], threshold: float) -> Any:
    """Singular values over the norm, against their place; the rule is the threshold.

    Matrices of zeros are left out.
    """
    import altair as alt

    points = _points(spectra)
    frame = pl.DataFrame(points).with_columns(
        role=pl.Series(_roles(points["matrix"]), dtype=pl.String)
    )
    # What is far below the threshold would press the rest together.
    least = float(frame["value"].min() or _FLOOR)  # type: ignore[arg-type]
    lowest = max(min(least, threshold / 3), threshold / 30) if threshold else least
    lines = (
        alt.Chart(frame)
        .mark_line(strokeWidth=1.2, opacity=0.55, clip=True)
        .encode(
            alt.X("place:Q").title("place in the order, as a share").scale(domain=[0, 1]),
            alt.Y("value:Q")
            .scale(type="log", domain=[lowest, 1])
            .title("singular value / Frobenius norm"),
            alt.Color("role:N")
            .title(None)
            .legend(orient="bottom", columns=1, labelLimit=210, symbolOpacity=1),
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
        if not values.any():
            continue
        norm = np.linalg.norm(values) or 1.0
        # Half of them close to the start, where a spectrum of low rank has its cliff.
        first = np.geomspace(1, len(values), each // 2) - 1
        chosen = np.append(first, np.linspace(0, len(values) - 1, each // 2))
        chosen = np.unique(chosen.round().astype(int))
        drawn["matrix"] += [printable(name)] * len(chosen)
        drawn["place"] += list((chosen + 0.5) / len(values))
        drawn["value"] += list(np.maximum(values[chosen] / norm, _FLOOR))
    return drawn


def compression_chart(table: pl.DataFrame, errors: Mapping[str, str]) -> Any:
    """The mean share of its parameters that each role takes, a bar for each relative error.

    `errors` maps what an error is called to the table's column of parameters for it.
    """
    import altair as alt

    shares: dict[str, list[Any]] = {"role": [], "error": [], "share": []}
    for row, kind in zip(table.iter_rows(named=True), _roles(table["name"]), strict=True):
        for label, column in errors.items():
            shares["role"].append(_in_lines(kind))
            shares["error"].append(label)
            shares["share"].append(row[column] / row["parameters"])
    frame = pl.DataFrame(shares).group_by("role", "error", maintain_order=True).mean()
    count = frame["role"].n_unique()
    return (
        alt.Chart(frame)
        .mark_bar()
        .encode(
            alt.Y("role:N")
            .title(None)
            .sort(None)
            .axis(labelLimit=180, labelExpr="split(datum.label, '\\n')"),
            alt.X("share:Q").title("share of the parameters").axis(format="%"),
            alt.YOffset("error:N").sort(list(errors)),
            alt.Color("error:N").title("relative error").sort(list(errors)).legend(orient="bottom"),
            tooltip=["role:N", "error:N", alt.Tooltip("share:Q", format=".1%")],
        )
        .properties(height=max(120, 40 * count))
    )


def _roles(names: Iterable[str]) -> list[str]:
    """The role of each, without what all of them share."""
    roles = [role(name) for name in names]
    known = list(dict.fromkeys(roles))
    short = dict(zip(known, short_names(known, [1] * len(known)), strict=True)) if known else {}
    return [printable(short[one]) for one in roles]


def _in_lines(name: str) -> str:
    """A name in lines that leave room for bars on a narrow screen, broken after its dots."""
    lines = [""]
    for part in re.findall(r"[^.]*\.|[^.]+$", name):
        if lines[-1] and len(lines[-1]) + len(part) > _LABEL:
            lines.append("")
        lines[-1] += part
    return "\n".join(lines[:3])
