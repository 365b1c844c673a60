"""What is done with the average of a round: taken as it is, or as a gradient of an outer optimizer.

With x the parameters at the round's start and x_k worker k's at its end, the outer gradient is
x - mean_k x_k. SGD with rate 1 on it is plain averaging; Nesterov momentum is DiLoCo (2311.08105).
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from torch import Tensor


@dataclass(frozen=True)
class Outer:
    """An outer optimizer, SGD with momentum on the averaged difference.

    Attributes:
        lr: outer learning rate; 1 without momentum is plain averaging.
        momentum: outer momentum, in PyTorch's form: v <- momentum v + g.
        nesterov: step along g + momentum v in place of v.

    Raises:
        ValueError: lr is not above 0, momentum is not in [0, 1), or nesterov without momentum.
    """

    lr: float = 1.0
    momentum: float = 0.0
    nesterov: bool = False

    def __post_init__(self) -> None:
        if not (math.isfinite(self.lr) and self.lr > 0):
            raise ValueError(f"lr of Outer must be a finite number above 0, got {self.lr}")
        if not 0 <= self.momentum < 1:
            raise ValueError(f"momentum of Outer must lie in [0, 1), got {self.momentum}")
        if self.nesterov and not self.momentum:
            raise ValueError("nesterov needs momentum above 0, such as Outer(0.7, 0.9, True)")

    @property
    def plain(self) -> bool:
        """Whether it leaves the average as it is, and so needs neither the start nor a state."""
        return self.lr == 1 and self.momentum == 0

    def step_(self, start: Tensor, average: Tensor, velocity: Tensor | None) -> None:
        """Write what the next round starts from over `average`; `velocity` is updated in place.

        Args:
            start: the parameters at the round's start, of any shape.
            average: their mean over the workers at its end.
            velocity: as in PyTorch's momentum, zero before the first round; None without momentum.
        """
        if self.plain:
            return
        descent = start - average
        if velocity is not None:
            velocity.mul_(self.momentum).add_(descent)
            descent = descent.add_(velocity, alpha=self.momentum) if self.nesterov else velocity
        average.copy_(start).sub_(descent, alpha=self.lr)
