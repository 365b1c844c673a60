"""Flows beside greedy learning, products, counterexamples, and gradient descent on both."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from functools import cache
from typing import TYPE_CHECKING, Any

from undertow.claims.greedy_low_rank import RATIO, GreedyLowRank
from undertow.claims.greedy_low_rank.completions import Completion, complete
from undertow.lab import Experiment, grid, rows_of, seeds

if TYPE_CHECKING:
    from jaxtyping import Float64
    from torch import Tensor

DEPTHS = (2, 3, 4)
FITTED = 3  # of the smallest scales
SCALES = (1e-1, 1e-4, 1e-6, 1e-8)  # of the start of the 3x3 counterexample
_EIGENVALUES, _DEGENERATE = (4.0, 2.0, 1.0), (4.0, 4.0, 1.0)
_DIM, _DEEP_DIM = 6, 4
_MOST_STEPS = 100_000  # of gradient descent
_AT_REST = 1e-20  # the loss at which it may stop

Rows = list[dict[str, Any]]


@dataclass(frozen=True)
class Trajectory:
    """Flows from shrinking starts beside greedy learning, on a square loss.

    `weighted` entry by entry; equal eigenvalues stay equal under equal weights alone.
    """

    eigenvalues: tuple[float, ...]
    weighted: bool
    scales: tuple[float, ...]
    seed: int


@dataclass(frozen=True)
class Product:
    """A product of factors learns a matrix of rank two: what the second has when the first is half.

    `ratio` is the second eigenvalue of the target, the first being one.
    """

    depth: int
    ratio: float
    deep_scales: tuple[float, ...]
    seed: int


@dataclass(frozen=True)
class Descent:
    """The same product by gradient descent; `step` is in units of the largest stable step."""

    depth: int
    step: float
    starts: tuple[float, ...]
    seed: int


@dataclass(frozen=True)
class Stepped:
    """The 3x3 completion of a strength by gradient descent, `step` in the same units."""

    strength: float
    step: float
    scale: float
    seed: int


@dataclass(frozen=True)
class Counterexample:
    """A completion whose rank-one solution has not the least nuclear norm."""

    problem: str
    strength: float
    scales: tuple[float, ...]
    seed: int


def experiments(knobs: GreedyLowRank, seed: int) -> dict[str, Experiment]:
    """Completions, trajectories, products and counterexamples, with their controls."""
    own, exact, twice = (
        seeds(seed, count) for count in (knobs.seeds, knobs.exact, 2 * knobs.exact)
    )
    gap = [{"eigenvalues": _EIGENVALUES, "weighted": True}]
    ends = (knobs.scales[0], knobs.scales[-1])
    none = [{"eigenvalues": _DEGENERATE, "weighted": False, "scales": ends}]
    cases = [
        {"problem": "3x3", "strength": knobs.strength, "scales": SCALES},
        {"problem": "3x3", "strength": knobs.weak_strength, "scales": SCALES[-1:]},
        {"problem": "4x4", "strength": knobs.wide_strength, "scales": knobs.wide_scales},
    ]
    drawn = [
        {"matrix": matrix, "seed": one}
        for matrix in knobs.matrices
        for one in (seeds(seed, knobs.rank_two) if matrix == "low-rank" else own)
    ]
    products = grid(Product, knobs, depth=DEPTHS, ratio=knobs.ratios, seed=exact)
    # Two factors need log(1 / scale) steps, more of them a power of it.
    depths = [{"depth": 2, "starts": knobs.scales[-FITTED:]}]
    depths += [{"depth": depth, "starts": knobs.descent_scales} for depth in DEPTHS[1:]]
    descents = grid(Descent, knobs, depths=depths, step=knobs.step_sizes, seed=exact)
    stepped = grid(Stepped, knobs, step=knobs.step_sizes, scale=SCALES[-1:], seed=exact)
    return {
        "completions": Experiment(grid(Completion, knobs, drawn=drawn), complete),
        "descents": Experiment(descents, descend, together=("seed",), group_size=100),
        "stepped": Experiment(stepped, step_down, together=("seed",), group_size=100),
        "trajectories": Experiment(grid(Trajectory, knobs, case=gap, seed=twice), follow),
        "no_gap": Experiment(grid(Trajectory, knobs, case=none, seed=exact), follow),
        "products": Experiment(products, multiply),
        "counterexamples": Experiment(grid(Counterexample, knobs, case=cases, seed=exact), end),
    }


def follow(trial: Trajectory) -> Rows:
    """Distance of each phase, and its time, from every start."""
    import torch

    from undertow import train

    generator, double = torch.Generator().manual_seed(trial.seed), torch.float64
    turn, _ = torch.linalg.qr(torch.randn(_DIM, _DIM, generator=generator, dtype=double))
    basis = turn[:, : len(trial.eigenvalues)]
    target = basis * torch.tensor(trial.eigenvalues, dtype=double) @ basis.T
    start = torch.randn(_DIM, _DIM, generator=generator, dtype=double) / math.sqrt(_DIM)
    weights = 0.5 + torch.rand(_DIM, _DIM, generator=generator, dtype=double)
    weights = (weights + weights.T) / 2 if trial.weighted else torch.ones_like(weights)

    def loss(matrix: Tensor) -> Tensor:
        return (weights * (matrix - target).square()).sum() / 2

    rank = len(trial.eigenvalues)
    visits = train.phase_visits(loss, start, trial.scales, max_rank=rank)
    return [asdict(visit) for visit in visits]


def multiply(trial: Product) -> Rows:
    """The second singular value, and the time, when half of the first has been learned."""
    import torch

    from undertow.train.flows import Event, factored_flow

    loss = distance_from(trial.ratio)
    half = Event(lambda matrix: torch.linalg.matrix_norm(matrix, 2) - 0.5, terminal=True)
    rows = []
    for scale in trial.deep_scales:
        start = start_of_product(trial.seed, scale, trial.depth)
        flow = factored_flow(loss, start, 1e12, rtol=1e-9, events=[half])
        if flow.stopped == "event":
            second = float(torch.linalg.svdvals(flow.parameters[-1])[1])
            time = float(flow.times[-1])
            rows.append({"scale": scale, "time": time, "second": second, "steps": flow.steps})
    return rows


def descend(trials: Sequence[Descent]) -> list[Rows]:
    """The same by gradient descent, read off between the two steps around one half.

    Where the target is learned the Hessian's top is the depth, so that 2 / depth is the largest
    stable step.
    """
    import torch

    from undertow import train

    first = trials[0]
    lr, scales = 2 * first.step / first.depth, first.starts
    roots = [[start_of_product(t.seed, scale, first.depth)[0] for scale in scales] for t in trials]
    start = [torch.stack([torch.stack(row) for row in roots])] * first.depth
    half = train.Crossing(lambda matrices: matrices[..., 0, 0], 0.5)
    train.factored_descent(distance_from(RATIO), start, lr=lr, steps=_MOST_STEPS, observe=half)
    steps, singular = half.singular_values(0.5)
    known = (
        rows_of({"scale": list(scales), "second": values[:, 1], "time": times, "lr": lr})
        for values, times in zip(singular, steps * lr, strict=True)
    )
    return [[row for row in rows if math.isfinite(row["time"])] for rows in known]


def distance_from(ratio: float) -> Callable[[Tensor], Tensor]:
    """Half of the squared distance from a matrix with the eigenvalues one and `ratio`."""
    import torch

    target = torch.zeros(_DEEP_DIM, _DEEP_DIM, dtype=torch.float64)
    target[0, 0], target[1, 1] = 1.0, ratio
    return lambda matrix: (matrix - target).square().sum((-2, -1)) / 2


def start_of_product(seed: int, scale: float, depth: int) -> list[Float64[Tensor, "dim dim"]]:
    """Balanced factors, the same matrix's at every scale."""
    import torch

    from undertow import train

    generator = torch.Generator().manual_seed(seed)
    return train.balanced_factors(_DEEP_DIM, depth=depth, scale=scale, generator=generator)


