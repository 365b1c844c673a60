"""The page of an inspection: spectra, and what each role takes at a given error."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import polars as pl
from torch import Tensor

from undertow import lab
from undertow.apply._columns import role

if TYPE_CHECKING:
    from undertow.apply.inspection._inspection import Inspection

# Points of a spectrum that are drawn, and all spectra together: the page stays below 3 MB.
_POINTS = 64
_ALL_POINTS = 12_000
_FLOOR = 1e-9


def inspection_page(found: Inspection, lead: str) -> lab.Page:
    """The report of an inspection as a page that `lab.write_report` writes."""
    facts = {
        "read": found.source,
        "matrices": str(len(found.table)),
        "parameters": f"{found.parameters:,}",
    }
    if found.residue is not None:
        facts["E"] = f"{found.residue.decay_exponent:.4g}"
        facts["left of the start"] = f"{found.residue.factor:.3g}"
    notes = "\n\n".join(f"Note: {note}." for note in found.notes)
    sections = (
        lab.Section(
            "Spectra",
            "Singular values over the Frobenius norm, against their place in the order. A spectrum "
            "that falls off a cliff is a matrix of low rank; a straight line is none.",
            chart=_spectra_chart(found),
            caption=f"One line a matrix; the rule is the threshold, {found.threshold:g}.",
        ),
        lab.Section(
            "How far they compress",
            "The share of its numbers that a matrix takes as the product of two thin factors, or "
            "as it is where that is cheaper; means over the matrices of a role.",
            chart=_compression_chart(found),
            caption="By relative error in the Frobenius norm.",
        ),
        lab.Section("Every matrix", notes, table=found.table),
    )
    return lab.Page(f"Inspection of {Path(found.source).name}", lead, sections, facts=facts)


def _spectra_chart(found: Inspection) -> Any:
    import altair as alt

    points = _points(found.spectra)
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
    rule = alt.Chart(pl.DataFrame({"threshold": [found.threshold]})).mark_rule(strokeDash=[5, 4])
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


def _compression_chart(found: Inspection) -> Any:
    import altair as alt

    from undertow.apply.inspection._inspection import percent

    shares: dict[str, list[Any]] = {"role": [], "error": [], "share": []}
    errors: Sequence[str] = [f"{percent(error)}%" for error in found.errors]
    for row in found.table.iter_rows(named=True):
        for error, label in zip(found.errors, errors, strict=True):
            shares["role"].append(role(row["name"]))
            shares["error"].append(label)
            shares["share"].append(row[f"parameters_at_{percent(error)}"] / row["parameters"])
    frame = pl.DataFrame(shares).group_by("role", "error", maintain_order=True).mean()
    count = frame["role"].n_unique()
    return (
        alt.Chart(frame)
        .mark_bar()
        .encode(
            alt.Y("role:N").title(None).sort(None).axis(labelLimit=280),
            alt.X("share:Q").title("share of the parameters").axis(format="%"),
            alt.YOffset("error:N").sort(errors),
            alt.Color("error:N").title("relative error").sort(errors).legend(orient="bottom"),
            tooltip=["role:N", "error:N", alt.Tooltip("share:Q", format=".1%")],
        )
        .properties(height=max(120, 34 * count))
    )
