"""Completeness and soundness (2211.02912): what a map keeps of a label, and what it makes up.

With f(x, a) the probability of a label and g(x, a) the mean over pixel budgets of what the best
pixels of its map keep of it, and a floor e below which probabilities are not told apart,

    completeness(x, a) = min(max(e, g) / f, 1)        soundness(x, a) = min(max(e, f) / g, 1)
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, Literal, get_args

import torch
from jaxtyping import Float64, Int64
from torch import Tensor

if TYPE_CHECKING:
    from undertow import lab

Unit = Literal["image", "network"]
Quantity = Literal["completeness", "soundness"]
_WORDS = {"own": "at the predicted label", "others": "at other labels", "worst": "at the worst"}


@dataclass(frozen=True, eq=False)
class Score:
    """Completeness or soundness of attributions.

    Attributes:
        quantity: which.
        own: at the label that the network predicts, the mean over inputs and networks, with its
            95% interval over images or networks; NaN where no label is that.
        others: the mean over the other labels; NaN where there are none.
        worst: at the label of each input where it is least.
        ratios: of each network, input and label.
        labels: that they are of.
        predicted: by each network.
        floor: e.
        unit: what the intervals are over; of `image`, for these networks.
    """

    quantity: Quantity
    own: lab.Effect
    others: lab.Effect
    worst: lab.Effect
    ratios: Float64[Tensor, "networks inputs labels"] = field(repr=False)
    labels: Int64[Tensor, "inputs labels"] = field(repr=False)
    predicted: Int64[Tensor, "networks inputs"] = field(repr=False)
    floor: float
    unit: Unit

    def per_network(self, which: Literal["own", "others", "worst"]) -> list[float]:
        """The mean over inputs, for each network."""
        values = averages(self.ratios, self.labels, self.predicted)[which]
        return [float(row[~row.isnan()].mean()) for row in values]

    def as_dict(self) -> dict[str, Any]:
        """All values, by name."""
        return dict(vars(self))

    def __repr__(self) -> str:
        networks, inputs, labels = self.ratios.shape
        said = [
            f"{found.value:.3g} [{found.interval[0]:.3g}, {found.interval[1]:.3g}] {_WORDS[name]}"
            for name in ("own", "others", "worst")
            if not math.isnan((found := getattr(self, name)).value)
        ]
        several = f", {networks} networks" * (networks > 1)
        return (
            f"{self.quantity.capitalize()}: {', '.join(said)}; {inputs} inputs x {labels} "
            f"labels{several}, floor {self.floor:g}, 95% over {self.unit}s."
        )


def score(
    quantity: Quantity,
    areas: Float64[Tensor, "networks inputs labels"],
    whole: Float64[Tensor, "networks inputs labels"],
    labels: Int64[Tensor, "inputs labels"],
    predicted: Int64[Tensor, "networks inputs"],
    *,
    floor: float,
    unit: Unit,
) -> Score:
    """From g and f."""
    above, below = (areas, whole) if quantity == "completeness" else (whole, areas)
    # A probability that has underflowed is below any floor.
    tiny = torch.finfo(torch.float64).tiny
    ratios = (above.clamp_min(floor) / below.clamp_min(tiny)).clamp_max(1)
    means = averages(ratios, labels, predicted)
    found = {name: _within_one(effect(values, unit)) for name, values in means.items()}
    return Score(
        quantity, **found, ratios=ratios, labels=labels, predicted=predicted, floor=floor, unit=unit
    )


def averages(
    ratios: Float64[Tensor, "networks inputs labels"],
    labels: Int64[Tensor, "inputs labels"],
    predicted: Int64[Tensor, "networks inputs"],
) -> dict[str, Float64[Tensor, "networks inputs"]]:
    """Of each input: at the predicted label, over the others, and the least; NaN of none."""
    own = labels == predicted[..., None]
    return {
        "own": torch.where(own, ratios, torch.nan).nanmean(-1),
        "others": torch.where(own, torch.nan, ratios).nanmean(-1),
        "worst": ratios.amin(-1),
    }


def effect(values: Float64[Tensor, "networks inputs"], unit: Unit) -> lab.Effect:
    """The mean with its interval over networks, or over inputs."""
    from undertow import lab

    means = values.nanmean(1 if unit == "network" else 0)
    kept = means[~means.isnan()].cpu().numpy()
    if not len(kept):
        return lab.unknown(0, "no such label was scored")
    return lab.bootstrap_interval(kept)


def _within_one(found: lab.Effect) -> lab.Effect:
    """No mean of ratios of at most one lies above it."""
    low, high = found.interval
    return replace(found, interval=(max(low, 0.0), min(high, 1.0)))


def check_unit(unit: str, networks: Sequence[object]) -> None:
    """Refuse an interval that cannot be.

    Raises:
        ValueError: an unknown unit, or networks of which there is one.
    """
    if unit not in get_args(Unit):
        raise ValueError(f"unit must be {' or '.join(get_args(Unit))}, got {unit!r}")
    if unit == "network" and len(networks) < 2:
        raise ValueError("unit='network' needs at least two networks; give them in a list")
