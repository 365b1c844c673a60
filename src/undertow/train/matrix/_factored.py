"""Gradient descent on the factors of a matrix, many runs as one batched program."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from functools import reduce
from itertools import accumulate, pairwise
from typing import overload

import torch
from jaxtyping import Float, Float64
from torch import Tensor

from undertow.objective import whole_number
from undertow.train.matrix._matrix_losses import MatrixLoss

Observe = Callable[[int, Tensor], bool | None]


@overload
def factored_descent(
    loss: MatrixLoss,
    start: Float[Tensor, "*runs dim rank"],
    *,
    lr: float,
    steps: int,
    observe: Observe | None = None,
) -> Float64[Tensor, "*runs dim rank"]: ...


@overload
def factored_descent(
    loss: MatrixLoss,
    start: Sequence[Float[Tensor, "*runs _ _"]],
    *,
    lr: float,
    steps: int,
    observe: Observe | None = None,
) -> list[Float64[Tensor, "*runs _ _"]]: ...


def factored_descent(
    loss: MatrixLoss,
    start: Float[Tensor, "*runs dim rank"] | Sequence[Float[Tensor, "*runs _ _"]],
    *,
    lr: float,
    steps: int,
    observe: Observe | None = None,
) -> Tensor | list[Tensor]:
    """Gradient descent on 1/2 f(U U^T), or on f(W_1 W_2 ... W_L) over the factors, in float64.

    The former is U <- U - lr sym(grad f(U U^T)) U: the same flow in the limit of small steps that
    `greedy_low_rank(..., symmetric=True)` follows; from a small start it goes through the same
    phases. Runs share nothing but the program.

    Args:
        loss: f, from W `[*runs, rows, cols]` to `[*runs]`; each run may have its own.
        start: U, `[*runs, dim, rank]`; or the factors, from the left on, of the same runs.
        lr: the step size. For f of unit curvature, lr times the largest eigenvalue of the solution
            must stay below 1 to come to rest there, and below 1 / 2 not to overshoot; of L factors,
            L / 2 times its largest singular value to the power 2 - 2 / L takes its place.
        steps: how many, at most.
        observe: called before each step and after the last with how many steps were taken and
            W `[*runs, rows, cols]`; returns True to stop there.

    Returns:
        U, or the list of the factors.

    Raises:
        ValueError: if an argument is out of range, or factors cannot be multiplied.
        FloatingPointError: if a run diverged.
    """
    if not (math.isfinite(lr) and lr > 0):
        raise ValueError(f"lr must be a finite number above 0, got {lr}")
    whole_number("steps", steps, least=0)
    symmetric = isinstance(start, Tensor)
    factors = _checked([start] if isinstance(start, Tensor) else list(start))
    for step in range(steps + 1):
        matrix = factors[0] @ factors[0].mT if symmetric else reduce(torch.matmul, factors)
        if (observe is not None and observe(step, matrix)) or step == steps:
            break
        variable = matrix.detach().requires_grad_()
        (gradient,) = torch.autograd.grad(loss(variable).sum(), variable)
        factors = _step(factors, gradient, lr, symmetric)
    if not all(bool(torch.isfinite(factor).all()) for factor in factors):
        raise FloatingPointError(f"descent diverged within {step} steps at lr {lr}; lower lr")
    return factors[0] if symmetric else factors


def _checked(start: list[Tensor]) -> list[Tensor]:
    """The factors in float64."""
    shapes = [tuple(factor.shape) for factor in start]
    deep = bool(start) and all(len(shape) >= 2 for shape in shapes)
    fit = deep and all(a[-1] == b[-2] and a[:-2] == b[:-2] for a, b in pairwise(shapes))
    if not fit or not all(bool(torch.isfinite(factor).all()) for factor in start):
        raise ValueError(
            "start must be finite factors [*runs, dim, rank] that can be multiplied, got shapes "
            f"{shapes}"
        )
    return [factor.detach().double().clone() for factor in start]


def _step(factors: list[Tensor], gradient: Tensor, lr: float, symmetric: bool) -> list[Tensor]:
    """All factors moved at once, each by A^T G B^T, A and B the products to its left and right."""
    if symmetric:
        (factor,) = factors
        return [factor - (lr / 2) * ((gradient + gradient.mT) @ factor)]
    moved, left = [], gradient
    rights = list(accumulate(factors[:0:-1], lambda product, factor: factor @ product))
    for factor, right in zip(factors, [*reversed(rights), None], strict=True):
        moved.append(factor - lr * (left if right is None else left @ right.mT))
        left = factor.mT @ left
    return moved


def largest_stable_lr(
    loss: MatrixLoss, solution: Float[Tensor, "dim rank"] | Sequence[Float[Tensor, "_ _"]]
) -> float:
    """The learning rate up to which `factored_descent` does not leave a solution.

    It is 2 over the largest eigenvalue of the Hessian over U or all factors there, which is
    computed as a whole.

    Args:
        loss: f, from W `[rows, cols]` in float64 to a scalar tensor, differentiable twice by
            `torch.func`.
        solution: U, or the factors, of one run that is at rest.

    Raises:
        ValueError: if factors cannot be multiplied, or no direction curves upwards.
    """
    symmetric = isinstance(solution, Tensor)
    factors = _checked([solution] if isinstance(solution, Tensor) else list(solution))
    sizes = [factor.numel() for factor in factors]

    def energy(flat: Tensor) -> Tensor:
        parts = zip(flat.split(sizes), factors, strict=True)
        found = [part.view(factor.shape) for part, factor in parts]
        if symmetric:
            return loss(found[0] @ found[0].mT) / 2
        return loss(reduce(torch.matmul, found))

    hessian = torch.func.jacrev(torch.func.grad(energy))(
        torch.cat([factor.flatten() for factor in factors])
    )
    top = float(torch.linalg.eigvalsh((hessian + hessian.mT) / 2)[-1])
    if not top > 0:
        raise ValueError(f"solution must be curved upwards, got a largest eigenvalue of {top:g}")
    return 2 / top
