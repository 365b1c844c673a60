"""Greedy low-rank learning (Li, Luo and Lyu, arXiv 2012.09839): one rank after the other.

What gradient flow on W = U U^T, W = U V^T or a deeper product does in the limit of an infinitesimal
initialisation: from each saddle it leaves along the top eigenvector (or singular pair) of
-grad f(W), and comes to rest at the next stationary point.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field

import torch
from jaxtyping import Float64
from torch import Tensor

from undertow.objective import whole_number
from undertow.train.matrix._factors import Factors
from undertow.train.matrix._rest import flow_to_rest

MatrixLoss = Callable[[Tensor], Tensor]

_RTOL = 1e-8
_SIMPLE = 1e-6  # a gap that is smaller, relative to the eigenvalue, leaves the direction open


@dataclass(frozen=True)
class GreedyPath:
    """The flow of one phase, at the steps of the solver.

    Attributes:
        times: `[points]`, from the moment when `scale` was put in.
        matrices: `[points, rows, cols]`.
        losses: `[points]`, f of each.
    """

    times: Float64[Tensor, " points"]
    matrices: Float64[Tensor, "points rows cols"] = field(repr=False)
    losses: Float64[Tensor, " points"] = field(repr=False)

    def __repr__(self) -> str:
        return f"A path of {len(self.times)} points over a time of {float(self.times[-1]):.4g}."


@dataclass(frozen=True)
class GreedyPhase:
    """One phase: a direction added, and the flow to the stationary point of that rank.

    Attributes:
        rank: how many directions there are now.
        matrix: `[rows, cols]`, where the flow came to rest.
        loss: f of it.
        eigenvalue: the largest of -grad f at the saddle (singular value, where not symmetric), the
            rate at which the new direction grows there.
        gap: from it to the next.
        ambiguous: whether the gap is zero in effect: then the limit of gradient flow does not
            depend on f alone, and the direction taken is one of several.
        converged: whether it is a minimum among matrices of this rank, up to rounding.
        gradient: norm of the factors' gradient at rest, relative to the largest on the way.
        gradients: of f, computed.
        hessians: of f over the factors, computed.
        path: the flow, where it was asked for.
    """

    rank: int
    matrix: Float64[Tensor, "rows cols"] = field(repr=False)
    loss: float
    eigenvalue: float
    gap: float
    ambiguous: bool
    converged: bool
    gradient: float
    gradients: int
    hessians: int
    path: GreedyPath | None = None

    def __repr__(self) -> str:
        state = "converged" if self.converged else "NOT converged"
        which = ", ambiguous direction" if self.ambiguous else ""
        return (
            f"rank {self.rank}: loss {self.loss:.4g}, from eigenvalue {self.eigenvalue:.4g} (gap "
            f"{self.gap:.2g}{which}), {state} after {self.gradients} gradients and "
            f"{self.hessians} Hessians."
        )


@dataclass(frozen=True)
class GreedyLowRank:
    """The phases of greedy low-rank learning and where they ended.

    Attributes:
        phases: one for each rank, from 1 on.
        matrix: `[rows, cols]`, the last phase's; zero where no direction descends from zero.
        loss: f of it.
        eigenvalue: the largest of -grad f there; no direction descends where it is 0.
        complete: whether it ended for want of a descent direction, not for `max_rank` or a phase
            that did not converge.
        gradients: of f, computed.
        hessians: of f over the factors, computed.
    """

    phases: tuple[GreedyPhase, ...] = field(repr=False)
    matrix: Float64[Tensor, "rows cols"] = field(repr=False)
    loss: float
    eigenvalue: float
    complete: bool
    gradients: int
    hessians: int

    @property
    def rank(self) -> int:
        """Of the last phase."""
        return len(self.phases)

    @property
    def converged(self) -> bool:
        """Whether every phase did."""
        return all(phase.converged for phase in self.phases)

    def __repr__(self) -> str:
        end = "complete" if self.complete else "NOT complete"
        state = "all phases converged" if self.converged else "NOT all phases converged"
        open_ones = [str(phase.rank) for phase in self.phases if phase.ambiguous]
        which = f"; ambiguous direction at rank {', '.join(open_ones)}" if open_ones else ""
        return (
            f"Greedy low-rank learning, {end} at rank {self.rank}: loss {self.loss:.4g}, "
            f"remaining eigenvalue {self.eigenvalue:.2g}, {state}{which}; {self.gradients} "
            f"gradients, {self.hessians} Hessians."
        )


def greedy_low_rank(
    loss: MatrixLoss,
    shape: int | tuple[int, int],
    *,
    depth: int = 2,
    symmetric: bool = False,
    scale: float = 1e-8,
    max_rank: int | None = None,
    tolerance: float = 1e-6,
    max_steps: int = 20_000,
    keep_path: bool = False,
) -> GreedyLowRank:
    """Minimise f(W) by greedy low-rank learning.

    From W_0 = 0, phase r adds `scale` x u v^T to W_(r-1), with u v^T the top eigenvector (u = v) or
    singular pair of -grad f(W_(r-1)), and follows the end-to-end flow of the depth to rest:

        dW/dt = -sum_{l < depth} (W W^T)^(l/depth) grad f(W) (W^T W)^((depth-1-l)/depth),

    as gradient flow on balanced factors of inner width r, so that the rank never exceeds r. For
    depth 2 and `symmetric` that is dU/dt = -grad f(U U^T) U. A stiff solver with error control
    follows the flow (a minimiser with a line search could jump to another basin); the last digits
    are Newton's, accepted only within the neighbourhood where the flow left off and only where
    the Hessian has no negative eigenvalue. Each costs dense Hessians of r (rows + cols) variables.

    Args:
        loss: f, from W `[rows, cols]` in float64 to a scalar tensor, differentiable twice by
            `torch.func` (no in-place operations). See `completion_loss` and `sensing_loss`. It must
            attain its minima: one that falls for ever (logistic) counts as at rest once its
            gradient is down to 1e-11 of the largest.
        shape: rows and cols, or one number for both.
        depth: factors in the product, at least 2.
        symmetric: keep W symmetric and positive semidefinite; only the symmetric part of grad f
            counts.
        scale: of what is put in at each saddle, in units of W. Smaller is nearer to the limit and
            takes longer: a time of log(1 / scale) at depth 2, scale^-(1 - 2/depth) beyond.
        max_rank: stop there; by default where the shape ends.
        tolerance: stop where the top eigenvalue is at most this share of the first phase's.
        max_steps: of the solver, in each phase.
        keep_path: keep the flow of every phase.

    Raises:
        TypeError: if the loss is not a function, or gives no scalar tensor of float64.
        ValueError: if an argument is out of range, or the loss is not finite at zero.
    """
    rows, cols = _shape(shape, symmetric)
    depth = whole_number("depth", depth, least=2)
    most = min(rows, cols)
    ranks = most if max_rank is None else min(whole_number("max_rank", max_rank, least=1), most)
    whole_number("max_steps", max_steps, least=1)
    for name, value in (("scale", scale), ("tolerance", tolerance)):
        if not (math.isfinite(value) and value > 0):
            raise ValueError(f"{name} must be a finite number above 0, got {value}")
    matrix = torch.zeros(rows, cols, dtype=torch.float64)
    _check_loss(loss, matrix)

    phases: list[GreedyPhase] = []
    first = 0.0
    while True:
        values, direction = _descent(loss, matrix, symmetric)
        eigenvalue = float(values[0])
        first = first or eigenvalue
        complete = eigenvalue <= tolerance * first or first <= 0
        if complete or len(phases) == ranks or (phases and not phases[-1].converged):
            break
        factors = Factors(rows, cols, len(phases) + 1, depth, symmetric)
        gap = eigenvalue - float(values[1]) if len(values) > 1 else math.inf
        phase = _phase(
            loss, factors, matrix + scale * direction, eigenvalue, gap, max_steps, keep_path
        )
        phases.append(phase)
        matrix = (phase.matrix + phase.matrix.T) / 2 if symmetric else phase.matrix
    return GreedyLowRank(
        tuple(phases),
        matrix,
        float(loss(matrix)),
        eigenvalue,
        complete,
        sum(phase.gradients for phase in phases),
        sum(phase.hessians for phase in phases),
    )


def _phase(
    loss: MatrixLoss,
    factors: Factors,
    start: Tensor,
    eigenvalue: float,
    gap: float,
    max_steps: int,
    keep_path: bool,
) -> GreedyPhase:
    flat = factors.balanced(start)
    seed = float(flat[flat != 0].abs().min()) if bool((flat != 0).any()) else 1.0
    times: list[float] = []
    points: list[Tensor] = []

    def observe(time: float, point: Tensor) -> None:
        times.append(time)
        points.append(factors.product(point))

    rest = flow_to_rest(
        lambda point: factors.share * loss(factors.product(point)),
        flat,
        rtol=_RTOL,
        atol=max(1e-2 * _RTOL * seed, 1e-14),
        max_steps=max_steps,
        horizon=1e15 / eigenvalue,
        observe=observe if keep_path else None,
    )
    path = None
    if keep_path:
        losses = torch.stack([loss(point).detach() for point in points])
        path = GreedyPath(torch.tensor(times, dtype=torch.float64), torch.stack(points), losses)
    matrix = factors.product(rest.point)
    return GreedyPhase(
        factors.rank,
        matrix,
        float(loss(matrix)),
        eigenvalue,
        gap,
        gap <= _SIMPLE * eigenvalue,
        rest.converged,
        rest.gradient,
        rest.gradients,
        rest.hessians,
        path,
    )


def _descent(loss: MatrixLoss, matrix: Tensor, symmetric: bool) -> tuple[Tensor, Tensor]:
    """The spectrum of -grad f in descending order, and u v^T of its top."""
    downhill = -torch.func.grad(loss)(matrix).detach()
    if symmetric:
        values, vectors = torch.linalg.eigh((downhill + downhill.T) / 2)
        return values.flip(0), torch.outer(vectors[:, -1], vectors[:, -1])
    left, values, right = torch.linalg.svd(downhill, full_matrices=False)
    return values, torch.outer(left[:, 0], right[0])


def _shape(shape: int | tuple[int, int], symmetric: bool) -> tuple[int, int]:
    sides = (shape, shape) if isinstance(shape, int) else tuple(shape)
    if len(sides) != 2:
        raise ValueError(f"shape must be one number or (rows, cols), got {shape!r}")
    rows, cols = (whole_number("shape", side, least=1) for side in sides)
    if symmetric and rows != cols:
        raise ValueError(f"symmetric=True needs a square shape, got {rows} x {cols}")
    return rows, cols


def _check_loss(loss: MatrixLoss, zero: Tensor) -> None:
    if not callable(loss):
        raise TypeError(f"loss must be a function of a matrix, got {type(loss).__name__}")
    value = loss(zero)
    if not (isinstance(value, Tensor) and value.ndim == 0 and value.dtype == torch.float64):
        raise TypeError(
            "loss must map a float64 matrix to a scalar float64 tensor (are its constants "
            f"float64?), got {value!r}"
        )
    if not bool(torch.isfinite(value)):
        raise ValueError(f"loss must be finite at the zero matrix, got {float(value)}")
