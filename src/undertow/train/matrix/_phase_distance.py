"""How far a flow is from a phase of greedy low-rank learning, whenever it goes through it."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from jaxtyping import Float64
from torch import Tensor

from undertow.train.matrix._greedy import GreedyPhase

_AROUND = 3.0  # growth times before and after half of a phase is learned
_WITHIN = 0.5  # growth times that the best shift is searched for
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
