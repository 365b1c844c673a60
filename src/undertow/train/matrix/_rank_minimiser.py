"""The minimiser of a loss among positive semidefinite matrices of a given rank."""

from __future__ import annotations

import torch
from jaxtyping import Float, Float64
from torch import Tensor

from undertow.objective import whole_number
from undertow.train.matrix._factored import factored_descent
from undertow.train.matrix._matrix_losses import MatrixLoss

_SPREAD = 0.3  # standard deviation of the entries of a random start
_EVERY = 50  # steps between looks at whether all is at rest
_AT_REST = 1e-13  # the largest change of an entry from one look to the next


def rank_minimiser(
    loss: MatrixLoss,
    guess: Float[Tensor, "*problems dim dim"],
    rank: int,
    *,
    lr: float,
    generator: torch.Generator,
    starts: int = 3,
    steps: int = 20_000,
) -> Float64[Tensor, "*problems dim dim"]:
    """The lowest minimum of f over U U^T, U `[dim, rank]`, that descent finds.

    It starts from the guess, cut to the rank, and from random U; nothing rules out a lower minimum.

    Args:
        loss: f, from `[*problems, runs, dim, dim]` to `[*problems, runs]`.
        guess: symmetric and positive semidefinite.
        rank: columns of U.
        lr: the step size of `factored_descent`.
        generator: of the random starts.
        starts: how many of them.
        steps: the most to take; fewer where every run is at rest.

    Raises:
        ValueError: if an argument is out of range.
        FloatingPointError: descent diverged; `lr` is too large.
    """
    dim = guess.shape[-1]
    if whole_number("rank", rank, least=1) > dim:
        raise ValueError(f"rank must be at most {dim}, the rows of guess, got {rank}")
    whole_number("starts", starts, least=0)
    values, vectors = torch.linalg.eigh(guess.detach().double())
    root = values[..., None, -rank:].clamp_min(0).sqrt()
    informed = (vectors[..., -rank:] * root)[..., None, :, :]
    shape = (*guess.shape[:-2], starts, dim, rank)
    random = _SPREAD * torch.randn(shape, generator=generator, dtype=torch.float64)
    last: list[Tensor] = []

    def at_rest(step: int, matrices: Tensor) -> bool:
        if step % _EVERY:
            return False
        last.append(matrices.clone())
        return len(last) > 1 and float((last[-1] - last.pop(0)).abs().max()) < _AT_REST

    factors = factored_descent(
        loss, torch.cat([informed, random], -3), lr=lr, steps=steps, observe=at_rest
    )
    matrices = factors @ factors.mT
    best = loss(matrices).argmin(-1)[..., None, None, None]
    return matrices.take_along_dim(best, -3).squeeze(-3)
