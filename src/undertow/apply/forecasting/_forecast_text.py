"""A forecast as text of 80 columns."""

from __future__ import annotations

import math
from statistics import fmean
from typing import TYPE_CHECKING

from undertow.apply._columns import aligned, digits, role, short_names, wrapped

if TYPE_CHECKING:
    from undertow.apply.forecasting._forecast import Forecast, LayerForecast

_ROWS_SHOWN = 24


def forecast_text(found: Forecast) -> str:
    """What `undertow forecast` prints."""
    facts = facts_of(found)
    width = max(map(len, facts))
    lines = [*(f"{name:<{width}}  {value}" for name, value in facts.items()), ""]
    if found.layers:
        lines += [*_layers(found), ""]
    if found.comparison is not None:
        lines += [*wrapped([repr(found.comparison)]), ""]
    lines += wrapped(f"note: {note}" for note in found.notes)
    lines.append("It assumes")
    lines += wrapped((f"- {assumption}" for assumption in found.assumptions), 2)
    return "\n".join(lines)


def facts_of(found: Forecast) -> dict[str, str]:
    """Name and value of each figure that is about the run as a whole."""
    memory = "without end: no weight decay"
    if math.isfinite(found.memory_steps):
        memory = f"{found.memory_steps:,.0f} steps"
        if found.memory_epochs is not None:
            memory += f", {found.memory_epochs:.4g} epochs"
    facts = {
        "decay exponent E": f"{found.decay_exponent:.4g}",
        "left of the initial weights": f"{found.residue:.3g}",
        "memory, 1 / (lr weight_decay)": memory,
    }
    if found.effective_lr is not None:
        facts["effective lr, lr / (1 - momentum)"] = f"{found.effective_lr:.4g}"
    if found.equilibrium is not None:
        facts["normalised layers settle in"] = (
            f"{found.equilibrium.mixing_steps:,.0f} steps "
            f"(norms in {found.equilibrium.relaxation_steps:,.0f})"
        )
        facts["and turn there by"] = f"{found.equilibrium.angular_update:.3g} rad a step"
    periods = found.sync.periods
    facts["Local SGD, quadratic rule"] = (
        f"{len(periods):,} rounds of {periods.min():,} to {periods.max():,} steps"
    )
    facts["which communicates"] = (
        f"{found.sync.share:.1%} (alpha {found.sync_alpha:.3g}, base {found.sync_base})"
    )
    return facts


def _layers(found: Forecast) -> list[str]:
    middle = len(found.steps) // 2
    rows = [[layer] for layer in found.layers]
    if len(rows) > _ROWS_SHOWN:
        kinds: dict[tuple[str, int, int], list[LayerForecast]] = {}
        for layer in found.layers:
            kinds.setdefault((role(layer.name), layer.rows, layer.cols), []).append(layer)
        rows = list(kinds.values())
    names = [role(row[0].name) if len(row) > 1 else row[0].name for row in rows]
    cells = {
        "matrix": [
            name if len(row) == 1 else f"{name} ({len(row)})"
            for name, row in zip(short_names(names), rows, strict=True)
        ],
        "shape": [f"{row[0].rows}x{row[0].cols}" for row in rows],
    }
    for at in (0, middle, len(found.steps) - 1):
        means = [fmean(layer.ranks[at] for layer in row) for row in rows]
        cells[f"at {found.steps[at]}"] = [
            str(round(mean)) if len(row) == 1 else digits(mean)
            for mean, row in zip(means, rows, strict=True)
        ]
    if any(layer.bound is not None for layer in found.layers):
        cells["rank bound"] = [_bound(row[0]) for row in rows]
    lines = [f"Initial directions above {found.threshold:g} of each matrix's norm, by step"]
    lines += aligned(cells)
    if len(rows) < len(found.layers):
        lines.append("(n): means over n matrices whose names differ in their number alone.")
    return lines


def _bound(layer: LayerForecast) -> str:
    if layer.bound is None or layer.bound.vacuous:
        return "says nothing"
    return f"{layer.bound.rank:.4g}"