# ---- counterexamples


def end(trial: Counterexample) -> Rows:
    """Trace and rank of what the flow ends at, beside greedy learning and least nuclear norm."""
    from undertow import train

    loss, known = completed(int(trial.problem[0]), trial.strength)
    start, rows = start_of(trial.seed, int(trial.problem[0])), []
    for scale in trial.scales:
        flow = train.flows.factored_flow(
            loss, math.sqrt(scale) * start, 1e6, rtol=1e-9, gradient_tolerance=1e-8
        )
        facts = facts_of(flow.parameters[-1:], flow.losses[-1:])
        rows += rows_of({"scale": scale, "steps": flow.steps} | facts | known)
    return rows


@cache
def completed(dim: int, strength: float) -> tuple[Callable[[Tensor], Tensor], dict[str, float]]:
    """The loss of a counterexample, and what every seed's flow of it is held against."""
    import torch

    from undertow import predict, train

    known = predict.completion_counterexample(dim, strength)
    observed = torch.from_numpy(known.observed)
    loss = train.completion_loss(observed, observed != 0)
    least = train.nuclear_norm_completion(observed, observed != 0, positive=True, rtol=1e-5)
    greedy = train.greedy_low_rank(loss, dim, symmetric=True)
    facts = {"least_trace": least.nuclear_norm, "greedy_trace": float(greedy.matrix.trace())}
    return loss, facts | {"first_gap": known.gap}


def step_down(trials: Sequence[Stepped]) -> list[Rows]:
    """The same of what gradient descent ends at on the 3x3 counterexample."""
    import torch

    from undertow import train

    first = trials[0]
    loss, _ = completed(3, first.strength)
    solution = torch.tensor([[1.0], [1.0], [first.strength]])
    lr = first.step * train.largest_stable_lr(loss, solution)

    def at_rest(step: int, matrices: Tensor) -> bool:
        return step % 50 == 0 and float(loss(matrices).max()) < _AT_REST

    start = math.sqrt(first.scale) * torch.stack([start_of(trial.seed, 3) for trial in trials])
    factors = train.factored_descent(loss, start, lr=lr, steps=_MOST_STEPS, observe=at_rest)
    ended = factors @ factors.mT
    return [[row] for row in rows_of(facts_of(ended, loss(ended)) | {"lr": lr})]


def start_of(seed: int, size: int) -> Float64[Tensor, "dim dim"]:
    """U of a run of a counterexample, but for its scale."""
    import torch

    generator = torch.Generator().manual_seed(seed)
    return torch.randn(size, size, generator=generator, dtype=torch.float64) / math.sqrt(size)


def facts_of(
    ended: Float64[Tensor, "runs dim dim"], losses: Float64[Tensor, " runs"]
) -> dict[str, Any]:
    """Trace, rank and loss of what runs ended at."""
    import torch

    values = torch.linalg.eigvalsh(ended).flip(-1)
    second = values[:, 1].clamp_min(0) / values[:, 0]
    return {"trace": values.sum(-1), "second_over_first": second, "loss": losses}
