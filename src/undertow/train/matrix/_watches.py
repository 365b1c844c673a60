"""What to keep while `factored_descent` goes on: each is an `observe` of it."""

from __future__ import annotations

import math

import torch
from jaxtyping import Float, Float64
from torch import Tensor

from undertow.objective import whole_number


class ClosestApproach:
    """How near every run comes to some matrices, in the Frobenius norm, and when.

    Attributes:
        closest: `[*runs, targets]`, the least distance so far.
        steps: `[*runs, targets]`, after how many steps that was.
    """

    closest: Float64[Tensor, "*runs targets"]
    steps: Float64[Tensor, "*runs targets"]

    def __init__(self, targets: Float[Tensor, "*runs targets dim dim"], every: int = 25) -> None:
        """Watch for `targets`, whose leading axes are broadcast with the runs'.

        `every` is the number of steps between the points of `curve`, at least 1.
        """
        self._targets = targets.flatten(-2)
        self._every = whole_number("every", every, least=1)
        self._curve: list[Tensor] = []

    def __call__(self, step: int, matrices: Float[Tensor, "*runs dim dim"]) -> None:
        distances = (matrices.flatten(-2)[..., None, :] - self._targets).norm(dim=-1)
        if not self._curve:
            self.closest = torch.full_like(distances, math.inf)
            self.steps = torch.zeros_like(distances)
        self.steps[distances < self.closest] = float(step)
        torch.minimum(self.closest, distances, out=self.closest)
        if not self._curve or step % self._every == 0:
            self._curve.append(distances)

    @property
    def curve(self) -> Float64[Tensor, "*runs targets points"]:
        """The distances from the first step on, every few."""
        return torch.stack(self._curve, -1)


class EigenvaluesLearned:
    """When the largest, the second, ... eigenvalue of every run first exceeds its level.

    Attributes:
        steps: `[*runs, levels]`, after how many steps; NaN where it has not.
    """

    steps: Float64[Tensor, "*runs levels"]

    def __init__(self, levels: Float[Tensor, "*runs levels"], every: int = 1) -> None:
        """Watch for `levels`, broadcast with the runs', at every few steps alone."""
        self._levels, self._begun = levels, False
        self._every = whole_number("every", every, least=1)

    def __call__(self, step: int, matrices: Float[Tensor, "*runs dim dim"]) -> None:
        if step % self._every and self._begun:
            return
        largest = torch.linalg.eigvalsh(matrices).flip(-1)[..., : self._levels.shape[-1]]
        if not self._begun:
            self.steps = torch.full_like(largest, math.nan)
            self._begun = True
        self.steps[(largest > self._levels) & self.steps.isnan()] = float(step)
