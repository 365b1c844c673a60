"""The affordable measurements of an objective together, in one table.

Each row is a quantity with its uncertainty and what it cost; what does not apply to the model at
hand says why. What is affordable is counted in gradients of the objective and not in seconds, so
that the same budget gives the same table on every machine, however busy.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import polars as pl

from undertow.measure._kinds import check_objective
from undertow.measure._lengths import length
from undertow.measure.curvature import hessian_trace, sharpness
from undertow.measure.function import margins
from undertow.measure.noise import gradient_noise
from undertow.measure.weights import ranks
from undertow.objective import Objective

if TYPE_CHECKING:
    from undertow import lab

# What parts cost in gradients: a product with the Hessian on a graph that is kept, a forward pass.
_PRODUCT = 2.0
_FORWARD = 1 / 3
# Products without which a sharpness or a trace says nothing.
_SHARPNESS_LEAST = 10
_TRACE_LEAST = 24
# The sharpness may take this share of what is left for it and the trace.
_SHARPNESS_SHARE = 0.5
# Operations of a singular value decomposition, by rows x columns x the smaller of them, and of a
# gradient, by parameter and sample.
_DECOMPOSITION, _GRADIENT = 10, 6


@dataclass(frozen=True, eq=False)
class Profile:
    """What an optimizer has made of a network, in one table.

    Attributes:
        table: columns quantity, value, low, high (95% interval, or the residual's reach), cost (in
            words) and note (why a value is missing, or what to mind).
        parts: the full results by the function's name, for those that could be taken.
        budget: in gradients.
        spent: of it.
        left_out: the functions' names that were not started, or not given what they asked for.
    """

    table: pl.DataFrame
    parts: Mapping[str, Any] = field(repr=False)
    budget: float = math.inf
    spent: float = 0.0
    left_out: tuple[str, ...] = ()

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
            facts={"cost": f"about {self.spent:.0f} gradients, of a budget of {self.budget:g}"},
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


def profile(objective: Objective, *, budget: float = 400) -> Profile:
    """Loss, gradient, ranks, gradient noise, margins, sharpness and Hessian trace, in one table.

    In this order, from what tells most for its cost on. Nothing is started that the budget does not
    cover; sharpness and trace stop, not converged, where it ends. Whatever is left out or cut short
    says so in one line, with the call that gives it. Quantities that the model or the data do not
    admit (the margin of a network that is not homogeneous, the noise of a single sample) are
    listed without a value and with the reason.

    Args:
        objective: what to measure.
        budget: in gradients of the objective over all its data: a Hessian product counts two, a
            forward pass a third. 400 is some seconds for a small network; the loss and its
            gradient are taken whatever it is. `math.inf` for no limit.

    Raises:
        TypeError: if budget is no number.
        ValueError: if budget is negative, or not even the loss can be evaluated.
    """
    check_objective(objective)
    if isinstance(budget, bool) or not isinstance(budget, int | float):
        raise TypeError(f"budget must be a number of gradients, got {type(budget).__name__}")
    if not budget >= 0:
        raise ValueError(f"budget must not be negative, got {budget}")
    rows = [
        _row("loss", float(objective.value()), cost="1 pass"),
        _row("gradient norm", float(length(objective.gradient())), cost="1 pass"),
    ]
    spent = 1 + _FORWARD
    parts: dict[str, Any] = {}
    left_out: list[str] = []
    for name, part in _PARTS.items():
        room = budget - spent
        try:
            least = part.least(objective)
            if least > room:
                left_out.append(name)
                note = f"beyond the budget, by {least - max(room, 0):.3g} gradients: {part.call}"
                rows.append(_row(part.quantity, math.nan, note=note))
                continue
            parts[name] = part.measured(objective, room)
        except (ValueError, TypeError, RuntimeError) as error:
            spent += part.failed
            rows.append(_row(part.quantity, math.nan, note=str(error).splitlines()[0]))
        else:
            spent += part.cost(parts[name], least)
            found = part.read(parts[name])
            if part.call and found[0].get("note") == _NOT_CONVERGED:
                left_out.append(name)
                found[0]["note"] = f"{_NOT_CONVERGED} within the budget: {part.call}"
            rows += found
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
    table = pl.DataFrame(filled, schema=columns)
    return Profile(table, parts, float(budget), spent, tuple(left_out))


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


_NOT_CONVERGED = "not converged"


@dataclass(frozen=True)
class _Part:
    """A measurement.

    Attributes:
        quantity: that is missing where it cannot be taken.
        least: gradients without which it is not worth its start.
        measured: with so many gradients at most.
        cost: in gradients, of what it gave; and `least` for what does not say.
        read: the rows that it gives.
        call: what gives it without a budget.
        failed: what it has cost, about, where it turns out to be impossible.
    """

    quantity: str
    least: Callable[[Objective], float]
    measured: Callable[[Objective, float], Any]
    cost: Callable[[Any, float], float]
    read: Callable[[Any], list[dict[str, Any]]]
    call: str
    failed: float = 1.0


def _decompositions(objective: Objective) -> float:
    """The cost of all spectra, in gradients."""
    matrices = [p.flatten(1).shape for p in objective.model.parameters() if p.ndim > 1]
    operations = sum(rows * cols * min(rows, cols) for rows, cols in matrices)
    a_gradient = _GRADIENT * objective.num_params * objective.num_samples
    return _DECOMPOSITION * operations / max(1, a_gradient)


def _scalings(objective: Objective) -> float:
    """The cost of the degree of homogeneity, which scales every layer, and of the margins."""
    return _FORWARD * (8 + len(objective.param_names))


def _products_within(room: float, share: float) -> int:
    """How many products there is room for; those of the call itself where there is no limit."""
    return int(min(room * share / _PRODUCT, 2000))


_PARTS: Mapping[str, _Part] = {
    "ranks": _Part(
        "mean stable rank",
        _decompositions,
        lambda objective, room: ranks(objective.model),
        lambda found, least: least,
        _rank_rows,
        "undertow.ranks(model)",
    ),
    "gradient_noise": _Part(
        "noise scale",
        lambda objective: 4.0,
        lambda objective, room: gradient_noise(objective),
        lambda found, least: found.passes,
        _noise_rows,
        "undertow.gradient_noise(objective)",
    ),
    "margins": _Part(
        "normalised margin",
        _scalings,
        lambda objective, room: margins(objective),
        lambda found, least: least,
        _margin_rows,
        "undertow.margins(objective)",
    ),
    "sharpness": _Part(
        "sharpness",
        lambda objective: _SHARPNESS_LEAST * _PRODUCT / _SHARPNESS_SHARE,
        lambda objective, room: sharpness(
            objective, max_products=_products_within(room, _SHARPNESS_SHARE)
        ),
        lambda found, least: found.products * _PRODUCT,
        _sharpness_rows,
        "undertow.sharpness(objective)",
    ),
    "hessian_trace": _Part(
        "Hessian trace",
        lambda objective: _TRACE_LEAST * _PRODUCT,
        lambda objective, room: hessian_trace(objective, max_products=_products_within(room, 1)),
        lambda found, least: found.products * _PRODUCT,
        _trace_rows,
        "undertow.hessian_trace(objective)",
    ),
}


def _products(found: Any) -> dict[str, str]:
    note = "" if found.converged else _NOT_CONVERGED
    return {"cost": _count(found.products, "product", "products"), "note": note}


def _count(number: float, one: str, many: str) -> str:
    return f"{number:.6g} {one if number == 1 else many}"


def _why_not(value: float) -> str:
    return "the network is not homogeneous" if math.isnan(value) else ""
