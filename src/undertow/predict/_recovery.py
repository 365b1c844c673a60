"""What m gaussian measurements of a positive semidefinite matrix determine, in closed form.

Source: Amelunxen, Lotz, McCoy and Tropp, "Living on the edge" (2014), for how many; perturbation
of the minimisers of 2301.11500 about their limit (our derivation) for how well.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from undertow.predict._arguments import count


@dataclass(frozen=True)
class RecoveryWindow:
    """How many measurements of a positive semidefinite matrix of known size and rank are enough.

    Attributes:
        freedom: dimension of the matrices of this rank, d r - r (r - 1) / 2: from fewer
            measurements nothing recovers, since a family of such matrices has the same.
        positive: freedom + (d - r) (d - r + 1) / 4: from more, no other positive semidefinite
            matrix has the same, and whatever fits U U^T to them has recovered it. In between it
            takes a bias to low rank.
    """

    freedom: int
    positive: float

    def __repr__(self) -> str:
        return (
            f"None recover from fewer than {self.freedom} measurements, all that fit from more "
            f"than {self.positive:g}; between them, a bias to low rank."
        )


def recovery_window(dim: int, rank: int) -> RecoveryWindow:
    """Between which numbers of measurements recovery of U U^T speaks of a bias to low rank.

    The second is the statistical dimension of the cone of directions in which the matrix stays
    positive semidefinite: a space of dimension `freedom`, and the positive semidefinite matrices
    on its null space, whose statistical dimension is half of their space's. Gaussian measurements
    determine it with more than that many, up to some square root of it.

    Args:
        dim: rows of the matrix.
        rank: of the matrix, at most `dim`.

    Raises:
        TypeError: if one is no whole number.
        ValueError: if one is out of range.
    """
    dim, rank = count("dim", dim, least=1), count("rank", rank, least=0)
    if rank > dim:
        raise ValueError(f"rank must be at most dim = {dim}, got {rank}")
    freedom, rest = dim * rank - rank * (rank - 1) // 2, dim - rank
    return RecoveryWindow(freedom, freedom + rest * (rest + 1) / 4)


def minimiser_shift(
    eigenvalues: Sequence[float], rank: int, *, dim: int, measurements: int
) -> float:
    """How far the minimiser Z_s of rank s lies from the truncation X_s of the truth: its rms norm.

    To first order the minimiser of <W - X, M(W - X)> over rank s moves by (M - 1)(R)_ij times
    x_i / (x_i - x_j) in the eigenvectors of X, for i <= s < j, and times one for i, j <= s;
    R = X - X_s. Gaussian measurements give (M - 1)(R)_ij the variance ||R||^2 / 2m off the
    diagonal, and twice that on it. So the mean square is

        ||R||^2 / m x (s (s + 1) / 2 + sum over i <= s < j of (x_i / (x_i - x_j))^2).

    Args:
        eigenvalues: of X, those above zero, in descending order.
        rank: s.
        dim: rows of X.
        measurements: m, along symmetric gaussian sensors (`train.gaussian_sensors`).

    Raises:
        TypeError: if a count is no whole number.
        ValueError: if an argument is out of range, or the gap behind the s-th eigenvalue is zero.
    """
    dim, measurements = count("dim", dim, least=1), count("measurements", measurements, least=1)
    rank = count("rank", rank, least=1)
    given = np.asarray(eigenvalues, dtype=np.float64)
    falling = given.ndim == 1 and len(given) and (given > 0).all() and (np.diff(given) <= 0).all()
    if not falling or len(given) > dim:
        raise ValueError(
            f"eigenvalues must be at most dim = {dim} numbers above 0 in descending order, got "
            f"{list(eigenvalues)}"
        )
    if rank > len(given):
        raise ValueError(f"rank must be at most the {len(given)} eigenvalues, got {rank}")
    every = np.concatenate([given, np.zeros(dim - len(given))])
    kept, left = every[:rank, None], every[rank:]
    if len(left) and kept[-1, 0] == left[0]:
        raise ValueError(
            f"eigenvalues must have a gap after the first {rank}, got {list(eigenvalues)}"
        )
    parts = rank * (rank + 1) / 2 + float(np.square(kept / (kept - left)).sum())
    return math.sqrt(float(np.square(left).sum()) / measurements * parts)
