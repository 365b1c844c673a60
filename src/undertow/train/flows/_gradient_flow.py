"""Gradient flow, d theta / dt = -grad L(theta), solved to a tolerance in float64.

The limit of gradient descent for small learning rates (time = learning rate x steps), and what most
theorems on implicit bias are about.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import torch
from jaxtyping import Float, Float64
from torch import Tensor

from undertow.objective import Objective
from undertow.train.flows._path import Clock, Event, Path, Stopped
from undertow.train.flows._potential import Array, Function, Potential, increasing, potential

if TYPE_CHECKING:
    from scipy.integrate import OdeSolver

Method = Literal["auto", "LSODA", "DOP853"]

# A stiff method needs the Hessian, p x p. Beyond so many parameters "auto" goes without.
_STIFF_SIZE = 1000
_LEAST_RTOL = 1e-13


@dataclass(frozen=True, eq=False, repr=False)
class GradientFlow:
    """A solution of d theta / dt = -grad L.

    Attributes:
        times: the times asked for, or those of the solver's steps; the last is where it stopped.
        parameters: theta at these times.
        losses: L at these times.
        event_times: of each event, the times at which it happened.
        event_parameters: of each event, theta at these times.
        stopped: "time" (the end was reached), "stationary" (||grad L|| fell to
            `gradient_tolerance`), "event" (a terminal one), "diverged" (theta or L leaves every
            bound at a finite time; what was computed before is kept) or "steps" (`max_steps`).
        gradient_norm: ||grad L|| at the end.
        steps: steps that the solver took.
        gradients: gradients spent; a pass over the data each.
        products: Hessian-vector products spent, in the stiff parts.
        at: theta at any times up to the end, if `dense` was asked for.
    """

    times: Float64[Tensor, " times"]
    parameters: Float64[Tensor, "times ..."]
    losses: Float64[Tensor, " times"]
    event_times: tuple[Float64[Tensor, " times"], ...]
    event_parameters: tuple[Float64[Tensor, "times ..."], ...]
    stopped: Stopped
    gradient_norm: float
    steps: int
    gradients: int
    products: int
    at: Callable[[float | Sequence[float]], Tensor] | None

    @property
    def converged(self) -> bool:
        """Whether the flow went as far as it was asked to."""
        return self.stopped in ("time", "stationary", "event")

    def __repr__(self) -> str:
        why = {
            "time": "the end of the time asked for",
            "stationary": "a stationary point",
            "event": "a terminal event",
            "diverged": "the last point before it diverged",
            "steps": "the last step allowed, NOT the end",
        }[self.stopped]
        return (
            f"Gradient flow from loss {float(self.losses[0]):.6g} to {float(self.losses[-1]):.6g} "
            f"(gradient norm {self.gradient_norm:.2g}) at time {float(self.times[-1]):.6g}, {why}; "
            f"{self.steps} steps, {self.gradients} gradients, {self.products} Hessian products."
        )


def gradient_flow(
    objective: Objective | Function,
    time: float | Sequence[float],
    *,
    start: Float[Tensor, " *theta"] | None = None,
    rtol: float = 1e-8,
    atol: float | None = None,
    events: Sequence[Event | Callable[[Tensor], Any]] = (),
    dense: bool = False,
    log_time: float | None = None,
    gradient_tolerance: float = 0.0,
    method: Method = "auto",
    max_steps: int = 100_000,
) -> GradientFlow:
    """Solve d theta / dt = -grad L(theta) from time 0, in float64.

    Steps are as long as the tolerance allows, so that an escape from a saddle that takes time
    ln(1/a) / lambda from a start of size a takes O(ln(1/a)) steps, also from a = 1e-12: the
    default `atol` goes with the size of the start.

    Args:
        objective: an objective, evaluated in float64 on a copy (its data are held in memory), or
            a function theta -> scalar tensor of float64.
        time: the end, and every step is recorded; or the increasing times to record.
        start: theta(0). An objective's own parameters by default, and a vector `[p]` otherwise; a
            function sees theta in the shape of its start.
        rtol: error of a step relative to each coordinate of theta.
        atol: error of a step below which a coordinate does not matter; by default `rtol` times
            the largest coordinate of the start.
        events: zeros to find, functions of theta or `Event`s.
        dense: whether to keep what gives theta at any time.
        log_time: a unit of time c. Then steps are taken in s = ln(1 + t / c): for flows that
            slow down in proportion to their age (margins, power laws) and ends like 1e20.
        gradient_tolerance: stop where ||grad L|| falls to it, having been above. Near a saddle it
            may do so too.
        method: "LSODA" (Adams, and BDF with the Hessian where it is stiff), "DOP853" (explicit,
            order 8), or "auto": LSODA up to 1,000 parameters.
        max_steps: stop there.

    Raises:
        TypeError: if `objective`, `start` or an event is of another kind.
        ValueError: if an argument is out of its range, or L is not finite at the start; and as
            `Objective`.
    """
    ends = increasing("time", time)
    landscape = potential(objective, start)
    _check(rtol, atol, log_time, gradient_tolerance, method, max_steps)
    if atol is None:
        atol = rtol * (float(np.abs(landscape.start).max()) or 1.0)
    clock = Clock(log_time)
    path = Path(
        landscape.start,
        landscape.tensor,
        [event if isinstance(event, Event) else Event(event) for event in events],
        None if np.ndim(time) == 0 else [clock.own(end) for end in ends.tolist()],
        dense,
        _steepness(landscape, gradient_tolerance),
    )
    if method == "auto":
        method = "LSODA" if landscape.size <= _STIFF_SIZE else "DOP853"
    path.follow(_solver(landscape, clock, method, float(ends[-1]), rtol, atol), max_steps)
    # Times that were asked for come back without the rounding of the clock.
    asked = [] if path.wanted is None else ends[: len(path.times)].tolist()
    if asked and path.wanted is not None and path.end < path.wanted[len(asked) - 1]:
        asked.pop()  # the place where it stopped, which was not asked for
    times = asked + [clock.time(own) for own in path.times[len(asked) :]]
    return GradientFlow(
        times=_vector(times),
        parameters=torch.stack([landscape.tensor(state) for state in path.states]),
        losses=_vector([landscape.value(state) for state in path.states]),
        event_times=tuple(_vector([clock.time(own) for own, _ in hits]) for hits in path.hits),
        event_parameters=tuple(
            landscape.tensor(np.reshape([state for _, state in hits], (-1, landscape.size)))
            for hits in path.hits
        ),
        stopped=path.stopped,
        gradient_norm=float(np.linalg.norm(landscape.gradient(path.state))),
        steps=path.steps,
        gradients=landscape.gradients,
        products=landscape.products,
        at=_interpolant(path, clock, landscape.tensor) if dense else None,
    )


def _vector(values: Sequence[float]) -> Float64[Tensor, " values"]:
    return torch.tensor(values, dtype=torch.float64)


def _steepness(landscape: Potential, tolerance: float) -> Callable[[Array], bool] | None:
    if tolerance == 0:
        return None
    return lambda theta: bool(np.linalg.norm(landscape.gradient(theta)) > tolerance)


def _check(
    rtol: float,
    atol: float | None,
    log_time: float | None,
    gradient_tolerance: float,
    method: str,
    max_steps: int,
) -> None:
    if not _LEAST_RTOL <= rtol < 1:
        raise ValueError(f"rtol must be from {_LEAST_RTOL:g} to below 1, got {rtol!r}")
    for name, value in (("atol", atol), ("log_time", log_time)):
        if value is not None and not (math.isfinite(value) and value > 0):
            raise ValueError(f"{name} must be a finite number above 0, got {value!r}")
    if not (math.isfinite(gradient_tolerance) and gradient_tolerance >= 0):
        raise ValueError(
            f"gradient_tolerance must be a finite number >= 0, got {gradient_tolerance!r}"
        )
    if method not in ("auto", "LSODA", "DOP853"):
        raise ValueError(f"method must be 'auto', 'LSODA' or 'DOP853', got {method!r}")
    if max_steps < 1:
        raise ValueError(f"max_steps must be at least 1, got {max_steps!r}")


def _solver(
    landscape: Potential, clock: Clock, method: str, end: float, rtol: float, atol: float
) -> OdeSolver:
    from scipy.integrate import DOP853, LSODA

    def field(own: float, theta: Array) -> Array:
        return -clock.rate(own) * landscape.gradient(theta)

    def jacobian(own: float, theta: Array) -> np.ndarray:
        return -clock.rate(own) * landscape.hessian(theta)

    start, until = landscape.start, clock.own(end)
    with np.errstate(all="ignore"):
        if method == "LSODA":
            return LSODA(field, 0.0, start, until, rtol=rtol, atol=atol, jac=jacobian)
        return DOP853(field, 0.0, start, until, rtol=rtol, atol=atol)


def _interpolant(
    path: Path, clock: Clock, tensor: Callable[[Array], Tensor]
) -> Callable[[float | Sequence[float]], Tensor]:
    last = clock.time(path.end)

    def at(times: float | Sequence[float]) -> Tensor:
        asked = np.atleast_1d(np.asarray(times, dtype=np.float64))
        if not ((asked >= 0) & (asked <= last)).all():
            raise ValueError(f"times must lie from 0 to {last:g}, got {times!r}")
        states = path.interpolated([clock.own(time) for time in asked.tolist()])
        found = torch.stack([tensor(state) for state in states])
        return found if np.ndim(times) else found[0]

    return at
