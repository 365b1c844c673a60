"""How far a flow is from the phases of greedy low-rank learning, whenever it goes through them."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise

import torch
from jaxtyping import Float, Float64
from torch import Tensor

from undertow.predict import greedy_exponents
from undertow.train import flows
from undertow.train.matrix._greedy import GreedyPhase, greedy_low_rank
from undertow.train.matrix._matrix_losses import MatrixLoss
from undertow.train.matrix._saddles import saddle_spectra

_AROUND = 3.0  # growth times before and after half of a phase is learned
_WITHIN = 0.5  # growth times that the best shift is searched for
_GREEDY_SCALE = 1e-12  # that greedy learning puts in at each saddle
_SHIFT_TOLERANCE = 1e-9  # growth times


def phase_distance(
    phase: GreedyPhase,
    at: Callable[[Sequence[float]], Float64[Tensor, "times rows cols"]],
    halfway: float,
    *,
    end: float,
) -> float:
    """The largest distance of a flow of W from a greedy phase while this is learned.

    A flow from a small start goes through the phases at times of its own: the distance is that at
    the best shift in time. It is relative to the Frobenius norm of the phase's matrix, over three
    growth times (1 / `eigenvalue`) before and after half of the phase's loss is learned.

    Args:
        phase: of `greedy_low_rank(..., keep_path=True)`.
        at: the flow's matrices at some times, such as `at` of
            `flows.factored_flow(..., dense=True)`.
        halfway: when the flow has learned half, up to half a growth time.
        end: the last time at which the flow is known; it is taken to rest there.

    Raises:
        ValueError: the phase keeps no path.
    """
    from scipy.optimize import minimize_scalar  # loads slowly

    path = phase.path
    if path is None:
        raise ValueError("phase must have a path: give keep_path=True to greedy_low_rank, got None")
    half = (path.losses[0] + phase.loss) / 2
    middle = float(path.times[int((path.losses < half).double().argmax())])
    unit = 1 / phase.eigenvalue
    near = (path.times - middle).abs() < _AROUND * unit
    since, matrices = path.times[near] - middle, path.matrices[near]

    def apart(shift: float) -> float:
        moved = at((since + shift).clamp(0, end).tolist())
        return float(torch.linalg.matrix_norm(moved - matrices).max())

    found = minimize_scalar(
        apart,
        bounds=(halfway - _WITHIN * unit, halfway + _WITHIN * unit),
        method="bounded",
        options={"xatol": _SHIFT_TOLERANCE * unit},
    )
    return float(found.fun) / float(torch.linalg.matrix_norm(phase.matrix))


@dataclass(frozen=True)
class PhaseVisit:
    """How a flow from a start of one scale went through one phase of greedy low-rank learning.

    Attributes:
        scale: of U U^T at the start.
        phase: the rank that it learns, from 1 on.
        rate: at which the first direction of U U^T grows from zero.
        predicted: the power of the scale with which `distance` falls, from
            `predict.greedy_exponents`: of phase 1, and the least of phase 2; None beyond.
        time: when half of the phase's loss was learned.
        distance: `phase_distance` from it.
        steps: of the solver, through all phases.
    """

    scale: float
    phase: int
    rate: float
    predicted: float | None
    time: float
    distance: float
    steps: int


def phase_visits(
    loss: MatrixLoss,
    start: Float[Tensor, "dim rank"],
    scales: Sequence[float],
    *,
    max_rank: int,
    time: float = 1e4,
    rest: float = 1e-8,
    rtol: float = 1e-10,
) -> tuple[PhaseVisit, ...]:
    """Gradient flow on f(U U^T) / 2 from shrinking starts beside greedy low-rank learning.

    Args:
        loss: f, from W `[dim, dim]` in float64 to a scalar tensor, differentiable twice by
            `torch.func`.
        start: U at time 0, but for its scale.
        scales: of U U^T, so that U starts at the root of each.
        max_rank: phases of greedy learning to hold the flow against.
        time: the flow ends there,
        rest: or where f has fallen to this.
        rtol: of the flow's steps.

    Returns:
        Of each scale every phase half of which the flow has learned.

    Raises:
        ValueError: if zero is a minimum already; and as `greedy_low_rank` and
            `flows.factored_flow`.
    """
    greedy = greedy_low_rank(
        loss, len(start), symmetric=True, scale=_GREEDY_SCALE, max_rank=max_rank, keep_path=True
    )
    if not greedy.phases:
        raise ValueError("loss must descend from zero in some direction, and does in none")
    spectra = saddle_spectra(loss, [greedy.phases[0].matrix])
    exponents = greedy_exponents(spectra.rates.numpy(), spectra.relaxations.numpy())
    # Those are in units of U.
    predicted = {phase: exponent / 2 for phase, exponent in enumerate(exponents, start=1)}
    rate = 2 * float(spectra.rates[0, 0])

    def falls_to(level: float, terminal: bool = False) -> flows.Event:
        return flows.Event(lambda matrix: loss(matrix) - level, terminal, direction=-1)

    from_zero = float(loss(torch.zeros_like(greedy.matrix)))
    reached = [from_zero, *(phase.loss for phase in greedy.phases)]
    events = [falls_to((before + after) / 2) for before, after in pairwise(reached)]
    events.append(falls_to(rest, terminal=True))
    visits = []
    for scale in scales:
        flow = flows.factored_flow(
            loss, math.sqrt(scale) * start, time, rtol=rtol, dense=True, events=events
        )
        assert flow.at is not None
        end = float(flow.times[-1])
        for phase, times in zip(greedy.phases, flow.event_times, strict=False):
            if len(times):
                half, rank = float(times[0]), phase.rank
                distance = phase_distance(phase, flow.at, half, end=end)
                known = scale, rank, rate, predicted.get(rank)
                visits.append(PhaseVisit(*known, half, distance, flow.steps))
    return tuple(visits)
