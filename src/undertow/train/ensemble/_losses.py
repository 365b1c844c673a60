"""A batch's loss as the ensemble trainer needs it: a recognised closed form, or a function.

What may be a loss, and which targets make sense, is decided by `undertow.objective`.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from types import FunctionType
from typing import Any, Literal

import torch
from jaxtyping import Shaped
from torch import Tensor, nn
from torch.nn import functional

from undertow.objective import as_sum_and_count, check_targets

LossLike = nn.Module | Callable[[Tensor, Tensor], Tensor]
Kind = Literal["cross_entropy", "mean_squared_error", "other"]

_FUNCTIONS: dict[Any, Callable[[], nn.Module]] = {
    functional.cross_entropy: nn.CrossEntropyLoss,
    functional.nll_loss: nn.NLLLoss,
    functional.mse_loss: nn.MSELoss,
}
_ELEMENTWISE = (nn.MSELoss, nn.L1Loss, nn.SmoothL1Loss, nn.HuberLoss)


@dataclass(frozen=True, eq=False)
class BatchLoss:
    """The loss of a batch, once it is known to fit the outputs and the targets.

    Attributes:
        kind: `cross_entropy` and `mean_squared_error` have closed-form gradients.
        mean: (outputs, targets) -> scalar, the mean over the batch; checks nothing.
        sum_and_count: the same as `objective.as_sum_and_count`, with its checks.
        check: raises ValueError on targets that the loss cannot take.
    """

    kind: Kind
    mean: Callable[[Tensor, Tensor], Tensor]
    sum_and_count: Callable[[Tensor, Tensor, int], tuple[Tensor, Tensor]]
    check: Callable[[Tensor], None]


def named_module(loss: LossLike) -> LossLike:
    """A loss function of `torch.nn.functional` as the module of the same loss."""
    return _FUNCTIONS[loss]() if isinstance(loss, FunctionType) and loss in _FUNCTIONS else loss


def cast_targets(loss: LossLike, targets: Tensor, dtype: torch.dtype) -> Tensor:
    """Targets in the type that the loss computes with: labels as int64, numbers as `dtype`."""
    if targets.is_floating_point() or isinstance(loss, _ELEMENTWISE):
        return targets.detach().to(dtype)
    return targets.long() if isinstance(loss, nn.CrossEntropyLoss | nn.NLLLoss) else targets


def resolve(
    loss: LossLike,
    outputs: Shaped[Tensor, "few ..."],
    targets: Shaped[Tensor, "n ..."],
    *,
    perturbed: bool = False,
) -> BatchLoss:
    """The loss as a `BatchLoss`, tried on a few outputs and checked against all targets.

    Where targets will be `perturbed`, closed forms that hold for these targets only do not count.

    Raises:
        ValueError: a label is out of range, the shapes do not fit, or the loss returns neither
            the batch's mean nor one value a sample.
    """
    sum_and_count = as_sum_and_count(loss)
    few = len(outputs)

    def check(targets: Tensor) -> None:
        check_targets(loss, outputs[:1].expand(len(targets), *outputs.shape[1:]), targets)

    check(targets)
    try:
        sum_and_count(outputs, targets[:1].expand(few, *targets.shape[1:]), few)
    except (RuntimeError, IndexError) as error:
        raise ValueError(
            f"the loss cannot compare outputs of shape {tuple(outputs.shape[1:])} a sample with "
            f"targets of shape {tuple(targets.shape[1:])} and type {targets.dtype} (class labels "
            f"are whole numbers, one a sample): {error}"
        ) from error

    def mean(outputs: Tensor, targets: Tensor) -> Tensor:
        value = loss(outputs, targets)
        return value.mean() if value.ndim else value

    return BatchLoss(_kind(loss, outputs, targets, perturbed), mean, sum_and_count, check)


def _kind(loss: LossLike, outputs: Tensor, targets: Tensor, perturbed: bool) -> Kind:
    """Which closed form the loss has on these targets, and on what they may become."""
    if outputs.ndim != 2:
        return "other"
    if type(loss) is nn.MSELoss:
        return "mean_squared_error"
    if type(loss) is nn.CrossEntropyLoss and loss.weight is None and loss.label_smoothing == 0:
        if not targets.is_floating_point():
            closed = not bool((targets == loss.ignore_index).any())
            closed &= not (perturbed and 0 <= loss.ignore_index < outputs.shape[1])
        elif perturbed:
            closed = False
        else:  # the gradient is softmax - targets only where the targets sum to one
            rounding = 4 * targets.shape[1] * torch.finfo(targets.dtype).eps
            closed = bool(((targets.sum(1) - 1).abs() <= rounding).all())
        return "cross_entropy" if closed else "other"
    return "other"
