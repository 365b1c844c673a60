"""How far an input is from where the network's decision changes: between a bound and an attack.

The robustness of arXiv 1906.05890, section 5: from below by the affine map's region, from above by
the nearest point that an attack finds (as DeepFool, arXiv 1511.04599, with a search).
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from undertow.measure._kinds import check_model
from undertow.measure.function._regions import activation_region, boundary_distance
from undertow.objective import StandIn, evaluating, whole_number


@dataclass(frozen=True, eq=False)
class DecisionDistance:
    """Euclidean distance to the decision boundary, of each input.

    Attributes:
        upper: to the nearest point found at which another class scores as high; 0 where the label
            does not score highest, infinite where no such point was found.
        lower: no point within it is decided otherwise: the smaller of the distance to the boundary
            of the affine map's region and, within it, of that map's decision. 0 likewise.
        exact: whether the decision changes within the affine region, so that both are the distance.
    """

    upper: Float[Tensor, " batch"]
    lower: Float[Tensor, " batch"]
    exact: Tensor

    def as_dict(self) -> dict[str, Any]:
        """Every number by its name."""
        return {name: value.tolist() for name, value in self.__dict__.items()}

    def __repr__(self) -> str:
        right = self.upper > 0
        middle = float(self.upper[right].median()) if right.any() else math.nan
        return (
            f"Decision distance of {len(self.upper)} inputs, {int((~right).sum())} of them decided "
            f"wrongly: of the others at most {middle:.4g} in the median; exact for "
            f"{int(self.exact.sum())}."
        )


def decision_distance(
    model: nn.Module,
    x: Float[Tensor, "batch ..."],
    labels: Int[Tensor, " batch"],
    *,
    steps: int = 30,
) -> DecisionDistance:
    """The distance of inputs to the nearest one that another class wins, from below and above.

    A piecewise linear network is affine around x: where the nearest decision boundary of that map
    lies within its region, it is the distance, exactly. Elsewhere the attack steps to the nearest
    boundary of the map at the point it has reached, goes back towards x as far as the decision
    stays wrong, and steps again from there, keeping the nearest point of all.

    Args:
        model: as in `activation_region`; its outputs are scores `[batch, classes]`.
        x: inputs, in the type of the parameters; float64 for distances near rounding.
        labels: from 0 to one less than there are classes.
        steps: of the attack.

    Raises:
        ValueError, TypeError: as `activation_region`, or labels are not one whole number an input.
    """
    check_model(model)
    whole_number("steps", steps)
    if not isinstance(labels, Tensor) or labels.shape != x.shape[:1] or labels.is_floating_point():
        raise ValueError(f"labels must be one whole number for each of the {len(x)} inputs")
    region = activation_region(model, x)
    reach = boundary_distance(model, x).distance
    nearest = _linear(region(x), region.matrix, labels)[0]
    stand_in = StandIn(model)
    with evaluating(model):
        right = _wins(stand_in, x, labels)
        upper = _attack(stand_in, x, labels, steps)
    exact = right & (nearest <= reach)
    zero = torch.zeros_like(upper)
    lower = torch.where(right, torch.minimum(reach, nearest), zero)
    upper = torch.where(right, torch.where(exact, nearest, upper), zero)
    return DecisionDistance(upper, lower, exact)


def _linear(scores: Tensor, matrix: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
    """The distance to the nearest decision boundary of an affine map, and the step there."""
    rows = torch.arange(len(labels), device=labels.device)
    gaps = scores[rows, labels][:, None] - scores
    slopes = matrix - matrix[rows, labels][:, None]
    lengths = slopes.norm(dim=2)
    away = torch.where(lengths > 0, gaps.clamp(min=0) / lengths, math.inf)
    away[rows, labels] = math.inf
    distance, other = away.min(1)
    chosen = slopes[rows, other]
    scale = torch.where(distance.isfinite(), gaps[rows, other] / lengths[rows, other].square(), 0.0)
    return distance, scale[:, None] * chosen


def _attack(model: StandIn, x: Tensor, labels: Tensor, steps: int) -> Tensor:
    best = x.new_full((len(x),), math.inf)
    at = x.detach().clone()
    for number in range(steps):
        with torch.enable_grad():
            inputs = at.clone().requires_grad_()
            scores = model.run(model.own(), (inputs,))
            eye = torch.eye(scores.shape[1], dtype=x.dtype, device=x.device)
            wanted = eye[:, None].expand(-1, len(x), -1)
            (jacobian,) = torch.autograd.grad(scores, inputs, wanted, is_grads_batched=True)
        with torch.no_grad():
            matrix = jacobian.flatten(2).transpose(0, 1)
            # To the nearest point of the map's boundary from x itself, not from where it was taken.
            offset = (matrix @ (x - at).flatten(1)[..., None])[..., 0]
            _, step = _linear(scores.detach() + offset, matrix, labels)
            # Farther where nothing was found yet: the map bends away.
            beyond = torch.where(best.isinf(), 1.02 + 0.1 * number, 1.02)
            goal = x + _like(beyond, x) * step.view_as(x)
            crossed = ~_wins(model, goal, labels)
            found = _nearest_on_the_way(model, x, goal, labels)
            length = (found - x).flatten(1).norm(dim=1)
            best = torch.where(crossed & (length < best), length, best)
            at = torch.where(_like(crossed, x), found, (at + goal) / 2)
    return best


def _nearest_on_the_way(model: StandIn, x: Tensor, goal: Tensor, labels: Tensor) -> Tensor:
    """Between x and a point that is decided wrongly, one near where the decision changes."""
    low, high = torch.zeros(len(x)).to(x), torch.ones(len(x)).to(x)
    for _ in range(25):
        middle = (low + high) / 2
        wins = _wins(model, x + _like(middle, x) * (goal - x), labels)
        low, high = torch.where(wins, middle, low), torch.where(wins, high, middle)
    return x + _like(high, x) * (goal - x)


def _wins(model: StandIn, x: Tensor, labels: Tensor) -> Tensor:
    """Whether the label scores highest."""
    with torch.no_grad():
        scores = model.run(model.own(), (x,))
        own = scores.gather(1, labels[:, None])
        return (own > scores.scatter(1, labels[:, None], -math.inf).amax(1, keepdim=True))[:, 0]


def _like(numbers: Tensor, x: Tensor) -> Tensor:
    return numbers.view(-1, *[1] * (x.ndim - 1))
