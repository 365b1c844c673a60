"""What an objective needs of a loss: sums, denominators and curvature that add up over batches.

The loss is given, or it is the one that a Hugging Face-style model computes from its labels.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional

from undertow.objective._averages import averages
from undertow.objective._losses import (
    Loss,
    OutputProduct,
    as_module,
    as_sum_and_count,
    denominators,
    in_type_of,
    is_plain,
    logits_of,
    output_hessian,
    per_sample_sums,
)
from undertow.objective._sparse import equal

# The label that the losses inside Hugging Face models ignore.
_OWN_IGNORED = -100
# A parameter's gradient that differs by more shows a term of a model's own loss beside its logits.
_TERM = 1e-2
# What a loss keeps an option in.
_OPTION = (int, float, str, bool, type(None))


class LossState:
    """Options, parameters and buffers of a loss at one time; equal while none changes."""

    def __init__(self, loss: Any) -> None:
        modules = list(loss.modules()) if isinstance(loss, nn.Module) else []
        self._options = [
            {name: value for name, value in vars(module).items() if isinstance(value, _OPTION)}
            for module in modules
        ]
        state = [*loss.parameters(), *loss.buffers()] if modules else []
        # Copies, as versions would not tell of changes through `.data`.
        self._tensors = [tensor.detach().clone() for tensor in state]

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, LossState) or self._options != other._options:
            return False
        mine, others = self._tensors, other._tensors
        return len(mine) == len(others) and all(map(equal, mine, others))

    __hash__ = None  # type: ignore[assignment]


class GivenLoss:
    """A loss of (logits, targets).

    Args:
        loss: as given.
        trusted: whether to take it for an average over samples, and not to try it.

    Attributes:
        known: whether denominators can be told from the targets alone.
        averages: whether it is found to be an average over samples; None before it was tried, and
            where there is no doubt, as of those losses of PyTorch's whose shapes are checked.
    """

    known = True
    has_term = False

    def __init__(self, loss: Loss, *, trusted: bool = False) -> None:
        self._loss = as_module(loss)
        self._known = trusted or is_plain(self._loss)
        self._tried = False
        self._labels: tuple[int, int] | None = None
        self.averages: bool | None = None

    def sum_and_count(self, outputs: Any, targets: Tensor, samples: int) -> tuple[Tensor, Tensor]:
        """Sum and denominator of a microbatch, from half-precision outputs in float32."""
        logits = logits_of(outputs)
        if isinstance(logits, Tensor) and logits.is_floating_point():
            logits = logits.float() if logits.dtype.itemsize < 4 else logits
        loss = in_type_of(self._loss, logits)
        found = as_sum_and_count(loss)(logits, targets, samples)
        if not self._known and samples > 1 and isinstance(logits, Tensor):
            self._try(loss, logits, targets)
        return found

    def _try(self, loss: Loss, logits: Tensor, targets: Tensor) -> None:
        """Try whether the loss is an average, again where labels beyond those before turn up.

        One of these may be ignored, and leave the batch with another denominator.
        """
        labels = None
        if targets.is_floating_point() or targets.is_complex():
            if self._tried:
                return
        else:
            low, high = (int(end) for end in torch.aminmax(targets))
            if self._labels is not None:
                if self._labels[0] <= low and high <= self._labels[1]:
                    return
                low, high = min(low, self._labels[0]), max(high, self._labels[1])
            labels = low, high
        found = averages(loss, logits, targets)
        # Kept only now: what is refused, or interrupted, is refused or tried the next time too.
        self._tried, self._labels = True, labels
        self.averages = self.averages if found is None or self.averages is False else found

    def sum_by_logits(self, outputs: Any, targets: Tensor, samples: int) -> Tensor:
        """The sum as a function of the logits."""
        return self.sum_and_count(outputs, targets, samples)[0]

    def denominators(self, targets: Tensor) -> Float[Tensor, " samples"]:
        """What each sample adds to the denominator."""
        return denominators(self._loss, targets)

    def sample_sums(self, outputs: Any, targets: Tensor) -> Float[Tensor, " samples"]:
        """What each sample adds to the sum.

        Raises:
            ValueError: if the loss is found to be no average over samples.
        """
        logits = logits_of(outputs)
        loss = in_type_of(self._loss, logits)
        if not self._known and isinstance(logits, Tensor) and len(targets) > 1:
            self._try(loss, logits, targets)
        if self.averages is False:
            raise ValueError("samples influence each other: the loss is no average over them")
        return per_sample_sums(loss, logits, targets)

    def state(self) -> LossState:
        """What the loss depends on beside outputs and targets, as far as a module shows it."""
        return LossState(self._loss)

    def output_product(self, logits: Tensor, targets: Tensor) -> OutputProduct | None:
        """The closed-form Hessian product of the sum in the logits, if there is one."""
        return output_hessian(in_type_of(self._loss, logits), logits, targets)


class OwnLoss:
    """The loss that a model returns beside its logits.

    Attributes:
        known: whether an evaluation has shown what its denominator is.
        has_term: whether it has a term that is no function of the logits, such as one that
            balances experts.
    """

    averages: bool | None = None

    def __init__(self) -> None:
        self.known = self.has_term = False
        self._shift: int | None = None
        self._beside = False

    def learn(self, outputs: Any, targets: Tensor, leaves: Sequence[Tensor]) -> None:
        """Find the denominator from outputs with their graph, unless too few labels count.

        Args:
            outputs: the model's, differentiable in the leaves.
            targets: the labels.
            leaves: all parameters that require a gradient.

        Raises:
            ValueError: if shifted labels would give the same loss.
        """
        value = _own_loss(outputs)
        if not value.isfinite():  # the parameters', or no label counts once they are shifted
            return
        logits = logits_of(outputs)
        if not isinstance(logits, Tensor):
            self.known = True
            return
        slope = None
        if value.requires_grad and logits.requires_grad:
            (slope,) = torch.autograd.grad(value, logits, allow_unused=True, retain_graph=True)
        self._shift, self.has_term = _shift(logits.detach(), targets, value.detach(), slope)
        self._beside = slope is None and self._shift is not None
        if not self.has_term and value.requires_grad and logits.requires_grad:
            self.has_term = self._more_than_logits(value, logits, targets, slope, leaves)
        self.known = True

    def _more_than_logits(
        self,
        value: Tensor,
        logits: Tensor,
        targets: Tensor,
        slope: Tensor | None,
        leaves: Sequence[Tensor],
    ) -> bool:
        """Whether the gradient of the loss is not the one that reaches it through the logits."""
        if slope is None and self._shift is None:
            return False
        seen = logits.float() if logits.dtype.itemsize < 4 else logits
        through = (
            (seen * slope.to(seen)).sum()
            if slope is not None
            else _sums(seen, targets, self._shift or 0).sum() / self.denominators(targets).sum()
        )
        pairs = [
            torch.autograd.grad(
                each, leaves, allow_unused=True, materialize_grads=True, retain_graph=True
            )
            for each in (value, through)
        ]
        sizes = torch.stack([torch.linalg.vector_norm(g.detach().float()) for g in pairs[0]])
        rest = torch.stack(
            [torch.linalg.vector_norm((a - b).float()) for a, b in zip(*pairs, strict=True)]
        )
        rounding = torch.finfo(logits.dtype).eps
        if logits.dtype.itemsize < 4:
            return bool(rest.norm() > 16 * rounding * sizes.norm())
        return bool((rest > _TERM * sizes + _TERM**2 * sizes.norm()).any())

    def term(self, outputs: Any, targets: Tensor) -> Tensor | None:
        """The term beside the mean cross-entropy of the logits, where there is one to tell."""
        if not self.has_term or self._shift is None:
            return None
        count = self.denominators(targets).sum()
        logits = logits_of(outputs)
        return _own_loss(outputs) - _sums(logits, targets, self._shift).sum() / count

    def sum_and_count(self, outputs: Any, targets: Tensor, samples: int) -> tuple[Tensor, Tensor]:
        """Sum and denominator of a microbatch."""
        value = _own_loss(outputs)
        value = value.float() if value.dtype.itemsize < 4 else value
        if not self.known and _may_count(targets):  # not finite
            return value, value.new_ones(())
        count = self.denominators(targets).sum().to(value)
        return (value * count if count > 0 else torch.zeros_like(value)), count

    def sum_by_logits(self, outputs: Any, targets: Tensor, samples: int) -> Tensor:
        """The same sum as a function of the logits, also where the model reports copies of them."""
        if self._beside and self._shift is not None:
            return _sums(logits_of(outputs), targets, self._shift).sum()
        return self.sum_and_count(outputs, targets, samples)[0]

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

    def state(self) -> LossState:
        """Nothing: the loss is the model's."""
        return LossState(None)

    def output_product(self, logits: Tensor, targets: Tensor) -> OutputProduct | None:
        """None: the loss's graph is at hand.

        Raises:
            ValueError: if the loss is no function of the logits.
        """
        if self.has_term:
            raise ValueError(
                "the model's own loss has a term beside its logits, which Gauss-Newton products "
                'would leave out; give a loss, or take the Hessian (curvature="hessian", hvp)'
            )
        return None


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


