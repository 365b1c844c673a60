"""The flow along which gradient descent at the edge of stability, with decay, reduces sharpness.

For scale-invariant losses, on the minimisers of the unit sphere (arXiv 2206.07085):
d zeta / d tau = -2 grad_Gamma log lambda_1 / (4 + ||grad_Gamma log lambda_1||^2).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Literal

import numpy as np
import torch
from jaxtyping import Float, Float64
from torch import Tensor

from undertow.objective import Objective
from undertow.train.flows._path import Event, Path
from undertow.train.flows._potential import Array, Function, Potential, increasing, potential

# Differences of Hessian products in units of the sphere's radius: of fourth order, so that rounding
# and truncation are both near 1e-12.
_DIFFERENCE = 1e-3
# How fast the solution is drawn back to the minimisers, per unit of tau.
_PULL = 5.0
_NEWTON_STEPS = 20
# lambda_1 and lambda_2 closer than this, relatively: the flow has no direction.
_SIMPLE = 1e-4


@dataclass(frozen=True, eq=False, repr=False)
class SharpnessReduction:
    """A solution of the sharpness-reduction flow.

    Attributes:
        times: tau = learning rate x weight_decay x steps; the last is where it stopped.
        parameters: zeta at these times, of length one.
        sharpness: lambda_1 of the Hessian there.
        gap: (lambda_1 - lambda_2) / lambda_1.
        distance: ||grad L|| / lambda_1, which is how far zeta is from a minimiser at most a
            condition number aside.
        dimension: of the manifold of minimisers on the sphere.
        stopped: "time", "crossing" (lambda_2 has caught up with lambda_1, where the flow ends),
            "diverged" (the manifold ends) or "steps".
        steps: steps that the solver took.
        gradients: gradients spent.
        products: Hessian-vector products spent.
    """

    times: Float64[Tensor, " times"]
    parameters: Float64[Tensor, "times ..."]
    sharpness: Float64[Tensor, " times"]
    gap: Float64[Tensor, " times"]
    distance: Float64[Tensor, " times"]
    dimension: int
    stopped: Literal["time", "crossing", "diverged", "steps"]
    steps: int
    gradients: int
    products: int

    @property
    def converged(self) -> bool:
        """Whether the flow went as far as it exists."""
        return self.stopped in ("time", "crossing")

    def __repr__(self) -> str:
        return (
            f"Sharpness from {float(self.sharpness[0]):.6g} to {float(self.sharpness[-1]):.6g} "
            f"over tau = {float(self.times[-1]):.6g} on minimisers of dimension {self.dimension}, "
            f"stopped by {self.stopped}; {self.steps} steps, {self.gradients} gradients, "
            f"{self.products} Hessian products."
        )


def sharpness_reduction_flow(
    objective: Objective | Function,
    time: float | Sequence[float],
    *,
    start: Float[Tensor, " *theta"] | None = None,
    rtol: float = 1e-6,
    tolerance: float = 1e-6,
    max_steps: int = 1000,
) -> SharpnessReduction:
    """Follow the minimisers of a scale-invariant loss on the unit sphere toward lower sharpness.

    The slow motion of w <- (1 - lr weight_decay) w - lr grad L(w), at the edge of stability, in
    the direction zeta = w / ||w||. The Hessian is taken whole (p products and p x p numbers an
    evaluation, a few hundred parameters at most); grad lambda_1 = grad^3 L [v, v] by differences
    of Hessian products, exact to 1e-10 or so; the derivative of an eigenvalue asks for a smooth
    loss, so no ReLU.

    Args:
        objective: an objective whose parameters are all scale-invariant, L(c w) = L(w), or a
            function theta -> scalar tensor of float64.
        time: the end in tau = lr x weight_decay x steps, and every step is recorded; or the
            increasing times to record. `weight_decay` is PyTorch's.
        start: a minimiser, of any length: it is taken to the sphere. An objective's own
            parameters by default.
        rtol: error of a step.
        tolerance: eigenvalues below `tolerance` times lambda_1 count as zero, and the start's
            ||grad L|| on the sphere must be below that too.
        max_steps: stop there.

    Raises:
        TypeError: if `objective` or `start` is of another kind.
        ValueError: if the start is not a minimum, L is not scale-invariant there, lambda_1 is zero
            or not simple, or an argument is out of its range; and as `Objective`.
    """
    ends = increasing("time", time)
    for name, value in (("rtol", rtol), ("tolerance", tolerance)):
        if not 1e-13 <= value < 1:
            raise ValueError(f"{name} must be from 1e-13 to below 1, got {value!r}")
    if max_steps < 1:
        raise ValueError(f"max_steps must be at least 1, got {max_steps!r}")
    landscape = potential(objective, start)
    length = float(np.linalg.norm(landscape.start))
    if length == 0:
        raise ValueError("start must not be zero: it has no direction")
    minimisers = _Minimisers.around(landscape, landscape.start / length, tolerance)
    path = Path(
        minimisers.onto(landscape.start / length),
        torch.from_numpy,
        [Event(lambda theta: minimisers.read(theta.numpy()).gap - _SIMPLE, True, -1)],
        None if np.ndim(time) == 0 else ends.tolist(),
    )
    from scipy.integrate import DOP853

    solver = DOP853(
        lambda tau, theta: minimisers.velocity(theta),
        0.0,
        path.start,
        float(ends[-1]),
        rtol=rtol,
        atol=rtol,
    )
    path.follow(solver, max_steps)
    states = [minimisers.onto(state) for state in path.states]
    frames = [minimisers.read(state) for state in states]
    return SharpnessReduction(
        times=torch.tensor(path.times, dtype=torch.float64),
        parameters=landscape.tensor(np.array(states)),
        sharpness=_vector([frame.top for frame in frames]),
        gap=_vector([frame.gap for frame in frames]),
        distance=_vector([float(np.linalg.norm(frame.slope)) / frame.top for frame in frames]),
        dimension=landscape.size - 1 - minimisers.rank,
        stopped="crossing" if path.stopped == "event" else path.stopped,  # type: ignore[arg-type]
        steps=path.steps,
        gradients=landscape.gradients,
        products=landscape.products,
    )


def _vector(values: Sequence[float]) -> Float64[Tensor, " values"]:
    return torch.tensor(values, dtype=torch.float64)


@dataclass(frozen=True)
class _Frame:
    """The gradient and the Hessian's eigenpairs at a point of the sphere, largest first."""

    point: Array
    slope: Array
    values: Float64[np.ndarray, " params"]
    vectors: Float64[np.ndarray, "params params"] = field(repr=False)

    @property
    def top(self) -> float:
        return float(self.values[0])

    @property
    def gap(self) -> float:
        second = float(self.values[1]) if len(self.values) > 1 else 0.0
        return 1 - max(second, 0.0) / self.top if self.top > 0 else 0.0


