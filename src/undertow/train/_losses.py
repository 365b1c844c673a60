"""A batch's loss as the ensemble trainer needs it: a recognised closed form, or a function."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional

LossLike = nn.Module | Callable[[Tensor, Tensor], Tensor]


@dataclass(frozen=True)
class BatchLoss:
    """The mean loss of a batch.

    Attributes:
        kind: `cross_entropy` and `mean_squared_error` have closed-form gradients.
        mean: (outputs, targets) -> scalar, the mean over the batch.
    """

    kind: Literal["cross_entropy", "mean_squared_error", "other"]
    mean: Callable[[Tensor, Tensor], Tensor]


def resolve(loss: LossLike) -> BatchLoss:
    """A loss module or function as a `BatchLoss`; a per-sample loss is averaged over the batch."""
    if not callable(loss):
        raise TypeError(
            f"loss must be an nn.Module or a function of (outputs, targets), got {loss!r}; "
            "torch.nn.functional.cross_entropy would do"
        )
    kind: Literal["cross_entropy", "mean_squared_error", "other"] = "other"
    if loss is functional.cross_entropy or _is_plain_cross_entropy(loss):
        kind = "cross_entropy"
    elif loss is functional.mse_loss or (
        type(loss) is nn.MSELoss and loss.reduction in ("mean", "none")
    ):
        kind = "mean_squared_error"
    return BatchLoss(kind, lambda outputs, targets: _mean(loss, outputs, targets))


def _is_plain_cross_entropy(loss: LossLike) -> bool:
    return (
        type(loss) is nn.CrossEntropyLoss
        and loss.reduction in ("mean", "none")
        and loss.weight is None
        and loss.label_smoothing == 0
    )


def _mean(loss: LossLike, outputs: Tensor, targets: Tensor) -> Tensor:
    value = loss(outputs, targets)
    if value.ndim == 0:
        return value
    if value.shape[0] == len(outputs) and value.numel() in (len(outputs), outputs.numel()):
        return value.mean()
    raise ValueError(
        f"the loss returned a tensor of shape {tuple(value.shape)} for a batch of {len(outputs)}; "
        "it must return the batch's mean (a scalar) or one value a sample (shape [batch])"
    )


def check_targets(kind: str, outputs: Tensor, targets: Tensor) -> None:
    """Raise where targets cannot be meant for outputs `[n, ...]` of this loss."""
    if targets.is_floating_point() and not bool(torch.isfinite(targets).all()):
        raise ValueError("the targets hold NaN or infinite values; clean or drop those samples")
    if kind == "cross_entropy" and not targets.is_floating_point():
        classes = outputs.shape[1]
        low, high = int(targets.min()), int(targets.max())
        if low < 0 or high >= classes:
            raise ValueError(
                f"labels must lie in 0..{classes - 1} for a network with {classes} outputs, "
                f"got {low}..{high}; renumber the labels or widen the last layer"
            )
    if kind == "mean_squared_error" and targets.shape[1:] != outputs.shape[1:]:
        raise ValueError(
            f"targets of shape {tuple(targets.shape[1:])} a sample do not match outputs of shape "
            f"{tuple(outputs.shape[1:])}; one-hot encode or reshape them"
        )
