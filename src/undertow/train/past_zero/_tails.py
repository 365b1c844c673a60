"""Losses with an exponential tail, in the log domain, where they may lie below any float.

arXiv 1906.05890, assumption (B3): l(q) = e^(-f(q)) of a margin q, with f' > 0 and q f'(q) rising
beyond some point; the smoothed margin of a network of degree L is f^-1(log(1 / Loss)) / rho^L, with
Loss summed over the samples.
"""

from __future__ import annotations

import math
from typing import Literal, get_args

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn import functional

Tail = Literal["logistic", "exponential", "cubic"]

# Below this, log(1 + e^x) and e^x - 1 are e^x to the last bit of float64.
_TINY_LOG = -37.0


def check_tail(loss: str) -> None:
    """Raise ValueError unless it is a loss of the family."""
    if loss not in get_args(Tail):
        raise ValueError(
            f"loss must be {', '.join(get_args(Tail))}, got {loss!r}: only losses with an "
            "exponential tail have a margin to grow"
        )


def log_losses(
    outputs: Float[Tensor, "*samples classes"],
    labels: Int[Tensor, "*samples"],
    *,
    loss: Tail = "logistic",
) -> Float[Tensor, "*samples"]:
    """The log of each sample's loss, differentiable, also where the loss is below any float.

    With s the scores and y the label: "logistic" is the cross-entropy, log log(1 + e^-q) with
    q = s_y - log sum_{j != y} e^(s_j); "exponential" is -q and "cubic" -q^3 of the hard margin
    q = s_y - max_{j != y} s_j. For a label of two classes the two margins are the same. The
    gradient of `log_losses(...).logsumexp(0)` is that of the log of the summed loss: what gradient
    descent follows at a learning rate of alpha / loss.

    Args:
        outputs: scores of two classes or more.
        labels: from 0 to one less than there are classes.
        loss: which; e^(-q^3) has its tail at q > 0 alone, so begin with separated data.

    Raises:
        ValueError: another loss, or outputs of one column.
    """
    check_tail(loss)
    margins = score_margins(outputs, labels, soft=loss == "logistic")
    return -exponent(margins, loss)


def score_margins(outputs: Tensor, labels: Tensor, *, soft: bool) -> Tensor:
    """The label's score less the best other one, or less the log-sum-exp of the others."""
    if outputs.shape[-1] < 2:
        raise ValueError("outputs must hold scores of at least two classes, got one column")
    own = outputs.gather(-1, labels[..., None])[..., 0]
    others = outputs.scatter(-1, labels[..., None], -math.inf)
    return own - (others.logsumexp(-1) if soft else others.amax(-1))


def exponent(margins: Tensor, loss: Tail) -> Tensor:
    """The exponent f(q) of the loss e^(-f(q))."""
    if loss == "exponential":
        return margins
    if loss == "cubic":
        return margins**3
    far = -margins < _TINY_LOG
    near = functional.softplus((-margins).clamp(min=_TINY_LOG)).log()
    return torch.where(far, margins, -near)


def smoothed(log_loss: Tensor, loss: Tail) -> Tensor:
    """The margin f^-1(log(1 / Loss)) of one sample that had all the loss, from log Loss."""
    if loss == "exponential":
        return -log_loss
    if loss == "cubic":
        return -log_loss.sign() * log_loss.abs().pow(1 / 3)
    total = log_loss.clamp(max=700.0).exp()
    near = -(total + (-torch.expm1(-total)).log())
    return torch.where(log_loss < _TINY_LOG, -log_loss, near)


def log_threshold(loss: Tail) -> float:
    """The log of the summed loss below which the smoothed margin is positive."""
    return math.log(math.log(2)) if loss == "logistic" else 0.0
