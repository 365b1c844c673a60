"""Matrix completion by gradient flow on a deep product of factors, and how well it completes."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from undertow.train import flows
from undertow.train.matrix._matrix_losses import completion_loss
from undertow.train.matrix._starts import gaussian_factors


def completion_flow(
    observed: Float[Tensor, "rows cols"],
    mask: Bool[Tensor, "rows cols"],
    *,
    depth: int,
    scale: float,
    times: Sequence[float],
    generator: torch.Generator,
    residual: float = 1e-2,
    rtol: float = 1e-4,
) -> flows.GradientFlow:
    """The flow of W = W_1 ... W_L on `completion_loss`, until it holds what is observed.

    It starts at `gaussian_factors`, whose inner widths are `cols`.

    Args:
        observed: `[rows, cols]`; entries outside the mask are not looked at, and may be NaN.
        mask: which entries are observed.
        depth: L, at least 1.
        scale: of the start, above 0.
        times: the increasing times to record; the flow ends at the last.
        generator: of the start.
        residual: the flow ends where it misses this share of the observed entries' norm.
        rtol: of the flow's steps; `atol` is a tenth of it, in units of the start.

    Returns:
        The flow of W; its last matrix is the completion, and `stopped` is "event" where it got
        there.

    Raises:
        TypeError: a depth that is no whole number.
        ValueError: if an argument is out of range; and as `completion_loss`.
    """
    if not (math.isfinite(residual) and residual > 0):
        raise ValueError(f"residual must be a finite number above 0, got {residual}")
    loss, (rows, cols) = completion_loss(observed, mask), observed.shape
    level = residual**2 * float(loss(torch.zeros(rows, cols, dtype=torch.float64)))
    learned = flows.Event(lambda matrix: loss(matrix) - level, terminal=True)
    start = gaussian_factors(rows, cols, depth=depth, scale=scale, generator=generator)
    size = scale ** (1 / depth) / math.sqrt(cols)
    return flows.factored_flow(
        loss, start, times, events=[learned], rtol=rtol, atol=rtol / 10 * size
    )


def completion_error(
    matrices: Float[Tensor, "*runs rows cols"],
    truth: Float[Tensor, "rows cols"],
    entries: Bool[Tensor, "rows cols"],
) -> Float[Tensor, "*runs"]:
    """What completions miss of some entries, held out or observed: its norm, relative to theirs.

    Raises:
        ValueError: shapes that do not fit.
    """
    if not matrices.shape[-2:] == truth.shape == entries.shape:
        raise ValueError(
            "matrices, truth and entries must have the same rows and columns, got shapes "
            f"{tuple(matrices.shape)}, {tuple(truth.shape)} and {tuple(entries.shape)}"
        )
    missed = ((matrices - truth) * entries).square().sum((-2, -1))
    return (missed / (truth * entries).square().sum()).sqrt()
