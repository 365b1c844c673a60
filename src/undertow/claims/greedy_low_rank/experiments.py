"""Flows beside greedy learning, products of factors, and counterexamples."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import reduce
from itertools import pairwise
from typing import TYPE_CHECKING, Any

from undertow.claims.greedy_low_rank import GreedyLowRank
from undertow.claims.greedy_low_rank.completion import Completion, complete
from undertow.lab import Experiment, grid, seeds

if TYPE_CHECKING:
    from jaxtyping import Float64
    from torch import Tensor

    from undertow.train import GreedyPhase
    from undertow.train.flows import GradientFlow

DEPTHS = (2, 3, 4)
SCALES = (1e-1, 1e-2, 1e-4, 1e-8)  # of the start of the 3x3 counterexample
_EIGENVALUES, _DEGENERATE = (4.0, 2.0, 1.0), (4.0, 4.0, 1.0)
_DIM, _DEEP_DIM = 6, 4
# Of the counterexamples: rows and columns of what is observed; the last two are the strength R.
_OBSERVED = {"3x3": ((0, 1), (0, 2), (1, 2)), "4x4": ((0, 1), (0, 2), (1, 3))}

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
class Counterexample:
    """A completion whose rank-one solution has not the least nuclear norm."""

    problem: str
    strength: float
    scales: tuple[float, ...]
    seed: int


def experiments(knobs: GreedyLowRank, seed: int) -> dict[str, Experiment]:
    """Completions, trajectories, products and counterexamples, with their controls."""
    own = seeds(seed, knobs.seeds)
    gap = [{"eigenvalues": _EIGENVALUES, "weighted": True}]
    none = [{"eigenvalues": _DEGENERATE, "weighted": False}]
    cases = [
        {"problem": "3x3", "strength": knobs.strength, "scales": SCALES},
        {"problem": "3x3", "strength": knobs.weak_strength, "scales": SCALES[-1:]},
        {"problem": "4x4", "strength": knobs.wide_strength, "scales": knobs.wide_scales},
    ]
    trials: dict[str, tuple[list[Any], Callable[[Any], Rows]]] = {
        "completions": (grid(Completion, knobs, matrix=knobs.matrices, seed=own), complete),
        "trajectories": (grid(Trajectory, knobs, case=gap, seed=own), follow),
        "no_gap": (grid(Trajectory, knobs, case=none, seed=own), follow),
        "products": (grid(Product, knobs, depth=DEPTHS, ratio=knobs.ratios, seed=own), multiply),
        "counterexamples": (grid(Counterexample, knobs, case=cases, seed=own), end),
    }
    return {name: Experiment(*parts) for name, parts in trials.items()}


# ---- trajectories


def follow(trial: Trajectory) -> Rows:
    """Distance of each phase, and its time, from every start."""
    import torch

    from undertow import predict, train

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
    greedy = train.greedy_low_rank(
        loss, _DIM, symmetric=True, scale=1e-12, max_rank=rank, keep_path=True
    )
    spectra = train.saddle_spectra(loss, [greedy.phases[0].matrix])
    exponents = predict.greedy_exponents(spectra.rates.numpy(), spectra.relaxations.numpy())
    # Scales are in units of W here, the squares of those in units of U.
    known = {s: exponent / 2 for s, exponent in enumerate(exponents, start=1)}
    reached = [float(loss(torch.zeros_like(target))), *(phase.loss for phase in greedy.phases)]
    halves = [(before + after) / 2 for before, after in pairwise(reached)]
    rows = []
    for scale in trial.scales:
        flow = _flow_past(loss, math.sqrt(scale) * start, halves)
        rows += [
            {
                "scale": scale,
                "phase": phase.rank,
                "rate": 2 * float(spectra.rates[0, 0]),
                "predicted": known.get(phase.rank),
                "time": float(times[0]),
                "distance": _distance(flow, float(times[0]), phase, level),
                "steps": flow.steps,
            }
            for phase, level, times in zip(greedy.phases, halves, flow.event_times, strict=False)
            if len(times)
        ]
    return rows


def _flow_past(
    loss: Callable[[Tensor], Tensor], start: Float64[Tensor, "dim dim"], levels: list[float]
) -> GradientFlow:
    """Gradient flow on U, until next to no loss is left; when the loss falls past each level."""
    from undertow.train import flows

    def above(level: float) -> Callable[[Tensor], Tensor]:
        return lambda factor: loss(factor @ factor.T) - level

    passed = [flows.Event(above(level), direction=-1) for level in levels]
    return flows.gradient_flow(
        lambda factor: loss(factor @ factor.T) / 2,
        1e4,
        start=start,
        rtol=1e-10,
        dense=True,
        events=[*passed, flows.Event(above(1e-8), terminal=True)],
    )


def _distance(flow: GradientFlow, crossed: float, phase: GreedyPhase, level: float) -> float:
    """Largest distance of a flow from a greedy phase while this is learned, at the best shift.

    Relative to the phase's matrix, over three growth times before and after half of it is learned.
    """
    import torch
    from scipy.optimize import minimize_scalar

    path, at = phase.path, flow.at
    assert path is not None
    assert at is not None
    middle = float(path.times[int((path.losses < level).double().argmax())])
    unit = 1 / phase.eigenvalue
    near = (path.times - middle).abs() < 3 * unit
    since, matrices = path.times[near] - middle, path.matrices[near]
    end = float(flow.times[-1])

    def apart(shift: float) -> float:
        factors = at((since + shift).clamp(0, end).tolist())
        return float(torch.linalg.matrix_norm(factors @ factors.mT - matrices).max())

    found = minimize_scalar(
        apart,
        bounds=(crossed - unit / 2, crossed + unit / 2),
        method="bounded",
        options={"xatol": 1e-9 * unit},
    )
    return float(found.fun) / float(torch.linalg.matrix_norm(phase.matrix))


# ---- products


def multiply(trial: Product) -> Rows:
    """The second singular value, and the time, when half of the first has been learned."""
    import torch

    from undertow.train import flows

    generator, double = torch.Generator().manual_seed(trial.seed), torch.float64
    target = torch.zeros(_DEEP_DIM, _DEEP_DIM, dtype=double)
    target[0, 0], target[1, 1] = 1.0, trial.ratio
    sample = torch.randn(_DEEP_DIM, 2 * _DEEP_DIM, generator=generator, dtype=double)
    values, vectors = torch.linalg.eigh(sample @ sample.T / (2 * _DEEP_DIM))

    def whole(factors: Tensor) -> Tensor:
        return reduce(torch.matmul, factors)

    half = flows.Event(lambda f: torch.linalg.matrix_norm(whole(f), 2) - 0.5, terminal=True)
    rows = []
    for scale in trial.deep_scales:
        # Balanced factors, equal roots of a positive matrix of this scale.
        root = vectors * (scale * values) ** (1 / trial.depth) @ vectors.T
        flow = flows.gradient_flow(
            lambda factors: (whole(factors) - target).square().sum() / 2,
            1e12,
            start=root.expand(trial.depth, -1, -1).contiguous(),
            rtol=1e-9,
            events=[half],
        )
        if flow.stopped == "event":
            second = float(torch.linalg.svdvals(whole(flow.parameters[-1]))[1])
            time = float(flow.times[-1])
            rows.append({"scale": scale, "time": time, "second": second, "steps": flow.steps})
    return rows


# ---- counterexamples


def end(trial: Counterexample) -> Rows:
    """Trace and rank of what the flow ends at, beside greedy learning and least nuclear norm."""
    import torch

    from undertow import train

    size, double = int(trial.problem[0]), torch.float64
    observed = torch.zeros(size, size, dtype=double)
    for place, value in zip(_OBSERVED[trial.problem], (1, *[trial.strength] * 2), strict=True):
        observed[place] = observed[place[::-1]] = value
    loss = train.completion_loss(observed, observed != 0)
    least = train.nuclear_norm_completion(observed, observed != 0, positive=True, rtol=1e-5)
    greedy = train.greedy_low_rank(loss, size, symmetric=True)
    values = torch.linalg.eigvalsh(observed).flip(0)
    generator = torch.Generator().manual_seed(trial.seed)
    start = torch.randn(size, size, generator=generator, dtype=double) / math.sqrt(size)
    rows = []
    for scale in trial.scales:
        flow = train.flows.gradient_flow(
            lambda factor: loss(factor @ factor.T) / 2,
            1e6,
            start=math.sqrt(scale) * start,
            rtol=1e-9,
            gradient_tolerance=1e-8,
        )
        eigenvalues = torch.linalg.eigvalsh(flow.parameters[-1] @ flow.parameters[-1].T).flip(0)
        rows.append(
            {
                "scale": scale,
                "trace": float(eigenvalues.sum()),
                "second_over_first": float(eigenvalues[1].clamp_min(0) / eigenvalues[0]),
                "loss": float(flow.losses[-1]),
                "least_trace": float(least.nuclear_norm),
                "greedy_trace": float(greedy.matrix.trace()),
                "first_gap": 1 - float(values[1] / values[0]),
                "steps": flow.steps,
            }
        )
    return rows
