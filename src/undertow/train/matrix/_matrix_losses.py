"""Losses of a matrix: observed entries (completion), and measurements along sensors (sensing)."""

from __future__ import annotations

from collections.abc import Callable

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from undertow.objective import whole_number

MatrixLoss = Callable[[Tensor], Tensor]


def completion_loss(
    observed: Float[Tensor, "rows cols"], mask: Bool[Tensor, "rows cols"]
) -> MatrixLoss:
    """f(W) = 1/2 sum over observed (i, j) of (W_ij - observed_ij)^2, in float64.

    Args:
        observed: `[rows, cols]`; entries outside the mask are not looked at, and may be NaN.
        mask: which entries are observed.

    Returns:
        A function of W `[..., rows, cols]` that gives `[...]`.

    Raises:
        TypeError: if the mask is not boolean.
        ValueError: if shapes differ, no entry is observed, or an observed one is not finite.
    """
    known = observed_entries(observed, mask)
    weights = mask.double()

    def loss(matrix: Tensor) -> Tensor:
        return ((matrix - known) * weights).square().sum((-2, -1)) / 2

    return loss


def observed_entries(observed: Tensor, mask: Tensor) -> Tensor:
    """The observed entries in float64, zero elsewhere."""
    if mask.dtype != torch.bool:
        raise TypeError(f"mask must be boolean, got {mask.dtype}")
    if observed.ndim != 2 or observed.shape != mask.shape:
        raise ValueError(
            f"observed and mask must be matrices of one shape, got {tuple(observed.shape)} and "
            f"{tuple(mask.shape)}"
        )
    if not bool(mask.any()):
        raise ValueError("mask must hold at least one observed entry, got none")
    if not bool(torch.isfinite(observed[mask]).all()):
        raise ValueError("observed holds NaN or infinite entries under the mask; unmask those")
    return torch.where(mask, observed.detach().double(), 0.0)


def sensing_loss(
    sensors: Float[Tensor, "measurements rows cols"], measurements: Float[Tensor, " measurements"]
) -> MatrixLoss:
    """f(W) = 1/(2m) sum_i (<A_i, W> - y_i)^2, in float64.

    Gradient flow on 1/2 f(U U^T) follows dU/dt = -M(U U^T - X) U with M = 1/m sum_i A_i <A_i, .>
    for y_i = <A_i, X> and symmetric sensors. More measurements than entries are compressed once,
    by a QR factorisation, so that an evaluation costs at most (rows cols)^2, and the loss keeps its
    digits near zero.

    Args:
        sensors: A_i, `[measurements, rows, cols]`; see `gaussian_sensors`.
        measurements: y, `[measurements]`.

    Returns:
        A function of W `[..., rows, cols]` that gives `[...]`.

    Raises:
        ValueError: if shapes do not fit, or a value is not finite.
    """
    if sensors.ndim != 3 or len(sensors) == 0 or measurements.shape != sensors.shape[:1]:
        raise ValueError(
            "sensors must be [measurements, rows, cols] with one measurement each, got "
            f"{tuple(sensors.shape)} and {tuple(measurements.shape)}"
        )
    for name, values in (("sensors", sensors), ("measurements", measurements)):
        if not bool(torch.isfinite(values).all()):
            raise ValueError(f"{name} hold NaN or infinite values")
    count = len(sensors)
    rows = sensors.detach().double().flatten(1) / count**0.5
    wanted = measurements.detach().double() / count**0.5
    rest = wanted.new_zeros(())
    if count > rows.shape[1]:
        basis, rows = torch.linalg.qr(rows)
        compressed = basis.T @ wanted
        rest = (wanted - basis @ compressed).square().sum()
        wanted = compressed

    def loss(matrix: Tensor) -> Tensor:
        residual = matrix.flatten(-2) @ rows.T - wanted
        return (residual.square().sum(-1) + rest) / 2

    return loss


def gaussian_sensors(
    count: int, dim: int, *, generator: torch.Generator
) -> Float[Tensor, "count dim dim"]:
    """Symmetric gaussian sensors, scaled so that <A, W>^2 has mean ||W||_F^2 for symmetric W.

    Diagonal entries have variance 1 and the others 1/2: as they come in pairs, 1/count sum_i A_i
    <A_i, .> is the identity on symmetric matrices in expectation.

    Raises:
        TypeError: if `count` or `dim` is not a whole number.
        ValueError: if one of them is below 1.
    """
    whole_number("count", count, least=1)
    whole_number("dim", dim, least=1)
    drawn = torch.randn(count, dim, dim, generator=generator, dtype=torch.float64)
    return (drawn + drawn.mT) / 2
