"""A loss as sums and counts that add up over batches, per sample, and by its output Hessian.

Each loss has its own denominator: the number of samples, or the total weight of the labels that
count (class weights, `ignore_index`).
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping
from functools import partial
from inspect import signature
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional
from torch.nn.modules.loss import _Loss

Loss = nn.Module | Callable[[Any, Any], Tensor]
"""A loss module, or a function of outputs and targets."""
SumAndCount = Callable[[Any, Tensor, int], tuple[Tensor, Tensor]]
OutputProduct = Callable[[Tensor], Tensor]

_ON_LABELS = (nn.CrossEntropyLoss, nn.NLLLoss)
_ELEMENTWISE = (nn.MSELoss, nn.L1Loss, nn.SmoothL1Loss, nn.HuberLoss)
# Means over halves of a batch agree so far with the mean over it, unless a loss is no average.
_AVERAGE = 1e-4
_FUNCTIONS: dict[Any, Callable[..., nn.Module]] = {
    functional.cross_entropy: nn.CrossEntropyLoss,
    functional.nll_loss: nn.NLLLoss,
    functional.mse_loss: nn.MSELoss,
    functional.l1_loss: nn.L1Loss,
    functional.smooth_l1_loss: nn.SmoothL1Loss,
    functional.huber_loss: nn.HuberLoss,
}


def as_module(loss: Loss) -> Loss:
    """A loss of `torch.nn.functional` as the module with the same options; others unchanged.

    Options come from `functools.partial`.

    Raises:
        TypeError: if `loss` is not callable.
        ValueError: if it has reduction="sum".
    """
    if not callable(loss):
        raise TypeError(f"loss must be an nn.Module or a function, got {type(loss).__name__}")
    options = loss.keywords if isinstance(loss, partial) else {}
    reduction = options.get("reduction", getattr(loss, "reduction", "mean"))
    if reduction == "sum":
        raise ValueError("loss has reduction='sum'; use 'mean', or 'none' for a value per sample")
    function: Any = loss.func if isinstance(loss, partial) and not loss.args else loss
    # By identity, as not every callable has a hash.
    kind = next((_FUNCTIONS[known] for known in _FUNCTIONS if known is function), None)
    if kind is None or not options.keys() <= signature(kind).parameters.keys():
        return loss
    return kind(**options)


def as_sum_and_count(loss: Loss) -> SumAndCount:
    """A loss as a function (outputs, targets, samples) -> (sum, count) that adds up over batches.

    `loss` maps (outputs, targets) to the mean over the batch, 0-d, or to a value per sample,
    `[samples]`. The count is the loss's own denominator: for `CrossEntropyLoss` and `NLLLoss` the
    total weight of the labels that are not ignored, otherwise, and for a value per sample, the
    number of samples. Half precision is summed in float32.

    Raises:
        TypeError: if `loss` is not callable.
        ValueError: if it has reduction="sum". The function returned raises ValueError where
            labels lie outside the classes, shapes of outputs and targets would broadcast in an
            elementwise loss, or the loss has any other shape or is of no floating-point type.
    """
    loss = as_module(loss)

    def sum_and_count(outputs: Any, targets: Tensor, samples: int) -> tuple[Tensor, Tensor]:
        check_targets(loss, outputs, targets)
        value = loss(outputs, targets)
        shape = tuple(value.shape) if isinstance(value, Tensor) else type(value).__name__
        if shape not in ((samples,), ()):
            raise ValueError(
                "loss must return the batch mean as a 0-d tensor or one value per sample, "
                f"[{samples}], got {shape}. Average over the other axes, or use reduction='mean'"
            )
        if not value.is_floating_point():
            raise ValueError(f"loss must return real floating-point numbers, got {value.dtype}")
        # Sums and counts in half precision would stop growing, or overflow.
        value = value.float() if value.dtype.itemsize < 4 else value
        if shape == (samples,):
            return value.sum(), value.new_tensor(float(samples))
        count = denominators(loss, targets).sum().to(value)
        # With every label ignored the mean is 0 / 0.
        return (value * count if count > 0 else torch.zeros_like(value)), count

    return sum_and_count


def in_type_of(loss: Loss, outputs: Any) -> Loss:
    """A cross-entropy with class weights in the type of the outputs."""
    if not isinstance(loss, _ON_LABELS) or loss.weight is None:
        return loss
    if not isinstance(outputs, Tensor) or loss.weight.dtype == outputs.dtype:
        return loss
    return copy.deepcopy(loss).to(outputs.dtype)


def cast_loss(loss: nn.Module, dtype: torch.dtype, model: nn.Module) -> nn.Module:
    """A copy of a loss in another precision; what it holds of the model stays the model's own."""
    kept = [*model.modules(), *model.parameters(), *model.buffers()]
    memo = {id(each): each for each in kept}
    made = copy.deepcopy(loss, memo)
    for module in made.modules():
        if memo.get(id(module)) is module:
            continue
        stores: list[dict[str, Any]] = [module._parameters, module._buffers]  # noqa: SLF001
        for store in stores:
            for name, tensor in store.items():
                if tensor is not None and tensor.is_floating_point() and id(tensor) not in memo:
                    own = tensor.detach().to(dtype)
                    store[name] = nn.Parameter(own) if isinstance(tensor, nn.Parameter) else own
    return made


