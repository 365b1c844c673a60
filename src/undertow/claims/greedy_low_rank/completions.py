"""Matrices completed from a part of their entries, by depth and by least nuclear norm."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from jaxtyping import Float64
    from torch import Generator, Tensor

CONVEX = "nuclear norm"
# Depth and scale of the flows that complete.
DEEP = {f"depth {d}, {s:g}": (d, s) for d, s in ((2, 1e-3), (2, 1e-6), (3, 1e-3), (4, 1e-3))}
METHODS = (CONVEX, *DEEP)
INTERPOLATES = 1e-2  # of the norm of what was seen
# Half of a real matrix is seen; of one of rank two, so few that least nuclear norm misses it.
_SEEN = {"low-rank": 0.25, "digits": 0.5, "tumours": 0.5, "garments": 0.5}

Rows = list[dict[str, Any]]


@dataclass(frozen=True)
class Completion:
    """A matrix completed from a part of its entries by products of factors and by convex means."""

    matrix: str
    rows: int
    columns: int
    seed: int


def complete(trial: Completion) -> Rows:
    """Hold-out error and effective rank where each method interpolates, and at its best stop."""
    import numpy as np
    import torch

    from undertow import measure, train
    from undertow.train.flows import Event, factored_flow

    generator = torch.Generator().manual_seed(trial.seed)
    matrix = matrix_of(trial, generator)
    part = torch.rand(matrix.shape, generator=generator)
    known, held_out = part < _SEEN[trial.matrix], part > 0.75
    chosen_by = (part > 0.5) & (part < 0.75)

    def record(method: str, matrices: Tensor, scale: float | None, steps: int) -> dict[str, Any]:
        def error(entries: Tensor) -> Tensor:
            missed = ((matrices - matrix) * entries).square().sum((-2, -1))
            return (missed / (matrix * entries).square().sum()).sqrt()

        best, held = int(error(chosen_by).argmin()), error(held_out)
        singular = torch.linalg.svdvals(matrices[-1])
        return {
            "method": method,
            "scale": scale,
            "missed": float(error(known)[-1]),
            "error": float(held[-1]),
            "best_error": float(held[best]),
            "effective_rank": float(measure.spectrum_ranks(singular).effective_rank),
            "steps": steps,
        }

    paths = [
        train.nuclear_norm_completion(matrix, known, penalty=penalty, rtol=1e-4)
        for penalty in [*np.geomspace(0.5, 1e-3, 8).tolist(), 0.0]
    ]
    fitted = torch.stack([path.matrix for path in paths])
    rows = [record(CONVEX, fitted, None, sum(path.iterations for path in paths))]
    loss, (height, width) = train.completion_loss(matrix, known), matrix.shape
    level = INTERPOLATES**2 * float(loss(torch.zeros_like(matrix)))
    learned = Event(lambda found: loss(found) - level, terminal=True)
    times = np.geomspace(1, 1e5, 150).tolist()
    for method, (depth, scale) in DEEP.items():
        size = scale ** (1 / depth) / math.sqrt(width)
        drawn = torch.randn(
            height + (depth - 1) * width, width, generator=generator, dtype=torch.float64
        )
        start = (size * drawn).split([height, *[width] * (depth - 1)])
        flow = factored_flow(loss, start, times, events=[learned], rtol=1e-4, atol=1e-5 * size)
        rows.append(record(method, flow.parameters, scale, flow.steps))
    return rows


def matrix_of(trial: Completion, generator: Generator) -> Float64[Tensor, "rows columns"]:
    """A matrix of spectral norm one; of mean zero where it is a part of a table."""
    import torch

    from undertow import data

    shape, double = (trial.rows, trial.columns), torch.float64
    if trial.matrix == "low-rank":
        left, right = (
            torch.randn(size, 2, generator=generator, dtype=double) / math.sqrt(size)
            for size in shape
        )
        whole = left @ right.T
    else:
        table = data.load_table(trial.matrix)
        if shape[0] > len(table) or shape[1] > table.shape[1]:
            raise ValueError(f"{trial.matrix} has at most {tuple(table.shape)}, got {shape}")
        rows, columns = (
            torch.randperm(most, generator=generator)[:size]
            for most, size in zip(table.shape, shape, strict=True)
        )
        whole = table[rows][:, columns]
        whole = whole - whole.mean()
    return whole / torch.linalg.matrix_norm(whole, 2)
