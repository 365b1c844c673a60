"""The scaling rules beside each other, and what each choice makes of averages, in a document.

A terminal shows a line a rule; sources and ranges stand on the page, and on request.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from undertow import lab, predict

_CHOSEN = " *"
_BETAS = {
    "half-life": "half-life, beta^k",
    "sde": "sde, 1 - k (1 - beta)",
    "keep": "keep",
}


def rule_sections(found: predict.Rescaled, label: str, *, whole: bool) -> Iterator[lab.Section]:
    """The rules' rates and weight decays, how far they are apart, and the averages.

    Args:
        found: of one parameter group.
        label: its own, where there are several.
        whole: whether a terminal shows sources and ranges too.
    """
    rules = found.alternatives
    decays = any(one.weight_decay for one in rules)
    columns: dict[str, list[Any]] = {
        "rule": [one.rule.name + _CHOSEN * one.chosen for one in rules],
        "lr": [_value(one.lr) for one in rules],
    }
    if decays:
        columns["weight decay"] = [_value(one.weight_decay) for one in rules]
    rates = list(columns)[1:]
    columns |= {
        "equation": [one.equation for one in rules],
        "keeps": [f"keeps {one.rule.keeps}" for one in rules],
        "holds for": [f"for {one.rule.range}" for one in rules],
        "source": [f"arXiv {one.rule.source}" for one in rules],
    }
    terminal: list[str | tuple[str, ...]] = ["rule", *rates, "equation"]
    if whole:
        columns["values"] = [
            ", ".join(f"{name} {columns[name][row]}" for name in rates if columns[name][row])
            for row in range(len(rules))
        ]
        terminal = ["rule", ("equation", "values", "keeps", "holds for", "source")]
    waits = [f"{one.rule.name} waits for {one.needs}" for one in rules if one.needs]
    signs = ["k: the new batch over the old. N: the noise scale"]
    if any("s' / s" in one.equation for one in rules):
        signs.append("s: the noise that averages leave in an update")
    note = ". ".join([f"{_CHOSEN.strip()} followed above", *waits, *signs]) + "."
    said = (found.disagreement,) if found.disagreement else ()
    table = lab.Table(columns, note, terminal=terminal)
    of_group = f", of {label}" if label else ""
    yield lab.Section(f"The rules side by side{of_group}", (table, *said))
    if found.averages:
        yield lab.Section("What the averages become, by --averages", (_averages(found),))


def rules_data(found: predict.Rescaled) -> dict[str, Any]:
    """The same as JSON can hold it."""
    return {
        "rules": [
            {
                "rule": one.rule.name,
                "chosen": one.chosen,
                "lr": one.lr,
                "weight_decay": one.weight_decay,
                "equation": one.equation,
                "keeps": one.rule.keeps,
                "source": one.rule.source,
                "range": one.rule.range,
                "needs": one.needs or None,
            }
            for one in found.alternatives
        ],
        "disagreement": found.disagreement or None,
        "betas": found.betas,
        "averages": {name: dict(own) for name, own in (found.averages or {}).items()},
    }


def _averages(found: predict.Rescaled) -> lab.Table:
    averages = found.averages or {}
    return lab.Table(
        {
            "name": list(averages),
            **{
                label + _CHOSEN * (mode == found.betas): [
                    "has none at this k" if own[mode] is None else _shown(own[mode])
                    for own in averages.values()
                ]
                for mode, label in _BETAS.items()
            },
        }
    )


def _value(value: float | None) -> str:
    return "" if value is None else _shown(value)


def _shown(value: Any) -> str:
    if isinstance(value, tuple):
        return f"({', '.join(_shown(one) for one in value)})"
    return f"{value:.4g}"