def check_targets(loss: Loss, outputs: Any, targets: Tensor) -> None:
    """Targets that the loss would refuse obscurely, or misread, as errors that say what is wrong.

    Raises:
        ValueError: if labels of a cross-entropy lie outside the classes, its outputs have no axis
            of classes, or the shapes of outputs and targets differ in an elementwise loss.
    """
    if not isinstance(outputs, Tensor):
        return
    if isinstance(loss, _ON_LABELS) and outputs.ndim == 1 == targets.ndim:
        raise ValueError(
            f"{type(loss).__name__} would take the {len(outputs)} samples for classes: outputs "
            f"must be [samples, classes], got {tuple(outputs.shape)}"
        )
    if isinstance(loss, _ON_LABELS) and not targets.is_floating_point():
        classes = outputs.shape[1 if outputs.ndim > 1 else 0]
        wrong = ((targets < 0) | (targets >= classes)) & (targets != loss.ignore_index)
        if wrong.any():
            raise ValueError(
                f"targets hold the label {int(targets[wrong][0])}, but the model has {classes} "
                f"outputs: labels must be 0 to {classes - 1}, or ignore_index={loss.ignore_index}"
            )
    if isinstance(loss, _ELEMENTWISE) and outputs.shape != targets.shape:
        raise ValueError(
            f"{type(loss).__name__} compares elements, but outputs have shape "
            f"{tuple(outputs.shape)} and targets {tuple(targets.shape)}; make them equal"
        )


def denominators(loss: Loss, targets: Tensor) -> Float[Tensor, " samples"]:
    """What each sample adds to the denominator of the mean: one, or the weight of its labels."""
    if not isinstance(loss, _ON_LABELS) or loss.reduction == "none":
        return torch.ones(len(targets), device=targets.device)
    if targets.is_floating_point():  # a distribution over classes per position, all of weight one
        positions = targets[0].numel() / targets.shape[1] if targets.ndim > 1 else 1.0
        return torch.full((len(targets),), positions, device=targets.device)
    counted = targets != loss.ignore_index
    if loss.weight is None:
        weights = counted.float()
    else:
        # A sum in half precision would stop growing.
        weights = loss.weight.double()[targets.where(counted, 0)] * counted
    return weights.reshape(len(targets), -1).sum(1)


def per_sample_sums(loss: Loss, outputs: Any, targets: Tensor) -> Float[Tensor, " samples"]:
    """What each sample adds to the sum of the loss, differentiable in the outputs.

    A loss that only gives the mean is evaluated on each sample alone.

    Raises:
        TypeError: if outputs are no tensor, for such a loss.
    """
    loss, samples = as_module(loss), len(targets)
    check_targets(loss, outputs, targets)
    if isinstance(loss, _ON_LABELS + _ELEMENTWISE) and _is_plain(loss):
        single = copy.copy(loss)
        single.reduction = "none"
        values = single(outputs, targets).reshape(samples, -1)
        return values.mean(1) if isinstance(loss, _ELEMENTWISE) else values.sum(1)
    values = loss(outputs, targets)
    if values.shape == (samples,):
        return values
    if not isinstance(outputs, Tensor):
        raise TypeError(
            f"the loss per sample needs outputs that are a tensor, got {type(outputs).__name__}. "
            "Use a loss that returns one value per sample"
        )

    def alone(output: Tensor, target: Tensor) -> Tensor:
        return loss(output[None], target[None]).reshape(())

    counts = denominators(loss, targets)
    counted = counts > 0  # the mean over ignored labels alone is 0 / 0
    outputs, targets = outputs[counted], targets[counted]
    if len(outputs) == 0:
        return values.new_zeros(samples)
    try:
        means = torch.func.vmap(alone)(outputs, targets)
    except RuntimeError:  # a loss whose control flow depends on values
        means = torch.stack([alone(o, t) for o, t in zip(outputs, targets, strict=True)])
    return means.new_zeros(samples).masked_scatter(counted, means * counts[counted].to(means))