def _may_count(targets: Tensor) -> bool:
    """Whether some label counts, shifted or not."""
    if targets.is_floating_point():
        return True
    return bool((targets[:, 1:] if targets.ndim > 1 else targets).ne(_OWN_IGNORED).any())


def _shift(
    logits: Tensor, targets: Tensor, value: Tensor, slope: Tensor | None
) -> tuple[int | None, bool]:
    """How far a model's own cross-entropy shifts its labels: 0, 1 (next token), None if it is none.

    And whether it has more terms, which do not depend on the logits. Found by computing both. An
    untrained network has nearly the same value either way, so that the slope in the logits is
    compared too; only where the model reports a copy of its logits, it is not at hand.

    Raises:
        ValueError: if both give the same.
    """
    if targets.is_floating_point() or logits.shape[:-1] != targets.shape:
        return None, False
    rounding = torch.finfo(logits.dtype).eps
    found: list[int] = []
    sloped: list[int] = []
    for shift in (0, 1)[: targets.ndim]:
        count = _denominators(targets, shift).sum()
        if count == 0:
            continue
        with torch.enable_grad():
            own = (logits.float() if logits.dtype.itemsize < 4 else logits).requires_grad_()
            mean = _sums(own, targets, shift).sum() / count
            (expected,) = torch.autograd.grad(mean, own)
        same = torch.isclose(mean.detach(), value.to(mean), rtol=max(1e-5, 4 * rounding))
        if slope is not None:
            error = torch.linalg.vector_norm(slope.to(expected) - expected)
            relative = max(1e-3, 8 * rounding) * torch.linalg.vector_norm(expected)
            # Labels that are fitted to the last digit leave slopes of rounding errors.
            floor = rounding / count.sqrt()
            if error <= relative and relative > floor:
                sloped.append(shift)
            same = same & (error <= relative + floor)
        if same:
            found.append(shift)
    if len(found) > 1:
        raise ValueError(
            "the model's own loss is the same with labels for each position and for the next one, "
            "so that its denominator is unknown; give a loss"
        )
    if not found and len(sloped) == 1:
        return sloped[0], True
    return (found[0] if found else None), False


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
