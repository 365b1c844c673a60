"""What an objective needs of a loss: sums, denominators and curvature that add up over batches.

The loss is given, or it is the one that a Hugging Face-style model computes from its labels.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional

from undertow._losses import (
    Loss,
    OutputProduct,
    as_module,
    as_sum_and_count,
    denominators,
    in_type_of,
    logits_of,
    output_hessian,
    per_sample_sums,
)

# The label that the losses inside Hugging Face models ignore.
_OWN_IGNORED = -100


class GivenLoss:
    """A loss of (logits, targets).

    Attributes:
        known: whether denominators can be told from the targets alone.
    """

    known = True

    def __init__(self, loss: Loss) -> None:
        self._loss = as_module(loss)

    def sum_and_count(self, outputs: Any, targets: Tensor, samples: int) -> tuple[Tensor, Tensor]:
        """Sum and denominator of a microbatch."""
        logits = logits_of(outputs)
        return as_sum_and_count(in_type_of(self._loss, logits))(logits, targets, samples)

    def denominators(self, targets: Tensor) -> Float[Tensor, " samples"]:
        """What each sample adds to the denominator."""
        return denominators(self._loss, targets)

    def sample_sums(self, outputs: Any, targets: Tensor) -> Float[Tensor, " samples"]:
        """What each sample adds to the sum."""
        logits = logits_of(outputs)
        return per_sample_sums(in_type_of(self._loss, logits), logits, targets)

    def output_product(self, logits: Tensor, targets: Tensor) -> OutputProduct | None:
        """The closed-form Hessian product of the sum in the logits, if there is one."""
        return output_hessian(in_type_of(self._loss, logits), logits, targets)


class OwnLoss:
    """The loss that a model returns beside its logits.

    Attributes:
        known: whether an evaluation has shown what its denominator is.
    """

    def __init__(self) -> None:
        self.known = False
        self._shift: int | None = None

    def sum_and_count(self, outputs: Any, targets: Tensor, samples: int) -> tuple[Tensor, Tensor]:
        """Sum and denominator of a microbatch."""
        value = _own_loss(outputs)
        if not self.known and not (_labelled(targets) and (targets == _OWN_IGNORED).all()):
            self._shift, self.known = _shift(outputs, targets), True
        count = self.denominators(targets).sum().to(value)
        return (value * count if count > 0 else torch.zeros_like(value)), count

    def denominators(self, targets: Tensor) -> Float[Tensor, " samples"]:
        """What each sample adds to the denominator."""
        if not self.known:  # so far, every label has been ignored
            return torch.zeros(len(targets), device=targets.device)
        return _denominators(targets, self._shift)

    def sample_sums(self, outputs: Any, targets: Tensor) -> Float[Tensor, " samples"]:
        """What each sample adds to the sum.

        Raises:
            ValueError: if the loss is not the mean cross-entropy of the logits.
        """
        if self._shift is None:
            raise ValueError(
                "the model's own loss is not the mean cross-entropy of its logits, so its value "
                "per sample is unknown; give a loss"
            )
        return _sums(logits_of(outputs), targets, self._shift)

    def output_product(self, logits: Tensor, targets: Tensor) -> OutputProduct | None:
        """None: the loss's graph is at hand."""
        return None


def _labelled(targets: Tensor) -> bool:
    return not targets.is_floating_point()


def _own_loss(outputs: Any) -> Tensor:
    """The mean loss that a Hugging Face-style model returns beside its logits.

    Raises:
        TypeError: if there is none.
    """
    found = outputs.get("loss") if isinstance(outputs, Mapping) else getattr(outputs, "loss", None)
    if not isinstance(found, Tensor) or found.ndim != 0:
        raise TypeError(
            f"loss is None, but the model's {type(outputs).__name__} has no 0-d .loss: give a "
            "loss, or batches with the labels that the model computes its own from"
        )
    return found


def _shift(outputs: Any, targets: Tensor) -> int | None:
    """How far a model's own cross-entropy shifts its labels: 0, 1 (next token), None if it is none.

    Found by computing both: with ignored labels the denominators differ.
    """
    logits, value = logits_of(outputs), _own_loss(outputs).detach()
    tokens = isinstance(logits, Tensor) and not targets.is_floating_point()
    if not tokens or logits.shape[:-1] != targets.shape or (targets == _OWN_IGNORED).all():
        return None
    for shift in (0, 1)[: targets.ndim]:
        sums = _sums(logits.detach(), targets, shift).sum()
        mean = sums / _denominators(targets, shift).sum()
        if torch.isclose(mean, value.to(mean), rtol=1e-3):
            return shift
    return None


def _denominators(targets: Tensor, shift: int | None) -> Float[Tensor, " samples"]:
    """What each sample adds to the denominator of a model's own loss.

    Raises:
        ValueError: if some labels are ignored and the loss is no cross-entropy that is known.
    """
    if shift is None:
        if not targets.is_floating_point() and (targets == _OWN_IGNORED).any():
            raise ValueError(
                "labels are ignored, and the model's own loss is not the mean cross-entropy of "
                "its logits, shifted or not: its denominator is unknown; give a loss"
            )
        return torch.ones(len(targets), device=targets.device)
    counted = (targets if shift == 0 else targets[:, shift:]) != _OWN_IGNORED
    return counted.reshape(len(targets), -1).sum(1).float()


def _sums(logits: Tensor, targets: Tensor, shift: int) -> Float[Tensor, " samples"]:
    """What each sample adds to the sum of a model's own cross-entropy."""
    if shift:
        logits, targets = logits[:, :-shift], targets[:, shift:]
    flat = functional.cross_entropy(
        logits.reshape(-1, logits.shape[-1]), targets.reshape(-1), reduction="none"
    )
    return flat.reshape(len(targets), -1).sum(1)
