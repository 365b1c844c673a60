"""Symmetric matrices measured by sensors, as quadratic forms over their upper triangles.

A form costs a quarter of the one over all entries, however many sensors there are, and forms of
many problems are evaluated as one.
"""

from __future__ import annotations

import torch
from jaxtyping import Float, Float64
from torch import Tensor

from undertow.train.matrix._matrix_losses import MatrixLoss


def symmetric_coordinates(
    matrices: Float[Tensor, "*shape dim dim"],
) -> Float[Tensor, "*shape coordinates"]:
    """The upper triangles of symmetric matrices, off-diagonal entries times sqrt(2): an isometry.

    Raises:
        ValueError: the matrices are not square.
    """
    if matrices.ndim < 2 or matrices.shape[-1] != matrices.shape[-2]:
        raise ValueError(f"matrices must be square, got shape {tuple(matrices.shape)}")
    dim = matrices.shape[-1]
    row, column = torch.triu_indices(dim, dim)
    weights = torch.where(row == column, 1.0, 2.0).to(matrices).sqrt()
    return matrices.flatten(-2).index_select(-1, row * dim + column) * weights


def sensor_gram(
    sensors: Float[Tensor, "measurements dim dim"],
) -> Float64[Tensor, "coordinates coordinates"]:
    """The form 1/m sum_i <A_i, W>^2 of symmetric sensors, over `symmetric_coordinates` of W."""
    rows = symmetric_coordinates(sensors.detach().double())
    return rows.T @ rows / len(sensors)


def recovery_loss(
    targets: Float[Tensor, "*problems dim dim"],
    grams: Float[Tensor, "*problems coordinates coordinates"] | None = None,
) -> MatrixLoss:
    """f(W) = 1/(2m) sum_i <A_i, W - X>^2 for symmetric W: `sensing_loss` where X is known.

    Args:
        targets: X.
        grams: of each problem, `sensor_gram` of its sensors; None where every entry is measured,
            f(W) = ||W - X||_F^2 / 2. Their leading axes are broadcast with those of W - X but one:
            problems `[p, 1, dim, dim]` with grams `[p, c, c]` take W of `[p, runs, dim, dim]`.

    Returns:
        A function of symmetric W `[..., dim, dim]` that gives `[...]`.
    """

    def loss(matrices: Tensor) -> Tensor:
        errors = symmetric_coordinates(matrices - targets)
        images = errors if grams is None else errors @ grams
        return (images * errors).sum(-1) / 2

    return loss
