"""What to keep while `factored_descent` goes on: each is an `observe` of it."""

from __future__ import annotations

import math
from collections.abc import Callable

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


class Crossing:
    """When a function of every run's matrix first reaches a level, between which two steps.

    It ends the descent once every run has.

    Attributes:
        steps: `[*runs]`, after how many steps it had; NaN where it has not.
        before: `[*runs, rows, cols]`, the matrix one step earlier; zero where it has not.
        after: `[*runs, rows, cols]`, the matrix then; likewise.
    """

    steps: Float64[Tensor, "*runs"]
    before: Float64[Tensor, "*runs rows cols"]
    after: Float64[Tensor, "*runs rows cols"]

    def __init__(self, function: Callable[[Tensor], Tensor], level: float) -> None:
        """Watch for `function`, from matrices `[*runs, rows, cols]` to `[*runs]`."""
        self._function, self._level = function, level
        self._last: Tensor | None = None

    def __call__(self, step: int, matrices: Float[Tensor, "*runs rows cols"]) -> bool:
        values = self._function(matrices)
        if self._last is None:
            self._last = torch.zeros_like(matrices)
            self.before, self.after = torch.zeros_like(matrices), torch.zeros_like(matrices)
            self.steps = torch.full_like(values, math.nan)
        now = (values >= self._level) & self.steps.isnan()
        self.before[now], self.after[now], self.steps[now] = (
            self._last[now],
            matrices[now],
            float(step),
        )
        self._last = matrices
        return not bool(self.steps.isnan().any())

    def singular_values(
        self, level: float
    ) -> tuple[Float64[Tensor, "*runs"], Float64[Tensor, "*runs values"]]:
        """Where the largest singular value is at `level`, taken to grow by a factor a step.

        Returns:
            After how many steps, a fraction of one included, and the singular values there, each
            on the geometric line between the two steps. NaN where no level was reached.
        """
        low, high = (torch.linalg.svdvals(matrices).log() for matrices in (self.before, self.after))
        part = (math.log(level) - low[..., 0]) / (high[..., 0] - low[..., 0])
        return self.steps - 1 + part, (low + part[..., None] * (high - low)).exp()
