"""The affordable measurements of an objective together, in one table.

Each row is a quantity with its uncertainty and what it cost; what does not apply to the model at
hand says why.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import polars as pl

from undertow.measure._lengths import length
from undertow.measure.curvature import hessian_trace, sharpness
from undertow.measure.function import margins
from undertow.measure.noise import gradient_noise
from undertow.measure.weights import ranks
from undertow.objective import Objective

if TYPE_CHECKING:
    from undertow import lab


@dataclass(frozen=True, eq=False)
class Profile:
    """What an optimizer has made of a network, in one table.

    Attributes:
        table: columns quantity, value, low, high (95% interval, or the residual's reach), cost (in
            words) and note (why a value is missing, or what to mind).
        parts: the full results by the function's name, for those that could be taken.
    """

    table: pl.DataFrame
    parts: Mapping[str, Any] = field(repr=False)

    def document(self) -> lab.Document:
        """The table, with the singular values drawn where there are some."""
        from undertow import lab

        intervals = [
            "" if low is None else f"[{low:.4g}, {high:.4g}]"
            for low, high in self.table.select("low", "high").iter_rows()
        ]
        table = lab.Table(
            {
                "quantity": self.table["quantity"],
                "value": self.table["value"],
                "interval": intervals,
                "cost": self.table["cost"],
                "note": [
                    f"not taken: {note}" if value is None else note
                    for value, note in self.table.select("value", "note").iter_rows()
                ],
            },
            caption="An interval is of 95%, or the reach of the residual.",
            terminal=("quantity", ("value", "interval"), ("cost", "note")),
        )
        drawn = (lab.Chart(self.plot),) if "ranks" in self.parts else ()
        return lab.Document(
            title="Profile",
            sections=(
                lab.Section("", (table,)),
                lab.Section("Singular values", drawn, page_only=True),
            ),
            data={"quantities": self.table.to_dicts()},
        )

    def __repr__(self) -> str:
        from undertow import lab

        return lab.as_text(self.document())

    def plot(self) -> Any:
        """An altair chart: the singular values of every weight matrix over its Frobenius norm.

        Raises:
            ValueError: if the model has no weight matrix, and so nothing to draw.
        """
        if "ranks" not in self.parts:
            reason = self.table.filter(pl.col("quantity") == "mean stable rank")["note"].item()
            raise ValueError(f"there are no singular values to draw: {reason}")
        import altair as alt

        rows = []
        for name, spectrum in self.parts["ranks"].spectra.items():
            norm = math.sqrt(float(spectrum.square().sum())) or 1.0
            rows += [
                {"index": i + 1, "singular value / norm": value / norm, "matrix": name}
                for i, value in enumerate(spectrum.tolist())
                if value > 0
            ]
        return (
            alt.Chart(pl.DataFrame(rows))
            .mark_line()
            .encode(
                x="index:Q",
                y=alt.Y("singular value / norm:Q", scale=alt.Scale(type="log")),
                color="matrix:N",
            )
            .properties(width=480, height=280)
        )


def profile(objective: Objective) -> Profile:
    """Loss, gradient, ranks, sharpness, Hessian trace, gradient noise and margins, in one table.

    Costs some tens of gradient passes. Quantities that the model or the data do not admit (the
    margin of a network that is not homogeneous, the noise of a single sample) are listed without a
    value and with the reason.

    Raises:
        ValueError: if not even the loss can be evaluated.
    """
    rows = [
        _row("loss", float(objective.value()), cost="1 pass"),
        _row("gradient norm", float(length(objective.gradient())), cost="1 pass"),
    ]
    parts: dict[str, Any] = {}
    for name, (quantity, measured, read) in _PARTS.items():
        try:
            parts[name] = measured(objective)
        except (ValueError, TypeError, RuntimeError) as error:
            rows.append(_row(quantity, math.nan, note=str(error).splitlines()[0]))
        else:
            rows += read(parts[name])
    columns = {
        "quantity": pl.String,
        "value": pl.Float64,
        "low": pl.Float64,
        "high": pl.Float64,
        "cost": pl.String,
        "note": pl.String,
    }
    filled = [
        {key: row.get(key, "" if key in ("cost", "note") else None) for key in columns}
        for row in rows
    ]
    return Profile(pl.DataFrame(filled, schema=columns), parts)


def _row(quantity: str, value: float, **more: Any) -> dict[str, Any]:
    return {"quantity": quantity, "value": None if math.isnan(value) else value, **more}


def _rank_rows(found: Any) -> list[dict[str, Any]]:
    cost = f"spectra of {_count(len(found.table), 'matrix', 'matrices')}"
    return [_row("mean stable rank", float(found.table["stable_rank"].mean()), cost=cost)]


def _sharpness_rows(found: Any) -> list[dict[str, Any]]:
    value, reach = float(found.eigenvalues[0]), float(found.residuals[0])
    shared = {"low": value - reach, "high": value + reach}
    return [_row("sharpness", value, **shared, **_products(found))]


def _trace_rows(found: Any) -> list[dict[str, Any]]:
    low, high = found.interval
    return [_row("Hessian trace", found.value, low=low, high=high, **_products(found))]


def _noise_rows(found: Any) -> list[dict[str, Any]]:
    low, high = found.interval
    shared = {"cost": "the same passes", "note": "in samples"}
    return [
        _row("gradient noise trace", found.trace, cost=_count(found.passes, "pass", "passes")),
        _row("noise scale", found.noise_scale, low=low, high=high, **shared),
    ]


def _margin_rows(found: Any) -> list[dict[str, Any]]:
    cost = _count(found.passes, "pass", "passes")
    return [
        _row("degree of homogeneity", found.degree, cost=cost, note=_why_not(found.degree)),
        _row("normalised margin", found.normalized, note=_why_not(found.normalized)),
    ]


# By the function's name: the quantity that is missing where it cannot be taken, the measurement,
# and the rows that it gives.
_PARTS: Mapping[str, tuple[str, Callable[[Objective], Any], Callable[[Any], list[Any]]]] = {
    "ranks": ("mean stable rank", lambda objective: ranks(objective.model), _rank_rows),
    "sharpness": ("sharpness", lambda objective: sharpness(objective), _sharpness_rows),
    "hessian_trace": ("Hessian trace", lambda objective: hessian_trace(objective), _trace_rows),
    "gradient_noise": ("noise scale", lambda objective: gradient_noise(objective), _noise_rows),
    "margins": ("normalised margin", lambda objective: margins(objective), _margin_rows),
}


def _products(found: Any) -> dict[str, str]:
    note = "" if found.converged else "not converged"
    return {"cost": _count(found.products, "product", "products"), "note": note}


def _count(number: float, one: str, many: str) -> str:
    return f"{number:.6g} {one if number == 1 else many}"


def _why_not(value: float) -> str:
    return "the network is not homogeneous" if math.isnan(value) else ""
