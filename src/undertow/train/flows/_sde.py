"""The SDE of SGD: dX = -grad L(X) dt + (lr C(X))^(1/2) dW, step k at time k lr.

C is the covariance of a step's gradient, Sigma / batch_size (2102.12470, equation 2).
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor

from undertow.objective import Objective
from undertow.train.flows._noise import NoisyGradient, drive
from undertow.train.flows._potential import increasing
from undertow.train.flows._stochastic import (
    Normals,
    State,
    StochasticFlow,
    check_generator,
    solve,
    substep,
)


def sgd_sde(
    problem: Objective | NoisyGradient,
    time: float | Sequence[float],
    *,
    lr: float,
    generator: torch.Generator,
    batch_size: int | None = None,
    start: Float[Tensor, "*replicas params"] | None = None,
    replicas: int | None = None,
    weight_decay: float = 0.0,
    substeps: int = 8,
) -> StochasticFlow:
    """Sample paths of the SDE that approximates SGD, in float64, all replicas at once.

    dX = -(grad L(X) + weight_decay X) dt + (lr C(X))^(1/2) dW, in Ito's sense. One step of SGD
    takes time lr; its moments at time k lr are those of SGD after k steps up to an error O(lr).
    With `substeps=1` the paths are those of SGD with Gaussian noise itself.

    Args:
        problem: an objective, evaluated in float64 in eval mode, its module left as it is (its
            data are held in memory); or a `NoisyGradient`.
        time: the end; or the increasing times at which to keep the states.
        lr: learning rate.
        generator: where the normal numbers come from; the paths are the same for the same
            arguments.
        batch_size: of an objective: samples, drawn with replacement, in a batch.
        start: X(0), for each replica or for all; an objective's own parameters by default.
        replicas: how many, where `start` is for all.
        weight_decay: PyTorch's coefficient, twice the lambda of the papers.
        substeps: Euler-Maruyama steps in the time of one step of SGD; a little more where the
            times asked for are no multiples.

    Raises:
        TypeError: if `problem`, `start` or `generator` is of another kind.
        ValueError: if an argument is out of its range, shapes do not fit, or the gradient or the
            noise is not finite at the start; and as `Objective`.
    """
    times = increasing("time", time)
    longest = substep(above_zero("lr", lr), substeps)
    if not (math.isfinite(weight_decay) and weight_decay >= 0):
        raise ValueError(f"weight_decay must be a finite number >= 0, got {weight_decay!r}")
    check_generator(generator)
    source, theta = drive(problem, start, replicas, batch_size)

    def step(state: State, noise: Tensor, clock: float, length: float) -> State:
        keep, spread = 1 - weight_decay * length, math.sqrt(lr * length)
        return [source.advance(state[0], noise, keep=keep, drift=length, spread=spread)]

    normals = Normals(source.draws, source.shaped, generator)
    return solve(step, [theta], times, longest, normals, equation="SDE of SGD")


def above_zero(name: str, value: float) -> float:
    """`value`, a finite number above 0."""
    if not (math.isfinite(value) and value > 0):
        raise ValueError(f"{name} must be a finite number above 0, got {value!r}")
    return float(value)