def averages(loss: Loss, outputs: Tensor, targets: Tensor) -> bool | None:
    """Whether the mean over a batch is the mean over its halves; None of a value per sample."""
    samples = len(targets)
    if len(outputs) != samples:
        return None
    half = samples // 2
    with torch.no_grad():
        whole = loss(outputs, targets)
        if not isinstance(whole, Tensor) or whole.shape != () or not whole.is_floating_point():
            return None
        parts = loss(outputs[:half], targets[:half]), loss(outputs[half:], targets[half:])
    first, second = (float(part) for part in parts)
    mean = (half * first + (samples - half) * second) / samples
    allowed = _AVERAGE * max(abs(first), abs(second), abs(float(whole)))
    # Not finite halves say nothing, such as those in which no label counts.
    return not abs(mean - float(whole)) > allowed


def is_pytorchs(loss: Loss) -> bool:
    """Whether it is a loss of `torch.nn`, or made of one, whose denominator is known."""
    return isinstance(loss, _Loss)


def _is_plain(loss: Any) -> bool:
    """Whether a loss of PyTorch's is that itself, and not what a subclass made of it."""
    forward = getattr(type(loss), "forward", None)
    return any(forward is kind.forward for kind in _ON_LABELS + _ELEMENTWISE)


def output_hessian(loss: Loss, outputs: Tensor, targets: Tensor) -> OutputProduct | None:
    """Products of the summed loss's Hessian in the outputs with a block `[k, *outputs.shape]`.

    For cross-entropy, a_i (diag(p_i) - p_i p_i^T) with the softmax p_i and the weight a_i of the
    position's label; for squared error a multiple of the identity. `NLLLoss` counts as
    cross-entropy of its log-probabilities: as a function of those it is linear and its Hessian
    zero, but log-softmax leaves them unchanged. None for any other loss, as for subclasses that
    compute another.
    """
    if not _is_plain(loss):
        return None
    if isinstance(loss, nn.MSELoss):
        scale = 2.0 * len(outputs) / outputs.numel()
        return lambda block: scale * block
    if not isinstance(loss, _ON_LABELS):
        return None
    axis = 1 if outputs.ndim > 1 else 0
    probabilities = outputs.detach().softmax(axis)
    weighted = probabilities * _label_weights(loss, outputs, targets).unsqueeze(axis)

    def product(block: Tensor) -> Tensor:
        mean = (probabilities * block).sum(axis + 1, keepdim=True)
        return weighted * (block - mean)

    return product


def _label_weights(loss: Any, outputs: Tensor, targets: Tensor) -> Tensor:
    """The sum over classes of class weight times target probability, at each position."""
    axis = 1 if outputs.ndim > 1 else 0
    classes = outputs.shape[axis]
    smoothing = getattr(loss, "label_smoothing", 0.0)
    weight = outputs.new_ones(classes) if loss.weight is None else loss.weight
    if targets.is_floating_point():
        smooth = targets.to(weight) * (1 - smoothing) + smoothing / classes
        return torch.tensordot(smooth, weight, dims=([axis], [0]))
    counted = targets != loss.ignore_index
    hard = weight[targets.where(counted, 0)]
    return ((1 - smoothing) * hard + smoothing * weight.sum() / classes) * counted


def logits_of(outputs: Any) -> Any:
    """The logits of a Hugging Face-style output; anything else unchanged."""
    if isinstance(outputs, Tensor):
        return outputs
    if isinstance(outputs, Mapping):
        return outputs.get("logits", outputs)
    found = getattr(outputs, "logits", None)
    return outputs if found is None else found
