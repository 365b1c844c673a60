"""Gradient flow followed from near a saddle to the minimum that it comes to rest at.

A stiff solver follows the flow until little of the gradient is left, and regularised Newton steps
finish; they are taken back, and the flow goes on, where they lead anywhere but the nearest minimum.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float64
from torch import Tensor
from torch.func import grad, jacrev

Vector = Float64[np.ndarray, " variables"]

# The flow hands over to Newton when the gradient has come down to these shares of its largest.
_HANDOVERS = (1e-3, 1e-4, 1e-5, 1e-6, 1e-8, 1e-10)
_STATIONARY = 1e-11  # the same share at rest
_NEWTON_STEPS = 30
_NEAR = 0.05  # Newton steps may move the variables by this share of their norm
_CURVATURE = 1e-7  # the least eigenvalue that counts as negative, relative to the largest
_ROWS_AT_ONCE = 128  # of a Hessian


@dataclass(frozen=True)
class Rest:
    """Where a flow came to rest.

    Attributes:
        point: the variables.
        converged: whether the gradient vanishes there and no curvature is negative.
        gradient: its norm there, relative to the largest on the way.
        curvature: the least eigenvalue of the Hessian there, relative to the largest.
        gradients: how many were computed.
        hessians: how many were computed.
    """

    point: Tensor
    converged: bool
    gradient: float
    curvature: float
    gradients: int
    hessians: int


class _Energy:
    """A function of a vector of numpy, its gradient and Hessian, counted."""

    def __init__(self, energy: Callable[[Tensor], Tensor]) -> None:
        self._hessian = jacrev(grad(energy), chunk_size=_ROWS_AT_ONCE)
        self._energy = energy
        self.gradients = self.hessians = 0

    def value(self, point: Vector) -> float:
        return float(self._energy(torch.from_numpy(point)))

    def gradient(self, point: Vector) -> Vector:
        self.gradients += 1
        # Less fixed cost than torch.func.grad, of which these thousands of calls mostly consist.
        variables = torch.from_numpy(point).requires_grad_()
        return torch.autograd.grad(self._energy(variables), variables)[0].numpy()

    def hessian(self, point: Vector) -> Float64[np.ndarray, "variables variables"]:
        self.hessians += 1
        found = self._hessian(torch.from_numpy(point)).detach().numpy()
        return (found + found.T) / 2


def flow_to_rest(
    energy: Callable[[Tensor], Tensor],
    start: Float64[Tensor, " variables"],
    *,
    rtol: float,
    atol: float,
    max_steps: int,
    horizon: float,
    observe: Callable[[float, Tensor], None] | None = None,
) -> Rest:
    """Follow d theta/dt = -grad energy from `start` to a minimum.

    Args:
        energy: of the variables `[variables]`, twice differentiable by `torch.func`.
        start: near a saddle, off its stable directions.
        rtol: relative tolerance of the solver.
        atol: absolute tolerance of the solver.
        max_steps: of the solver; where they are spent, or the solver gives up, the point reached
            is returned as not converged.
        horizon: the longest time to follow.
        observe: called with the time and the variables at every step of the solver.
    """
    from scipy.integrate import LSODA  # loads slowly

    counted = _Energy(energy)
    first = start.detach().double().numpy().copy()
    solver = LSODA(
        lambda _, point: -counted.gradient(point),
        0.0,
        first,
        horizon,
        rtol=rtol,
        atol=atol,
        jac=lambda _, point: -counted.hessian(point),
    )
    begun = largest = float(np.linalg.norm(counted.gradient(first)))
    if observe is not None:
        observe(0.0, torch.from_numpy(first.copy()))
    handovers = list(_HANDOVERS)
    for _ in range(max_steps):
        with warnings.catch_warnings():  # the status says it
            warnings.simplefilter("ignore", UserWarning)
            solver.step()
        point = np.array(solver.y)
        if observe is not None:
            observe(float(solver.t), torch.from_numpy(point))
        size = float(np.linalg.norm(counted.gradient(point)))
        largest = max(largest, size)
        # Near the saddle the gradient is small as well: first it must have grown.
        escaped = largest > 2 * begun or size < handovers[-1] * begun
        if escaped and size <= handovers[0] * largest:
            rest = _newton(counted, point, largest)
            if rest.converged:
                return rest
            handovers = [share for share in handovers if share * largest < size] or handovers[-1:]
            if size <= _HANDOVERS[-1] * largest:
                return rest
        if solver.status != "running":
            break
    return _newton(counted, np.array(solver.y), largest, steps=0)


def _newton(counted: _Energy, start: Vector, largest: float, steps: int = _NEWTON_STEPS) -> Rest:
    """Newton steps regularised by the gradient's norm: fast also where the minima form a manifold.

    A step that would be uphill, or that leaves the neighbourhood of the start, ends them.
    """
    point, gradient = start, counted.gradient(start)
    size, reach = float(np.linalg.norm(gradient)), _NEAR * float(np.linalg.norm(start))
    values, vectors = np.linalg.eigh(counted.hessian(point))
    for _ in range(steps):
        if size <= _STATIONARY * largest or values[0] < -size - _CURVATURE * values[-1]:
            break
        shift = size + max(0.0, -2 * values[0])
        moved = point - vectors @ ((vectors.T @ gradient) / (values + shift))
        trial = counted.gradient(moved)
        if np.linalg.norm(moved - start) > reach or np.linalg.norm(trial) > size:
            break
        point, gradient, size = moved, trial, float(np.linalg.norm(trial))
        values, vectors = np.linalg.eigh(counted.hessian(point))
    curvature = float(values[0] / max(abs(values[-1]), np.finfo(float).tiny))
    at_rest = size <= 10 * _STATIONARY * largest and curvature >= -_CURVATURE
    return Rest(
        torch.from_numpy(point.copy()),
        at_rest
        and counted.value(point) <= counted.value(start) + 1e-12 * abs(counted.value(start)),
        size / max(largest, np.finfo(float).tiny),
        curvature,
        counted.gradients,
        counted.hessians,
    )
