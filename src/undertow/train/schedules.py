"""Learning-rate schedules: frozen dataclasses that map step numbers to factors of the peak rate.

A schedule is called with an integer array of step numbers (0 is the first step) and returns the
factor of each. Being frozen dataclasses they can be fields of a trial.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Factors = NDArray[np.float64]
Steps = NDArray[np.int64]


@dataclass(frozen=True)
class Constant:
    """The same learning rate throughout."""

    def __call__(self, steps: Steps) -> Factors:
        """A factor of one for every step."""
        return np.ones(len(steps))


@dataclass(frozen=True)
class StepDecay:
    """Multiply by `factor` at each of the `milestones` (in steps)."""

    milestones: tuple[int, ...]
    factor: float = 0.1

    def __call__(self, steps: Steps) -> Factors:
        """`factor` to the power of the number of milestones reached."""
        reached = np.searchsorted(np.sort(self.milestones), steps, side="right")
        return np.power(self.factor, reached, dtype=np.float64)


@dataclass(frozen=True)
class Cosine:
    """Linear warm-up over `warmup` steps, then half a cosine down to `floor` at step `total`."""

    total: int
    warmup: int = 0
    floor: float = 0.0

    def __post_init__(self) -> None:
        if not 0 <= self.warmup < self.total:
            raise ValueError(
                f"warmup must be at least 0 and below total, got {self.warmup} of {self.total}"
            )

    def __call__(self, steps: Steps) -> Factors:
        """The factor of each step; `floor` from step `total` on."""
        done = np.clip((steps - self.warmup) / (self.total - self.warmup), 0, 1)
        cosine = self.floor + (1 - self.floor) * (1 + np.cos(np.pi * done)) / 2
        return np.where(steps < self.warmup, (steps + 1) / max(self.warmup, 1), cosine)