@dataclass(frozen=True)
class _Minimisers:
    """Gamma: the minimisers on the sphere, near which the Hessian has `rank` large eigenvalues.

    The eigenvectors of these span the normal space. Off Gamma, where the zero eigenvalues are only
    small, they still extend the flow smoothly, which is what a solver of high order needs.
    """

    landscape: Potential
    rank: int

    @classmethod
    def around(cls, landscape: Potential, point: Array, tolerance: float) -> _Minimisers:
        """The minimisers near a point that must be one.

        Raises:
            ValueError: if it is not.
        """
        minimisers = cls(landscape, landscape.size)
        frame = minimisers.read(point)
        scale = float(np.abs(frame.values).max())
        steepness = float(np.linalg.norm(frame.slope))
        advice = "go there first, with gradient_flow(..., gradient_tolerance=...) or Newton steps"
        if frame.top <= 0 or frame.top < math.sqrt(tolerance) * scale:
            raise ValueError(
                f"start is not a minimum with curvature: the Hessian's eigenvalues on the sphere "
                f"lie from {frame.values[-1]:.3g} to {frame.top:.3g}; {advice}"
            )
        if steepness > tolerance * frame.top:
            raise ValueError(
                f"start is not a minimum: on the sphere ||grad L|| is {steepness:.3g}, above "
                f"{tolerance:g} x lambda_1 = {tolerance * frame.top:.3g}; {advice}"
            )
        if frame.values[-1] < -10 * tolerance * frame.top:
            raise ValueError(
                f"start is a saddle, not a minimum: the Hessian has the eigenvalue "
                f"{frame.values[-1]:.3g} beside lambda_1 = {frame.top:.3g}; {advice}"
            )
        radial = float(np.linalg.norm(landscape.hessian_product(point, point[None])))
        if radial > 10 * tolerance * frame.top:
            raise ValueError(
                f"the loss is not scale-invariant: the Hessian times zeta is {radial:.3g}, "
                "where L(c w) = L(w) makes it zero. Leave out what is not scale-invariant by the "
                "objective's params; batch norm needs track_running_stats=False, no affine "
                "parameters, all data in one batch and a negligible eps"
            )
        if frame.gap <= _SIMPLE:
            raise ValueError(
                f"lambda_1 = {frame.top:.6g} is not simple (lambda_2 is within "
                f"{_SIMPLE:g} of it), so that the flow has no direction at start"
            )
        return cls(landscape, int((frame.values > tolerance * frame.top).sum()))

    def read(self, theta: Array) -> _Frame:
        """Gradient and eigenpairs at theta / ||theta||."""
        point = theta / np.linalg.norm(theta)
        hessian = self.landscape.hessian(point)
        if not np.isfinite(hessian).all():
            empty = np.full(len(point), np.nan)
            return _Frame(point, empty, empty, np.full_like(hessian, np.nan))
        values, vectors = np.linalg.eigh(hessian)
        return _Frame(point, self.landscape.gradient(point), values[::-1], vectors[:, ::-1])

    def velocity(self, theta: Array) -> Array:
        """The derivative of zeta, and a pull back to Gamma that vanishes on it."""
        frame = self.read(theta)
        slope = self._tangent(frame, self._sharpness_slope(frame)) / frame.top
        flow = -2 * slope / (4 + slope @ slope)
        return flow - _PULL * self._newton(frame)

    def onto(self, theta: Array) -> Array:
        """The minimiser that Newton's method finds from theta, in the normal space alone."""
        frame = self.read(theta)
        for _ in range(_NEWTON_STEPS):
            step = self._newton(frame)
            if not np.linalg.norm(step) > 1e-13:
                break
            closer = self.read(frame.point - step)
            if not np.linalg.norm(closer.slope) < np.linalg.norm(frame.slope):
                break  # rounding
            frame = closer
        return frame.point

    def _newton(self, frame: _Frame) -> Array:
        normal = frame.vectors[:, : self.rank]
        return normal @ ((normal.T @ frame.slope) / frame.values[: self.rank])

    def _tangent(self, frame: _Frame, direction: Array) -> Array:
        normal = frame.vectors[:, : self.rank]
        direction = direction - normal @ (normal.T @ direction)
        return direction - frame.point * (frame.point @ direction)

    def _sharpness_slope(self, frame: _Frame) -> Array:
        """The gradient of lambda_1, grad^3 L [v, v], the change of H v along v."""
        top = frame.vectors[:, 0]

        def product(steps: int) -> Array:
            moved = frame.point + steps * _DIFFERENCE * top
            return self.landscape.hessian_product(moved, top[None])[0]

        return (8 * (product(1) - product(-1)) - (product(2) - product(-2))) / (12 * _DIFFERENCE)
