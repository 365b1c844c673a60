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

    generator = torch.Generator().manual_seed(trial.seed)
    matrix = matrix_of(trial, generator)
    part = torch.rand(matrix.shape, generator=generator)
    known, held_out = part < _SEEN[trial.matrix], part > 0.75
    chosen_by = (part > 0.5) & (part < 0.75)

    def record(method: str, matrices: Tensor, scale: float | None, steps: int) -> dict[str, Any]:
        parts = (known, chosen_by, held_out)
        seen, chosen, held = (
            train.completion_error(matrices, matrix, entries) for entries in parts
        )
        singular = torch.linalg.svdvals(matrices[-1])
        return {
            "method": method,
            "scale": scale,
            "missed": float(seen[-1]),
            "error": float(held[-1]),
            "best_error": float(held[chosen.argmin()]),
            "effective_rank": float(measure.spectrum_ranks(singular).effective_rank),
            "steps": steps,
        }

    paths = [
        train.nuclear_norm_completion(matrix, known, penalty=penalty, rtol=1e-4)
        for penalty in [*np.geomspace(0.5, 1e-3, 8).tolist(), 0.0]
    ]
    fitted = torch.stack([path.matrix for path in paths])
    rows = [record(CONVEX, fitted, None, sum(path.iterations for path in paths))]
    times = np.geomspace(1, 1e5, 150).tolist()
    for method, (depth, scale) in DEEP.items():
        shape = {"depth": depth, "scale": scale, "residual": INTERPOLATES, "times": times}
        flow = train.completion_flow(matrix, known, **shape, generator=generator)
        rows.append(record(method, flow.parameters, scale, flow.steps))
    return rows


def matrix_of(trial: Completion, generator: Generator) -> Float64[Tensor, "rows columns"]:
    """A matrix of spectral norm one; of mean zero where it is a part of a table."""
    import torch

    from undertow import data

    shape = trial.rows, trial.columns
    if trial.matrix == "low-rank":
        left, right = (
            torch.randn(size, 2, generator=generator, dtype=torch.float64) / math.sqrt(size)
            for size in shape
        )
        whole = left @ right.T
    else:
        table = data.draw_table(trial.matrix, *shape, generator=generator)
        whole = table - table.mean()
    return whole / torch.linalg.matrix_norm(whole, 2)
