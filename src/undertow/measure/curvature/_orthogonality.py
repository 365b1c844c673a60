"""How far Lanczos vectors have lost their orthogonality, without looking at them.

Rounding grows along a recurrence of its own (Simon, 1984, "The Lanczos algorithm with partial
reorthogonalization"). Vectors whose inner products stay below the root of the rounding unit give
the same Ritz values, up to rounding, as orthogonal ones; so most steps need not read the basis.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

Vector = NDArray[np.float64]

# The first steps read the basis in any case, and tell how exact a product is.
_FULL_STEPS = 6
# Inner products are taken for so many times larger than that.
_SAFETY = 2.0


class Orthogonality:
    """Estimates of |<v_j, v_k>| for the newest Lanczos vectors.

    beta_j+1 w_j+1,k = beta_k+1 w_j,k+1 + (alpha_k - alpha_j) w_j,k + beta_k w_j,k-1
    - beta_j w_j-1,k, up to the rounding of a product.

    Args:
        allowed: the largest inner product that may stay.
        rounding: of one number.
    """

    def __init__(self, allowed: float, rounding: float) -> None:
        self._allowed = allowed
        self._rounding = rounding
        self._error = 0.0  # of <v_k, H v_j>
        self._diagonal: list[float] = []  # alpha_0, alpha_1, ...
        self._beside: list[float] = [0.0]  # beta_0 = 0, beta_1, ...
        self._last: Vector = np.zeros(0)  # w_j-1,k for k <= j - 1
        self._newest: Vector = np.ones(1)  # w_j,k for k <= j; w_j,j = 1
        self._again = False

    def step(self, diagonal: float, length: float) -> bool:
        """Whether the next vector must be orthogonalised against the whole basis.

        Args:
            diagonal: alpha_j = <v_j, H v_j>.
            length: beta_j+1, of what H v_j has outside of the newest two vectors.
        """
        self._diagonal.append(diagonal)
        size = len(self._diagonal)
        if size <= _FULL_STEPS or self._again:
            return True
        return bool(np.abs(self._ahead(length)).max() > self._allowed)

    def taken(self, length: float, removed: Vector | None) -> None:
        """Go on to the next vector.

        Args:
            length: beta_j+1, after orthogonalising.
            removed: inner products that were found with the vectors before the newest two, and
                removed; None if the basis was not read.
        """
        size = len(self._diagonal)
        floor = self._noise() / max(length, 1e-300)
        if removed is None:
            ahead = self._ahead(length)
            self._again = False
        else:
            if len(removed) and size <= _FULL_STEPS:
                self._error = max(self._error, _SAFETY * float(np.abs(removed).max()))
            ahead = np.full(size, min(floor, self._allowed / 10))
            # One more time: the recurrence has two steps of memory.
            self._again = not self._again and size > _FULL_STEPS
        self._beside.append(length)
        self._last, self._newest = self._newest, np.append(ahead, 1.0)

    def _ahead(self, length: float) -> Vector:
        """w_j+1,k for k <= j."""
        newest, last = self._newest, self._last
        j = len(newest) - 1
        alpha, beta = np.array(self._diagonal), np.array([*self._beside, length])
        k = np.arange(j)
        found = beta[k + 1] * newest[k + 1] + (alpha[k] - alpha[j]) * newest[k]
        found[1:] += beta[k[1:]] * newest[k[1:] - 1]
        found -= beta[j] * last[:j]
        noise = self._noise()
        return np.append(found + np.copysign(noise, found), noise) / max(length, 1e-300)

    def _noise(self) -> float:
        """Of a product, in any direction."""
        return self._error + self._rounding * max(map(abs, self._diagonal))
