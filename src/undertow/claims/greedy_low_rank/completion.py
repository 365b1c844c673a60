"""Whole matrices completed from a part of their entries: products of factors, and convex means."""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import reduce
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from jaxtyping import Bool, Float64
    from torch import Generator, Tensor

    from undertow.train.flows import GradientFlow

CONVEX = "nuclear norm"
# Depth and scale of the flows.
DEEP = {f"depth {d}, {s:g}": (d, s) for d, s in ((2, 1e-3), (2, 1e-6), (3, 1e-3), (4, 1e-3))}
METHODS = (CONVEX, *DEEP)
INTERPOLATES = 1e-2  # of the norm of what was seen
# Half of a real matrix is seen; of one of rank two, so few that least nuclear norm misses it.
_SEEN = {"low-rank": 0.25, "digits": 0.5, "tumours": 0.5}


@dataclass(frozen=True)
class Completion:
    """A matrix completed from a part of its entries by products of factors and by convex means."""

    matrix: str
    rows: int
    columns: int
    seed: int


def complete(trial: Completion) -> list[dict[str, Any]]:
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
        for penalty in [*np.geomspace(0.5, 1e-3, 12).tolist(), 0.0]
    ]
    fitted = torch.stack([path.matrix for path in paths])
    rows = [record(CONVEX, fitted, None, sum(path.iterations for path in paths))]
    for method, (depth, scale) in DEEP.items():
        flow, matrices = _deep_completion(matrix, known, depth, scale, generator)
        rows.append(record(method, matrices, scale, flow.steps))
    return rows


def matrix_of(trial: Completion, generator: Generator) -> Float64[Tensor, "rows columns"]:
    """A matrix of spectral norm one; of mean zero where it is a part of a table."""
    import torch

    shape, double = (trial.rows, trial.columns), torch.float64
    if trial.matrix == "low-rank":
        left, right = (
            torch.randn(size, 2, generator=generator, dtype=double) / math.sqrt(size)
            for size in shape
        )
        whole = left @ right.T
        return whole / torch.linalg.matrix_norm(whole, 2)
    if trial.matrix == "digits":
        from undertow.data import Images

        table = Images().load().train_inputs.flatten(1).double()
        table = table[:, table.std(0) > 0.3]
    else:
        from sklearn.datasets import load_breast_cancer

        # Lengths, areas and their spreads: logarithms, since radius and area say the same.
        table = torch.from_numpy(load_breast_cancer().data)
        table = torch.log(table + 1e-3 * table.mean(0))
        table = (table - table.mean(0)) / table.std(0)
    rows = torch.randperm(len(table), generator=generator)[: trial.rows]
    columns = torch.randperm(table.shape[1], generator=generator)[: trial.columns]
    if (len(rows), len(columns)) != shape:
        raise ValueError(f"{trial.matrix} has at most {tuple(table.shape)} entries, got {shape}")
    whole = table[rows][:, columns]
    whole = whole - whole.mean()
    return whole / torch.linalg.matrix_norm(whole, 2)


def _deep_completion(
    matrix: Float64[Tensor, "rows columns"],
    known: Bool[Tensor, "rows columns"],
    depth: int,
    scale: float,
    generator: Generator,
) -> tuple[GradientFlow, Float64[Tensor, "times rows columns"]]:
    """The flow of a product of factors until it interpolates, and its matrices on the way."""
    import numpy as np
    import torch

    from undertow import train
    from undertow.train import flows

    rows, columns = matrix.shape
    shapes = [(rows, columns), *[(columns, columns)] * (depth - 1)]
    sizes = [math.prod(shape) for shape in shapes]
    size = scale ** (1 / depth) / math.sqrt(columns)
    start = size * torch.randn(sum(sizes), generator=generator, dtype=torch.float64)
    loss = train.completion_loss(matrix, known)
    level = INTERPOLATES**2 * float(loss(torch.zeros_like(matrix)))

    def whole(flat: Tensor) -> Tensor:
        parts = zip(flat.split(sizes), shapes, strict=True)
        return reduce(torch.matmul, [part.reshape(shape) for part, shape in parts])

    flow = flows.gradient_flow(
        lambda flat: loss(whole(flat)),
        np.geomspace(1, 1e5, 150).tolist(),
        start=start,
        rtol=1e-4,
        atol=1e-5 * size,
        events=[flows.Event(lambda flat: loss(whole(flat)) - level, terminal=True)],
    )
    return flow, torch.stack([whole(flat) for flat in flow.parameters])
