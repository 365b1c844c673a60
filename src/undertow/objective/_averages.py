"""Whether a loss is an average over samples, tried on outputs and targets like those at hand.

Then c(S) L(S) = sum_i c_i l_i for any samples S, with denominators c: samples together and apart
give the same sum, and the same slopes in the outputs, wherever these lie.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import product
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from undertow.objective._losses import Loss, denominators

# Samples that are tried together, at several outputs and targets, and at those at hand.
_SIZES = (6, 8, 10, 12, 14)
_LARGE = 64
# Sums and slopes agree so far: in float64, and in a type that the loss insists on.
_EXACT, _ROUNDED = 1e-5, 1e-3
# What a loss raises where it is not defined.
_UNDEFINED = (RuntimeError, ValueError, TypeError, IndexError, AssertionError, ArithmeticError)
# Losses with more parameters and buffers than so many are not copied.
_COPIED = 10_000_000
# Losses that compare elements, and say nothing, or only warn, where shapes differ.
_ELEMENTWISE = {
    "mse_loss",
    "l1_loss",
    "smooth_l1_loss",
    "huber_loss",
    "soft_margin_loss",
    "kl_div",
    "poisson_nll_loss",
    "gaussian_nll_loss",
    "hinge_embedding_loss",
    "margin_ranking_loss",
    "binary_cross_entropy",
    "binary_cross_entropy_with_logits",
    "multilabel_soft_margin_loss",
    "cosine_embedding_loss",
}


def averages(loss: Loss, outputs: Tensor, targets: Tensor) -> bool | None:
    """Whether a loss is an average over samples; None where that cannot be tried.

    Args:
        loss: of (outputs, targets).
        outputs: of some samples; a loss is tried near them, as it may not be defined elsewhere.
        targets: of these.

    Raises:
        ValueError: if outputs and targets are broadcast against each other in the loss, or it is
            random.
    """
    axis = _sample_axis(outputs, targets)
    if axis is None or not outputs.is_floating_point():
        return None
    if outputs.shape != targets.shape:
        _check_pairs(loss, axis, outputs.detach(), targets)
    for dtype, tolerance in ((torch.float64, _EXACT), (outputs.dtype, _ROUNDED)):
        tried = _Tried(_own(loss, dtype), axis, tolerance)
        found = [tried.is_average(*trial) for trial in _trials(outputs, targets, axis, dtype)]
        if False in found:
            tried.check_random(*_cast(dtype, outputs.detach(), targets))
            if outputs.shape != targets.shape and outputs.numel() == targets.numel():
                _check_reshaped(tried, outputs.detach(), targets)
            return False
        if True in found:
            return True
    return None


def _sample_axis(outputs: Tensor, targets: Tensor) -> int | None:
    """The axis of the outputs that counts the samples, the first where several may."""
    fitting = [axis for axis, size in enumerate(outputs.shape) if size == len(targets)]
    if not fitting or (fitting[0] != 0 and len(fitting) > 1):
        return None
    return fitting[0]


def _own(loss: Loss, dtype: torch.dtype) -> Loss:
    """A loss of the trial's own in a precision: some keep count of their calls in buffers."""
    if not isinstance(loss, nn.Module):
        return loss
    if sum(t.numel() for t in (*loss.parameters(), *loss.buffers())) > _COPIED:
        return loss
    try:
        return copy.deepcopy(loss).to(dtype)
    except (RuntimeError, TypeError):  # what cannot be copied
        return loss


