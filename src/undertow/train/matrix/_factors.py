"""A matrix as a product of factors of a given rank, balanced, and as one flat vector.

Gradient flow on balanced factors is the end-to-end flow dW/dt = -sum_{l<L} (WW^T)^(l/L) grad f(W)
(W^TW)^((L-1-l)/L) of depth L (Arora, Cohen and Hazan 2018), kept to the rank of the factors.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Float64
from torch import Tensor

# M is this times N + N^T: the middle factor stands alone, so that its gradient is to count twice.
_MIDDLE = 0.5**0.5

Flat = Float64[Tensor, " variables"]
Matrix = Float64[Tensor, "rows cols"]


@dataclass(frozen=True)
class Factors:
    """W = W_L ... W_1 with inner widths of `rank`, one vector of variables.

    `tied` for symmetric positive semidefinite W: the factors to the right are the transposes of
    those to the left, W = P P^T, or P M P^T with M symmetric for an odd depth. Gradient flow on all
    factors keeps such a product so where grad f is symmetric, but rounding does not.
    """

    rows: int
    cols: int
    rank: int
    depth: int
    tied: bool

    @property
    def shapes(self) -> list[tuple[int, int]]:
        """Of the factors that are variables, from the left on."""
        own = self.depth // 2 + self.depth % 2 if self.tied else self.depth - 1
        left = [(self.rows, self.rank), *[(self.rank, self.rank)] * (own - 1)]
        return left if self.tied else [*left, (self.rank, self.cols)]

    @property
    def share(self) -> float:
        """Gradient flow of the variables on `share` x f is that of all factors on f.

        A tied factor has the gradients of two.
        """
        return 0.5 if self.tied else 1.0

    def product(self, flat: Flat) -> Matrix:
        """The end-to-end matrix."""
        sizes = [rows * cols for rows, cols in self.shapes]
        parts = zip(flat.split(sizes), self.shapes, strict=True)
        factors = [part.view(shape) for part, shape in parts]
        middle = factors.pop() if self.tied and self.depth % 2 else None
        left = factors[0]
        for factor in factors[1:]:
            left = left @ factor
        if middle is not None:
            return left @ ((middle + middle.T) * _MIDDLE) @ left.T
        return left @ left.T if self.tied else left

    def balanced(self, matrix: Matrix) -> Flat:
        """Balanced factors of a matrix of at most this rank (positive semidefinite, if tied)."""
        if self.tied:
            values, left = torch.linalg.eigh(matrix)
            left, values = left.flip(1), values.flip(0).clamp_min(0)
        else:
            left, values, right = torch.linalg.svd(matrix, full_matrices=False)
        root = values[: self.rank] ** (1 / self.depth)
        parts = [torch.diag(root) for _ in self.shapes]
        parts[0] = left[:, : self.rank] * root
        if not self.tied:
            parts[-1] = root[:, None] * right[: self.rank]
        elif self.depth % 2:
            parts[-1] = parts[-1] / (2 * _MIDDLE)
        return torch.cat([part.flatten() for part in parts])
