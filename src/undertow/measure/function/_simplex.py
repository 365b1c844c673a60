"""How far the rows of a matrix are from a regular simplex around zero.

The geometry of neural collapse: class means and classifier rows of equal norms and equal angles.
"""

from __future__ import annotations

import math

import torch
from jaxtyping import Float64
from torch import Tensor


def unit(matrix: Tensor) -> Tensor:
    """Divided by its norm, unless that is zero."""
    norm = matrix.norm()
    return matrix / norm if norm > 0 else matrix


def distance_to_simplex(centered: Float64[Tensor, "classes features"]) -> float:
    """Of the Gram matrix of class means from that of a simplex, both of norm one."""
    classes = len(centered)
    simplex = torch.eye(classes).to(centered) - 1 / classes
    return float((unit(centered @ centered.T) - simplex / math.sqrt(classes - 1)).norm())


def regularity(
    rows: Float64[Tensor, "classes features"], rounding: float = 0.0
) -> tuple[float, float]:
    """Coefficient of variation of the norms, and mean |cosine + 1 / (C - 1)| over pairs.

    NaN where a row is zero, up to rounding, and so has no direction.
    """
    norms = rows.norm(dim=1)
    if (norms <= rounding).any():
        return math.nan, math.nan
    directions = rows / norms[:, None]
    apart = ~torch.eye(len(rows), dtype=torch.bool, device=rows.device)
    cosines = (directions @ directions.T)[apart]
    spread = float(norms.std(correction=0) / norms.mean())
    return spread, float((cosines + 1 / (len(rows) - 1)).abs().mean())
