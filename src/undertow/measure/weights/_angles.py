"""By how much steps turn weights, layer by layer, beside what their equilibrium says (2305.17212).

Of weights under normalisation the direction is all that matters, and the turn of a step is the rate
at which they learn, whatever lr and norm are.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import torch
from torch import nn

from undertow.measure.weights._displacement import as_they_lie
from undertow.measure.weights._weights import Include


@dataclass(frozen=True)
class AngularUpdate:
    """The root mean square angle between the weights of successive snapshots.

    Attributes:
        angle: in radians, over all layers and pairs of snapshots.
        per_layer: the same of each weight matrix by itself.
        stderr: of `angle`, over the pairs; None of one pair.
        pairs: how many there are.
    """

    angle: float
    per_layer: Mapping[str, float]
    stderr: float | None
    pairs: int

    def as_dict(self) -> dict[str, Any]:
        """All values, by name."""
        return vars(self) | {"per_layer": dict(self.per_layer)}

    def __repr__(self) -> str:
        low, high = min(self.per_layer.values()), max(self.per_layer.values())
        error = "" if self.stderr is None else f" +- {self.stderr:.2g}"
        return (
            f"AngularUpdate: {self.angle:.4g}{error} rad from one snapshot to the next, {low:.4g} "
            f"to {high:.4g} over {len(self.per_layer)} layers and {self.pairs} pairs."
        )


def angular_update(
    *snapshots: nn.Module | Mapping[str, Any], include: Include = None
) -> AngularUpdate:
    """How far weights turn from each snapshot to the next.

    arccos of <W, W'> / (||W|| ||W'||), in root mean square as 1 - cos is what the second moments of
    an equilibrium tell: of snapshots one step apart it is what `predict.equilibrium` calls
    `angular_update`, for layers that are scale-invariant and at rest. Of snapshots k steps apart it
    is not k times as much: independent steps add in squares.

    Args:
        snapshots: at least two of the network or its state dict, in order; copies where it is
            trained in place.
        include: names of the matrices to count, or a function of the name; by default all. Leave
            out what no norm follows, such as the last layer, and what is frozen.

    Raises:
        TypeError: something is neither a module nor a mapping.
        ValueError: fewer than two snapshots, two in a row that are one memory, a layer whose
            weights are all zero or not finite, or matrices of other names or shapes in a later one.
    """
    if len(snapshots) < 2:
        raise ValueError(f"snapshots must be at least two, got {len(snapshots)}")
    found = [as_they_lie(own, include) for own in snapshots]
    memory = [{name: own.data_ptr() for name, own in weights.items()} for weights in found]
    for number, (old, new) in enumerate(pairwise(memory)):
        if old == new:
            raise ValueError(
                f"snapshots {number} and {number + 1} must be copies, but they are one memory, in "
                "which training leaves the last weights only; take copy.deepcopy of each"
            )
    for number, own in enumerate(found):
        for name, weights in found[0].items():
            if name not in own or own[name].shape != weights.shape:
                raise ValueError(
                    f"snapshot {number} must hold {name} of shape {tuple(weights.shape)}, as the "
                    "first one does"
                )
            own[name] = own[name].double()
            norm = float(own[name].norm())
            if not (math.isfinite(norm) and norm > 0):
                raise ValueError(
                    f"{name} of snapshot {number} has norm {norm:.4g}, and so no direction"
                )
    # 2 (1 - cos) = ||U - U'||^2: the difference keeps the digits of a small angle.
    squares = torch.tensor(
        [
            [_unit(new[name]).sub_(_unit(old[name])).square_().sum() for name in found[0]]
            for old, new in pairwise(found)
        ],
        dtype=torch.float64,
    )
    angles = [_angle(float(own)) for own in squares.mean(0)]
    each, pairs = squares.mean(1), len(squares)
    overall = _angle(float(each.mean()))
    stderr = None
    if pairs > 1:
        # Of a mean of squares, to its root.
        stderr = float(each.std() / pairs**0.5) / (2 * overall) if overall else 0.0
    return AngularUpdate(overall, dict(zip(found[0], angles, strict=True)), stderr, pairs)


def _unit(weights: torch.Tensor) -> torch.Tensor:
    return weights / weights.norm()


def _angle(square: float) -> float:
    """Between unit vectors, from the square of their distance."""
    return 2 * math.asin(min(math.sqrt(square) / 2, 1.0))