def _cast(dtype: torch.dtype, outputs: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
    return outputs.to(dtype), targets.to(dtype) if targets.is_floating_point() else targets


def _trials(
    outputs: Tensor, targets: Tensor, axis: int, dtype: torch.dtype
) -> Iterator[tuple[Tensor, Tensor, int]]:
    """Outputs and targets to try, and how many of the samples are to be taken apart.

    A batch of means that happen to agree, as of outputs that are all alike or of one target, shows
    nothing: outputs and targets are paired anew and moved, as far as the loss is defined there.
    """
    generator = torch.Generator().manual_seed(0)

    def draw(like: Tensor, normal: bool) -> Tensor:
        drawn = torch.randn if normal else torch.rand
        return drawn(like.shape, generator=generator, dtype=torch.float64).to(like)

    def shrunk(part: Tensor) -> Tensor:  # positive numbers, and shares, stay what they are
        return part * (0.5 + 0.5 * draw(part, False)) if part.is_floating_point() else part

    def moved(part: Tensor) -> Tensor:
        if not part.is_floating_point():
            return part
        spread = part.std() if part.numel() > 1 else part.abs().max()
        return part + draw(part, True) * (spread if spread > 0 else 1.0)

    samples = len(targets)
    dimensions = {*outputs.shape, *targets.shape[1:]}
    size = next((s for s in _SIZES if s not in dimensions), _SIZES[0])
    order = torch.randperm(samples, generator=generator)
    rows = order[torch.arange(size) % samples].to(targets.device)
    outputs, targets = _cast(dtype, outputs.detach(), targets)
    few, own = outputs.index_select(axis, rows), targets[rows]
    yield few, own, size // 2
    other = own[torch.randperm(size, generator=generator).to(rows)]
    for change in (shrunk, moved):
        yield change(few), change(other), size // 2
        yield change(few), other, size // 2
    if samples > size:
        rows = order[:_LARGE].to(rows)
        yield moved(outputs.index_select(axis, rows)), targets[rows], len(rows) // 3


@dataclass(frozen=True)
class _Tried:
    """A loss that is evaluated on samples together and apart."""

    loss: Loss
    axis: int
    tolerance: float

    def is_average(self, outputs: Tensor, targets: Tensor, apart: int) -> bool | None:
        """Whether some samples in two parts give the sum and the slopes of all; None if unknown."""
        samples = len(targets)
        generator = torch.Generator().manual_seed(1)
        order = torch.randperm(samples, generator=generator).to(targets.device)
        # Of values per sample, a sum in which no two can stand in for each other.
        weights = 0.5 + torch.rand(samples, generator=generator, dtype=torch.float64).to(outputs)
        try:
            whole = self._sum(outputs, targets, weights)
        except _UNDEFINED:
            return None
        parts = []
        for rows in (order[:apart], order[apart:]):
            try:
                part = self._sum(
                    outputs.index_select(self.axis, rows), targets[rows], weights[rows]
                )
            except _UNDEFINED:
                return False if whole is not None else None
            parts.append(part)
        if whole is None or any(part is None for part in parts):
            return None
        first, second = (part for part in parts if part is not None)
        total = first[0] + second[0]
        slopes = torch.zeros_like(whole[1]).index_copy_(
            self.axis, order, torch.cat([first[1], second[1]], self.axis)
        )
        size = whole[0].abs() + first[0].abs() + second[0].abs()
        slope = torch.linalg.vector_norm(whole[1])
        reach = size + slope * torch.linalg.vector_norm(outputs)
        rest = torch.linalg.vector_norm(whole[1] - slopes)
        return bool(
            (total - whole[0]).abs() <= self.tolerance * reach
            and rest <= self.tolerance * slope + 1e-12 * size
        )

    def _sum(
        self, outputs: Tensor, targets: Tensor, weights: Tensor
    ) -> tuple[Tensor, Tensor] | None:
        """The sum and its slopes; None where it has none that is finite."""
        with torch.enable_grad():
            leaf = outputs.clone().requires_grad_()
            value = self.loss(leaf, targets)
            if value.shape == (len(targets),):
                total = (value * weights).sum()
            elif value.shape == ():
                total = value * denominators(self.loss, targets).sum().to(value)
            else:
                return None
            slopes = torch.zeros_like(leaf)
            if total.requires_grad:
                (found,) = torch.autograd.grad(total, leaf, allow_unused=True)
                slopes = slopes if found is None else found
        total = total.detach()
        return (total, slopes) if total.isfinite() and slopes.isfinite().all() else None

    def check_random(self, outputs: Tensor, targets: Tensor) -> None:
        """Raise ValueError if the same outputs give another loss when they are seen again."""
        with torch.enable_grad():  # some losses differentiate by themselves
            leaf = outputs.clone().requires_grad_()
            values = [self.loss(leaf, targets).detach() for _ in range(2)]
        if not torch.equal(*values):
            raise ValueError(
                "loss is random: the same outputs and targets give another value each time; take "
                "dropout and noise out of it, or call loss.eval()"
            )


def _check_pairs(loss: Loss, axis: int, outputs: Tensor, targets: Tensor) -> None:
    """Raise ValueError if an operation takes outputs and targets all with all.

    Their samples then lie on different axes, which are matched from the last one.
    """
    few = next(_trials(outputs, targets, axis, outputs.dtype))[:2]
    for some, own in (few, (outputs, targets)):
        watch = _Pairs(axis, some.ndim, len(own))
        try:
            with torch.enable_grad(), watch:
                loss(some.clone().requires_grad_(), own)
        except _UNDEFINED:  # of fewer samples than there are classes, say
            continue
        if watch.found:
            raise ValueError(_broadcast(outputs, targets))
        return


def _check_reshaped(tried: _Tried, outputs: Tensor, targets: Tensor) -> None:
    """Raise ValueError if a loss is an average once the targets have the outputs' shape."""
    dtype = torch.float64 if tried.tolerance == _EXACT else outputs.dtype
    outputs_and_targets = _cast(dtype, outputs.clone().requires_grad_(), targets)
    with torch.enable_grad():
        kind = tried.loss(*outputs_and_targets).ndim
    reshaping = _reshaping(tried.loss, tried.axis, kind)
    again = _Tried(reshaping, tried.axis, tried.tolerance)
    found = [again.is_average(*trial) for trial in _trials(outputs, targets, tried.axis, dtype)]
    if True in found and False not in found:
        raise ValueError(_broadcast(outputs, targets))


def _reshaping(loss: Loss, axis: int, kind: int) -> Loss:
    """A loss whose targets are given the outputs' shape first, with a value of so many axes."""

    def reshaped(outputs: Tensor, targets: Tensor) -> Tensor:
        shape = outputs.movedim(axis, 0).shape
        value = loss(outputs, targets.reshape(shape).movedim(0, axis))
        if value.ndim != kind:
            raise ValueError("targets of this shape make another kind of loss of it")
        return value

    return reshaped


def _broadcast(outputs: Tensor, targets: Tensor) -> str:
    hint = "make the two shapes equal"
    if outputs.shape == (len(targets), 1) and targets.ndim == 1:
        hint += ", such as by targets[:, None]"
    elif targets.shape == (len(targets), 1) and outputs.ndim == 1:
        hint += ", such as by targets[:, 0]"
    return (
        f"outputs have shape {tuple(outputs.shape)} and targets {tuple(targets.shape)}: the loss "
        f"broadcasts them, so that each output meets the targets of all samples; {hint}"
    )


class _Pairs(TorchFunctionMode):
    """Notes whether an elementwise operation pairs samples of outputs and targets all with all."""

    def __init__(self, axis: int, dimensions: int, samples: int) -> None:
        super().__init__()
        self._axis, self._dimensions, self._samples = axis, dimensions, samples
        self.found = False

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Runs one function of PyTorch, and looks at the shapes of its arguments."""
        del types
        kwargs = kwargs or {}
        result = func(*args, **kwargs)
        tensors = [part for part in (*args, *kwargs.values()) if isinstance(part, Tensor)]
        moving = [part for part in tensors if part.requires_grad]
        fixed = [part for part in tensors if not part.requires_grad]
        for one, other in product(moving, fixed):
            self.found |= self._pairs(one, other) and _is_elementwise(func, one, other, result)
        return result

    def _pairs(self, one: Tensor, other: Tensor) -> bool:
        axis = self._axis if one.ndim == self._dimensions else 0
        if one.ndim <= axis or other.ndim == 0 or other.shape[0] != self._samples:
            return False
        # Axes are matched from the last one.
        return one.shape[axis] == self._samples and axis - one.ndim != -other.ndim


def _is_elementwise(func: Any, one: Tensor, other: Tensor, result: Any) -> bool:
    if getattr(func, "__name__", "") in _ELEMENTWISE:
        return True
    try:
        shape = torch.broadcast_shapes(one.shape, other.shape)
    except RuntimeError:
        return False
    return isinstance(result, Tensor) and result.shape == shape
