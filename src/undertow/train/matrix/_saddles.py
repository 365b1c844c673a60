"""The spectra at the saddles that gradient flow on U U^T passes: growth of directions, relaxation.

`predict.saddle_phases` says from them when each phase comes, and how near the flow.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from jaxtyping import Float, Float64
from torch import Tensor

from undertow.train.matrix._matrix_losses import MatrixLoss


@dataclass(frozen=True)
class SaddleSpectra:
    """How fast directions grow at zero and at each minimiser, and how slowly its own errors relax.

    Attributes:
        rates: `[saddles, dim]`, eigenvalues of -grad f in descending order at 0, Z_1, Z_2, ...
        relaxations: `[saddles - 1]`, at Z_s the least eigenvalue of the Hessian of f(U U^T) / 2
            over U `[dim, s]` that no rotation of U's columns explains.
    """

    rates: Float64[Tensor, "saddles dim"] = field(repr=False)
    relaxations: Float64[Tensor, " phases"] = field(repr=False)

    def __repr__(self) -> str:
        tops = ", ".join(f"{float(top):.4g}" for top in self.rates[:, 0])
        slowest = ", ".join(f"{float(rate):.4g}" for rate in self.relaxations)
        return f"Saddles with top growth rates {tops} from zero on, and relaxations {slowest}."


def saddle_spectra(
    loss: MatrixLoss, minimisers: Sequence[Float[Tensor, "dim dim"]]
) -> SaddleSpectra:
    """The spectra at 0 and at the minimisers of f of rank 1, 2, ... (2301.11500, 2012.09839).

    Args:
        loss: f, from W `[dim, dim]` in float64 to a scalar tensor, differentiable twice by
            `torch.func`. Only the symmetric part of its gradient counts.
        minimisers: Z_1, Z_2, ..., symmetric positive semidefinite, Z_s of rank s: such as the
            matrices of the phases of `greedy_low_rank(..., symmetric=True)`.

    Raises:
        ValueError: no minimisers, or one that is not square.
    """
    given = [matrix.detach().double() for matrix in minimisers]
    shapes = {tuple(matrix.shape) for matrix in given}
    if len(shapes) != 1 or len(shape := shapes.pop()) != 2 or shape[0] != shape[1]:
        raise ValueError(
            "minimisers must be one or more square matrices of one size, got shapes "
            f"{[tuple(matrix.shape) for matrix in given]}"
        )
    rates = []
    for matrix in (torch.zeros_like(given[0]), *given):
        gradient = torch.func.grad(loss)(matrix)
        rates.append(torch.linalg.eigvalsh(-(gradient + gradient.T) / 2).flip(0))
    relaxations = [_relaxation(loss, matrix, rank) for rank, matrix in enumerate(given, start=1)]
    return SaddleSpectra(torch.stack(rates).detach(), torch.stack(relaxations))


def _relaxation(loss: MatrixLoss, minimiser: Tensor, rank: int) -> Tensor:
    values, vectors = torch.linalg.eigh(minimiser)
    factor = vectors[:, -rank:] * values[-rank:].clamp_min(0).sqrt()

    def energy(flat: Tensor) -> Tensor:
        found = flat.view(factor.shape)
        return loss(found @ found.T) / 2

    hessian = torch.func.jacrev(torch.func.grad(energy))(factor.flatten()).detach()
    spectrum = torch.linalg.eigvalsh((hessian + hessian.T) / 2)
    return spectrum[rank * (rank - 1) // 2]  # the rotations of U's columns are flat
