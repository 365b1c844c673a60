"""Where the scaling rules end: averages of no steps, a decay of whole weights, steep curvature.

A value beyond the end is an error that names the largest batch, one that comes near it a warning.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from undertow.predict._averages import Betas
from undertow.predict._families import Family
from undertow.predict._rescaled import shown


def check_averages(
    old: Mapping[str, Any],
    averages: Mapping[str, Mapping[str, Any]],
    betas: Betas,
    batches: tuple[int, int],
    family: Family,
) -> None:
    """Raise a ValueError where a choice of `BETAS` has no answer at this batch."""
    for name, moved in averages.items():
        if moved[betas] is not None:
            continue
        value = old[name]
        kept = [value]
        if isinstance(value, tuple):  # the first of a schedule-free pair is no average
            named = zip(("beta1", "beta2"), value, strict=True)
            kept = [beta for own, beta in named if beta and own in family.averages]
        limit = 1 / (1 - min(kept))
        raise ValueError(
            f"to_batch: {name} = {shown(value)} cannot follow a batch {batches[1] / batches[0]:.6g}"
            " times as large, as k (1 - beta) must stay below 1; the largest k is just under "
            f"{limit:.6g}, a total batch of {math.ceil(limit * batches[0] - 1e-9) - 1}; "
            "betas='half-life' has no such end"
        )


def check_decay(old: Mapping[str, Any], new: Mapping[str, Any], batches: tuple[int, int]) -> None:
    """Raise a ValueError where a step would decay the whole of the weights."""
    before = old["lr"] * old.get("weight_decay", 0.0)
    factor = batches[1] / batches[0]
    after = factor * before if new["lr"] is None else new["lr"] * new.get("weight_decay", 0.0)
    if max(before, after) < 1:
        return
    words = (
        f"to_batch: lr x weight_decay would be {after:.4g}, and at 1 a step wipes the weights out"
    )
    if before >= 1:
        words = (
            f"lr x weight_decay is {before:.4g}; at 1 or more a single step wipes the weights out"
        )
    elif math.isclose(after, factor * before):
        limit = 1 / before
        words += (
            f"; the largest k is just under {limit:.6g}, a total batch of "
            f"{math.ceil(limit * batches[0] - 1e-9) - 1}"
        )
    raise ValueError(words)


def few_steps(
    old: Mapping[str, Any],
    averages: Mapping[str, Mapping[str, Any]],
    betas: Betas,
    factor: float,
) -> list[str]:
    """Averages of which little is left: the bound of the equation is near."""
    if betas == "keep" or factor <= 1:
        return []
    found = []
    for name, moved in averages.items():
        value, new = (v if isinstance(v, tuple) else (v,) for v in (old[name], moved[betas]))
        for place, (beta, after) in enumerate(zip(value, new, strict=True)):
            if after != beta and factor * (1 - beta) >= 0.5:
                label = f"{name}[{place}]" if len(value) > 1 else name
                found.append(
                    f"{label} {beta:g} -> {after:.3g} remembers {1 / (1 - after):.1f} steps: near "
                    f"k = {1 / (1 - beta):.3g} there is hardly an average left to keep the path by"
                )
    return found


def curvature_warnings(
    sharpness: float, new: Mapping[str, Any], family: Family, factor: float
) -> list[str]:
    """What new lr x sharpness says; P^-1 grows by sqrt(k), so adaptive steps too grow by k."""
    if family.update == "direction":
        return []
    product = new["lr"] * sharpness
    if family.update == "gradient":
        limit = 2 * (1 + new.get("momentum", 0.0))
    else:
        product *= math.sqrt(factor)
        beta1 = new["betas"][0] if "betas" in new else new.get("beta1", 0.0)
        limit = 2 * (1 + beta1) / (1 - beta1)
    if product >= limit:
        return [
            f"curvature-dominated: lr x sharpness would be {product:.3g}, at or beyond the edge of "
            f"stability at {limit:.3g}; the run will leave the path, or diverge"
        ]
    if product >= limit / 2:
        return [
            f"curvature-dominated: lr x sharpness would be {product:.3g} of at most {limit:.3g}; "
            "steps of that size are not a small step of any equation"
        ]
    return []


_ASSUMPTIONS = (
    "the loss of a batch is the mean over its samples",
    "samples are drawn independently, so that gradient noise has covariance Sigma / batch",
    "lr times sharpness is small enough that steps follow their differential equation",
    "the forward pass does not depend on the batch: batch norm keeps its batch (ghost batches)",
    "the same number of samples is seen",
)
_NOISE_ASSUMPTION = "noise dominates the gradients of a batch (N/G well above 1)"
_AVERAGE_ASSUMPTIONS = (
    "eps is added outside the root, after bias correction, as in PyTorch",
    "steps are counted past the first 1 / (1 - beta) of them, where bias corrections differ",
)


def assumptions(family: Family) -> tuple[str, ...]:
    """What must hold for two runs of an optimizer to agree."""
    if family.update in ("gradient", None):
        return _ASSUMPTIONS
    averaged = _AVERAGE_ASSUMPTIONS if "eps" in family.reads else _AVERAGE_ASSUMPTIONS[1:]
    return (*_ASSUMPTIONS, _NOISE_ASSUMPTION, *averaged)
