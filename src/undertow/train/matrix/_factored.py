"""Gradient descent on the factors of a matrix, many runs as one batched program."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from jaxtyping import Float, Float64
from torch import Tensor

from undertow.objective import whole_number
from undertow.train.matrix._matrix_losses import MatrixLoss

Observe = Callable[[int, Tensor], bool | None]


def factored_descent(
    loss: MatrixLoss,
    start: Float[Tensor, "*runs dim rank"],
    *,
    lr: float,
    steps: int,
    observe: Observe | None = None,
) -> Float64[Tensor, "*runs dim rank"]:
    """Gradient descent on 1/2 f(U U^T): U <- U - lr sym(grad f(U U^T)) U, in float64.

    The same flow in the limit of small steps that `greedy_low_rank(..., symmetric=True)` follows;
    from a small start it goes through the same phases. Runs share nothing but the program.

    Args:
        loss: f, from W `[*runs, dim, dim]` to `[*runs]`; each run may have its own.
        start: U, `[*runs, dim, rank]`.
        lr: the step size. For f of unit curvature, lr times the largest eigenvalue of the solution
            must stay below 1 to come to rest there, and below 1 / 2 not to overshoot.
        steps: how many, at most.
        observe: called before each step and after the last with how many steps were taken and
            W `[*runs, dim, dim]`; returns True to stop there.

    Raises:
        ValueError: if an argument is out of range.
        FloatingPointError: if a run diverged.
    """
    if not (math.isfinite(lr) and lr > 0):
        raise ValueError(f"lr must be a finite number above 0, got {lr}")
    whole_number("steps", steps, least=0)
    if start.ndim < 2 or not bool(torch.isfinite(start).all()):
        raise ValueError(
            f"start must be finite factors [*runs, dim, rank], got shape {tuple(start.shape)}"
        )
    factors = start.detach().double().clone()
    for step in range(steps + 1):
        matrix = (factors @ factors.mT).requires_grad_()
        if (observe is not None and observe(step, matrix.detach())) or step == steps:
            break
        (gradient,) = torch.autograd.grad(loss(matrix).sum(), matrix)
        factors -= (lr / 2) * ((gradient + gradient.mT) @ factors)
    if not bool(torch.isfinite(factors).all()):
        raise FloatingPointError(f"descent diverged within {step} steps at lr {lr}; lower lr")
    return factors
