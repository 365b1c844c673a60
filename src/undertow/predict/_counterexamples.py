"""Completions whose solution of rank one has more nuclear norm than necessary, in closed form.

Source: Li, Luo and Lyu (2012.09839), who answer with them that factors do not minimise it.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np

from undertow.predict._arguments import positive

if TYPE_CHECKING:
    from jaxtyping import Float64

# Rows and columns of what is observed: 1, and twice the strength.
_PLACES = {3: ((0, 1), (0, 2), (1, 2)), 4: ((0, 1), (0, 2), (1, 3))}


@dataclass(frozen=True)
class CompletionCounterexample:
    """A symmetric matrix of which three entries and their mirrors are observed.

    Attributes:
        observed: `[dim, dim]`, zero where nothing is.
        rank_one: the trace of its positive semidefinite completion of rank one; of 4x4, where
            there is a family of them, the least, to which greedy low-rank learning goes.
        least: the least trace of a positive semidefinite completion, which is its nuclear norm.
        gap: of the two largest eigenvalues of `observed`, relative to the first: the smaller it
            is, the smaller the start must be from which factors go to rank one.
    """

    observed: Float64[np.ndarray, "dim dim"] = field(repr=False)
    rank_one: float
    least: float
    gap: float


def completion_counterexample(dim: int, strength: float) -> CompletionCounterexample:
    """The 3x3 or 4x4 problem: 1 is observed at (1, 2), `strength` at (1, 3) and (2, 3) or (2, 4).

    With a strength of R, rank one has the trace R^2 + 2 or 2 R^2 + 2, and the least is 4 R - 2 or
    4 R; of 3x3 with R up to 2 the two are one.

    Args:
        dim: 3 or 4.
        strength: R, above 0; of 4x4 at least 1.

    Raises:
        ValueError: if an argument is out of range.
    """
    if dim not in _PLACES:
        raise ValueError(f"dim must be 3 or 4, got {dim!r}")
    strength = positive("strength", strength)
    if dim == 4 and strength < 1:
        raise ValueError(f"strength must be at least 1 for a dim of 4, got {strength:g}")
    observed = np.zeros((dim, dim))
    for (row, column), value in zip(_PLACES[dim], (1.0, strength, strength), strict=True):
        observed[row, column] = observed[column, row] = value
    rank_one = (dim - 2) * strength**2 + 2
    least = 4 * strength if dim == 4 else 4 * strength - 2 if strength > 2 else rank_one
    first, second = np.linalg.eigvalsh(observed)[:-3:-1]
    return CompletionCounterexample(observed, rank_one, least, float(1 - second / first))
