"""How far training moves weights: in a plain norm, decay, drift and noise look alike.

A displacement is split along the weights and across them, and by what runs from the same weights
share and what they do not.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from undertow.measure.weights._weights import Include, weight_matrices


@dataclass(frozen=True)
class Displacement:
    """How far all weight matrices together have moved, relative to their Frobenius norm ||W||.

    With W_k what the k-th of K runs from W has got to, D_k = (W_k - W) / ||W|| and U = W / ||W||:

    Attributes:
        total: sqrt(mean_k ||D_k||^2).
        radial: mean_k <D_k, U>, negative toward zero. Decay alone gives -lr x weight_decay a step.
        tangential: sqrt(total^2 - radial^2).
        noise: sqrt(sum_k ||D_k - mean_j D_j||^2 / (K - 1)), the spread of the runs about their
            mean: of runs that differ in the order of the data, what depends on it. None of one run.
    """

    total: float
    radial: float
    tangential: float
    noise: float | None = None


def displacement(
    before: nn.Module | Mapping[str, Any],
    *after: nn.Module | Mapping[str, Any],
    include: Include = None,
) -> Displacement:
    """How far weights have moved, along themselves and across, and how much of it is noise.

    A flat plateau of ||W_(e+1) - W_e|| / ||W_e|| over epochs shows no noise by itself: it may be
    shrinkage, which is radial, or a drift that all orders of the data share. All parts are NaN
    where weights are.

    Args:
        before: the network, or its state dict; a copy where it was trained in place.
        after: where one run or several from there have got to, networks or state dicts.
        include: names of the matrices to count, or a function of the name; by default all.

    Raises:
        TypeError: something is neither a module nor a mapping.
        ValueError: nothing in `after`, weights that are all zero before, or matrices of other names
            or shapes after.
    """
    if not after:
        raise ValueError("after must hold the weights of at least one run, got none")
    start = weights_of(before, include)
    flat = torch.cat([matrix.flatten() for matrix in start.values()])
    norm = flat.norm()
    if norm == 0:
        raise ValueError("before must hold weights that are not all zero")
    moved = []
    for end in after:
        found = weights_of(end, include)
        for name, matrix in start.items():
            if name not in found or found[name].shape != matrix.shape:
                raise ValueError(f"after must hold {name} of shape {tuple(matrix.shape)}")
        steps = [(found[name] - matrix).flatten() for name, matrix in start.items()]
        moved.append(torch.cat(steps) / norm)
    moves = torch.stack(moved)
    total = float(moves.square().sum(1).mean().sqrt())
    radial = float((moves @ flat).mean() / norm)
    return Displacement(
        total,
        radial,
        math.sqrt(max(total**2 - radial**2, 0.0)) if math.isfinite(total) else math.nan,
        float(moves.var(0, correction=1).sum().sqrt()) if len(moves) > 1 else None,
    )


def weights_of(weights: nn.Module | Mapping[str, Any], include: Include) -> dict[str, torch.Tensor]:
    """All weight matrices in float64, by name."""
    return {name: own.double() for name, own in as_they_lie(weights, include).items()}


def as_they_lie(
    weights: nn.Module | Mapping[str, Any], include: Include
) -> dict[str, torch.Tensor]:
    """All weight matrices by name, in their own type and memory where it is theirs."""
    found, _ = weight_matrices(weights, include, check_finite=False)
    return {item.name: item.matrix.detach() for item in found}
