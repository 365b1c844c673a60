"""Following an ODE solver step by step: what is recorded, what is found, and why it ends."""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from jaxtyping import Float64
from torch import Tensor

from undertow.train.flows._potential import Array

if TYPE_CHECKING:
    from scipy.integrate import OdeSolver

Stopped = Literal["time", "stationary", "event", "diverged", "steps"]
Interpolant = Callable[[float], Array]
Hit = tuple[float, Array]


@dataclass(frozen=True)
class Event:
    """Something to find the time of: a zero of a function along the flow.

    It is looked for where the sign differs between the ends of a step of the solver, so that two
    zeros within one step go unseen; times that are asked for do not shorten the steps.

    Attributes:
        function: theta -> a number (a float, or a tensor with one value).
        terminal: whether the flow stops there.
        direction: 1 for zeros at which the function increases, -1 for decreasing, 0 for both.
    """

    function: Callable[[Tensor], Any]
    terminal: bool = False
    direction: Literal[-1, 0, 1] = 0

    def __post_init__(self) -> None:
        if not callable(self.function):
            raise TypeError(f"an event's function must be callable, got {self.function!r}")
        if self.direction not in (-1, 0, 1):
            raise ValueError(f"an event's direction must be -1, 0 or 1, got {self.direction!r}")

    def crossed(self, before: float, after: float) -> bool:
        """Whether the function changed sign in the event's direction."""
        change = np.sign(after) - np.sign(before)
        return bool(before != 0 and change != 0 and self.direction * change >= 0)


@dataclass(frozen=True)
class Clock:
    """The time t that belongs to the solver's own s: t = s, or t = c (e^s - 1)."""

    unit: float | None = None

    def time(self, own: float) -> float:
        """The time t at s."""
        return own if self.unit is None else self.unit * math.expm1(own)

    def own(self, time: float) -> float:
        """The solver's s at t."""
        return time if self.unit is None else math.log1p(time / self.unit)

    def rate(self, own: float) -> float:
        """The derivative dt / ds at s."""
        return 1.0 if self.unit is None else self.unit * math.exp(own)


@dataclass
class Path:
    """A solution while it grows. Times in here are the solver's own s.

    Attributes:
        start: theta(0).
        tensor: a flat array as the tensor that events see.
        events: what to find.
        wanted: the times to record; None for every step.
        dense: whether to keep every step's interpolant.
        is_steep: theta -> whether the gradient is above the tolerance; None not to ask.
    """

    start: Array
    tensor: Callable[[Array], Tensor]
    events: Sequence[Event] = ()
    wanted: Sequence[float] | None = None
    dense: bool = False
    is_steep: Callable[[Array], bool] | None = None
    times: list[float] = field(default_factory=list)
    states: list[Array] = field(default_factory=list)
    hits: list[list[Hit]] = field(default_factory=list)
    pieces: list[tuple[float, Interpolant]] = field(default_factory=list)
    stopped: Stopped = "time"
    steps: int = 0

    def __post_init__(self) -> None:
        self.hits = [[] for _ in self.events]
        self.end, self.state = 0.0, self.start
        if self.wanted is None or self.wanted[0] == 0:
            self._record(0.0, self.start)

    def follow(self, solver: OdeSolver, max_steps: int) -> None:
        """Step until something ends the path; where it ends is recorded whatever was wanted."""
        with warnings.catch_warnings(), np.errstate(all="ignore"):
            # What the solver would say is in `stopped`.
            warnings.filterwarnings("ignore", module="scipy.integrate")
            signals, steep = self._signals(self.state), self._steep(self.state)
            self.stopped = "steps"
            while self.steps < max_steps:
                solver.step()
                stuck = solver.status == "failed" or solver.t <= self.end
                if stuck or not np.isfinite(solver.y).all():
                    self.stopped = "diverged"
                    break
                self.steps += 1
                signals = self._take(solver, signals)
                was, steep = steep, self._steep(self.state)
                if self.stopped == "event":
                    break
                if was and not steep:
                    self.stopped = "stationary"
                    break
                if solver.status == "finished":
                    self.stopped = "time"
                    break
        if not self.times or self.times[-1] < self.end:
            self._record(self.end, self.state)

    def _take(self, solver: OdeSolver, before: Sequence[float]) -> list[float]:
        """Find what happened within a step and record it; returns the events' functions there."""
        end, state = solver.t, solver.y.copy()
        inside = self._looks_inside(end)
        between: Interpolant = solver.dense_output() if inside else lambda own: state
        after = self._signals(state)
        zeros = [
            (self._zero(event, between, end, after[index]), index)
            for index, event in enumerate(self.events)
            if event.crossed(before[index], after[index])
        ]
        terminal = [zero for zero, index in zeros if self.events[index].terminal]
        if terminal:
            self.stopped = "event"
            end = min(terminal)
            state = between(end)
        for zero, index in zeros:
            if zero <= end:
                self.hits[index].append((zero, between(zero)))
        if self.wanted is None:
            self._record(end, state)
        else:
            while len(self.times) < len(self.wanted) and self.wanted[len(self.times)] <= end:
                own = self.wanted[len(self.times)]
                self._record(own, state if own == end else between(own))
        if self.dense:
            self.pieces.append((end, between))
        self.end, self.state = end, state
        return after

    def _looks_inside(self, end: float) -> bool:
        """Whether a step's inside matters; a solver may spend gradients on it."""
        if self.dense or self.events:
            return True
        due = [] if self.wanted is None else self.wanted[len(self.times) :]
        return bool(due) and due[0] < end

    def _record(self, own: float, state: Array) -> None:
        self.times.append(own)
        self.states.append(state)

    def _signals(self, state: Array) -> list[float]:
        return [float(event.function(self.tensor(state))) for event in self.events]

    def _steep(self, state: Array) -> bool:
        return self.is_steep is not None and self.is_steep(state)

    def _zero(self, event: Event, between: Interpolant, end: float, after: float) -> float:
        """Where in the step an event's function is zero."""
        from scipy.optimize import brentq

        def along(own: float) -> float:
            return float(event.function(self.tensor(between(own))))

        # Rounding of the interpolant may hide the change of sign at either end.
        if after == 0 or along(self.end) * along(end) > 0:
            return end
        return float(brentq(along, self.end, end, xtol=1e-14 * end))

    def interpolated(self, own: Sequence[float]) -> Float64[np.ndarray, "times params"]:
        """Theta at times within the path, from the interpolants of its steps."""
        ends = np.array([end for end, _ in self.pieces])
        found = []
        for time in own:
            piece = min(int(np.searchsorted(ends, time)), len(ends) - 1)
            found.append(self.pieces[piece][1](min(time, self.end)))
        return np.stack(found)
