"""Euler-Maruyama for many replicas at once, and what it gives.

Normal numbers are drawn a block of steps at a time. A replica that leaves the finite numbers is
recorded and masked; each replica is a row of its own, so the others never see it.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from jaxtyping import Float64
from torch import Tensor

from undertow.objective import whole_number

# Normal numbers drawn at once: few enough to stay in the processor's cache.
_BLOCK = 2**18

State = list[Tensor]
# (state, the step's noise, time before the step, its length) -> state, in place or not.
Step = Callable[[State, Tensor, float, float], State]


@dataclass(frozen=True, eq=False, repr=False)
class StochasticFlow:
    """Sample paths of a stochastic differential equation.

    Attributes:
        times: the times asked for.
        states: theta at these times; NaN for a replica from when it diverged.
        diverged_at: of each replica, the time at which it was no longer finite; infinite for
            those that always were.
        equation: whose paths these are.
        steps: Euler-Maruyama steps; each costs one gradient with its noise.
        mean: of Adam, the mean of gradients m at these times.
        square: of Adam and RMSprop, the mean of squared gradients v at these times.
    """

    times: Float64[Tensor, " times"]
    states: Float64[Tensor, "times replicas params"]
    diverged_at: Float64[Tensor, " replicas"]
    equation: str
    steps: int
    mean: Float64[Tensor, "times replicas params"] | None = None
    square: Float64[Tensor, "times replicas params"] | None = None

    @property
    def converged(self) -> bool:
        """Whether every replica stayed finite."""
        return bool(self.diverged_at.isinf().all())

    def moment(
        self, order: int
    ) -> tuple[Float64[Tensor, "times params"], Float64[Tensor, "times params"]]:
        """The mean of theta^order over the replicas that stayed finite, and its standard error.

        The standard error of a single replica is NaN.
        """
        powers = self.states[:, self.diverged_at.isinf()] ** order
        mean = powers.mean(1)
        if powers.shape[1] < 2:
            return mean, torch.full_like(mean, math.nan)
        return mean, powers.std(1) / math.sqrt(powers.shape[1])

    def __repr__(self) -> str:
        _, replicas, size = self.states.shape
        lost = int(self.diverged_at.isfinite().sum())
        fate = f"{lost} of them DIVERGED" if lost else "all finite"
        return (
            f"{self.equation}: {replicas:,} replicas of {size:,} parameters to time "
            f"{float(self.times[-1]):.6g} in {self.steps:,} Euler-Maruyama steps, {fate}."
        )


def substep(unit: float, substeps: int) -> float:
    """The longest step: a part of the time of one step of the optimizer."""
    return unit / whole_number("substeps", substeps, least=1)


def check_generator(generator: torch.Generator) -> None:
    """Raise TypeError where it is none."""
    if not isinstance(generator, torch.Generator):
        raise TypeError(f"generator must be a torch.Generator, got {generator!r}")


@dataclass(frozen=True, eq=False)
class Normals:
    """Where the noise of a step comes from.

    Attributes:
        draws: standard normal numbers of a replica.
        shaped: normal numbers `[steps, replicas, draws]` -> what a step takes, step by step.
        generator: of the normal numbers.
    """

    draws: int
    shaped: Callable[[Tensor], Tensor]
    generator: torch.Generator

    def block(self, steps: int, like: Tensor) -> Tensor:
        """The noise of so many steps.

        Drawn in float32, which is four times as fast. From a uniform number of 24 bits the variance
        is too small by 6e-7, and no normal number is above 5.8: nothing beside the error of a step.
        """
        normals = torch.randn(
            steps, len(like), self.draws, generator=self.generator, device=self.generator.device
        )
        return self.shaped(normals.to(like.device))


@torch.no_grad()
def solve(
    step: Step,
    state: State,
    times: Float64[np.ndarray, " times"],
    longest: float,
    normals: Normals,
    *,
    equation: str,
    averages: Sequence[Literal["mean", "square"]] = (),
) -> StochasticFlow:
    """Step all replicas from time 0 on.

    Args:
        step: one Euler-Maruyama step.
        state: tensors `[replicas, ...]` at time 0, theta first; they may be overwritten.
        times: at which states are kept.
        longest: no step is longer.
        normals: the noise.
        equation: what to call the paths.
        averages: what the tensors of the state beside theta are.
    """
    first = [part.clone() for part in state]
    diverged_at = torch.full((len(state[0]),), math.inf, dtype=torch.float64)
    diverged_at = diverged_at.to(state[0].device)
    size = max(1, _BLOCK // (len(state[0]) * max(1, normals.draws)))
    kept: list[State] = []
    begin, steps = 0.0, 0
    for end in times.tolist():
        count = math.ceil((end - begin) / longest * (1 - 1e-12))
        for done in range(0, count, size):
            length = (end - begin) / count
            before = [part.clone() for part in state]
            block = normals.block(min(size, count - done), state[0])
            clock = begin + done * length
            for index, noise in enumerate(block):
                state = step(state, noise, clock + index * length, length)
            bad = ~_finite(state)
            if bool(bad.any()):
                fresh = bad & diverged_at.isinf()
                if bool(fresh.any()):  # and not one that has diverged again, unseen
                    diverged_at[fresh] = _when(step, before, block, fresh, clock, length)
                for part, origin in zip(state, first, strict=True):
                    part[bad] = origin[bad]  # go on somewhere harmless, unseen
        steps += count
        begin = end
        masked = [part.clone() for part in state]
        for part in masked:
            part[diverged_at.isfinite()] = math.nan
        kept.append(masked)
    states, *others = (torch.stack(parts) for parts in zip(*kept, strict=True))
    return StochasticFlow(
        times=torch.from_numpy(times),
        states=states,
        diverged_at=diverged_at,
        equation=equation,
        steps=steps,
        **dict(zip(averages, others, strict=True)),
    )


def _finite(state: Sequence[Tensor]) -> Tensor:
    finite = torch.isfinite(state[0]).all(1)
    for part in state[1:]:
        finite &= torch.isfinite(part).all(1)
    return finite


def _when(
    step: Step, before: State, block: Tensor, chosen: Tensor, clock: float, length: float
) -> Float64[Tensor, " chosen"]:
    """When the chosen replicas diverged: their last block once more, looking at every step."""
    state = [part[chosen] for part in before]
    found = torch.full_like(state[0][:, 0], clock + len(block) * length)
    alive = torch.ones_like(found, dtype=torch.bool)
    for index, noise in enumerate(block):
        state = step(state, noise[chosen], clock + index * length, length)
        lost = alive & ~_finite(state)
        found[lost] = clock + (index + 1) * length
        alive &= ~lost
    return found
