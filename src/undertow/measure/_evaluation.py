"""A model's outputs, checked, and the classes that its targets name.

A stand-in is run on copies of a module's parameters and buffers, and the module left as found.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from jaxtyping import Float, Int64
from torch import Tensor

from undertow.objective import EmpiricalRisk

State = Mapping[str, Tensor]


@contextmanager
def evaluating(risk: EmpiricalRisk) -> Iterator[None]:
    """No gradients, and a random state to be thrown away; the caller's are put back at the end."""
    with risk.evaluating(), torch.no_grad():
        yield


def state_of(risk: EmpiricalRisk) -> dict[str, Tensor]:
    """Copies of all parameters and buffers, at which a risk is evaluated.

    Raises:
        ValueError: if a parameter is not finite.
    """
    state = risk.own()
    for name, _ in risk.model.named_parameters():
        if not torch.isfinite(state[name]).all():
            raise ValueError(f"parameter {name} is not finite, so the model has no outputs to read")
    return state


def outputs_of(risk: EmpiricalRisk, state: State, inputs: Any) -> Tensor:
    """The model's outputs at `state`, or the logits among them, in the risk's precision.

    Raises:
        TypeError: if the model returns no tensor.
        ValueError: if the model insists on another precision, or its outputs are not finite.
    """
    try:
        outputs = risk.logits(state, inputs)
    except RuntimeError as error:
        if risk.dtype is None or "dtype" not in str(error):
            raise
        raise ValueError(
            f"the model does not run in {risk.dtype} ({error}); pass dtype=torch.float32, or take "
            "the casts out of its forward pass"
        ) from error
    if not isinstance(outputs, Tensor):
        raise TypeError(f"the model must return a tensor of outputs, got {type(outputs).__name__}")
    if not torch.isfinite(outputs).all():
        raise ValueError("the model's outputs are not finite although data and parameters are")
    return outputs


def given(args: tuple[Any, ...], named: Mapping[str, Any]) -> Any:
    """The first argument of a module's call, by place or by name; None where there is none."""
    return args[0] if args else next(iter(named.values()), None)


def class_scores(
    loss: Any, outputs: Tensor, targets: Tensor
) -> tuple[Float[Tensor, "labels classes"], Int64[Tensor, " labels"]]:
    """Scores and labels, one row for every label that the loss does not ignore.

    - Outputs `[n, C, ...]` or `[n, ..., C]` with whole-number targets `[n, ...]`, or with one-hot
      (or -1 and +1 coded) targets of the shape of the outputs.
    - One output, `[n]` or `[n, 1]`, with targets 0 and 1, or -1 and +1: f becomes the two scores
      -f/2 and f/2, so that a difference of scores is y f and their cross-entropy log(1 + e^(-yf)).

    Raises:
        ValueError: if targets are anything else, or label positions for a model's own loss
            (`loss=None`), which may shift them.
    """
    if loss is None and targets.ndim > 1:
        raise ValueError(
            "the model's own loss may shift its labels by a position; give a loss, and targets "
            "in line with the outputs"
        )
    if outputs.ndim == 1 or outputs.shape[1:] == (1,):
        return _binary(outputs.reshape(-1), targets)
    samples = outputs.shape[0]
    if targets.shape == outputs.shape and targets.is_floating_point():
        top = targets.movedim(1, -1).reshape(-1, outputs.shape[1])
        high, low = top.amax(1, keepdim=True), top.amin(1, keepdim=True)
        coded = ((top == high).sum(1) == 1) & ((top == high) | (top == low)).all(1)
        if not coded.all():
            raise ValueError(
                "targets must name one class per row (one-hot, or -1 and +1); the row "
                f"{top[~coded][0].tolist()} does not"
            )
        targets = targets.argmax(1)
    if targets.is_floating_point() or targets.is_complex() or targets.dtype == torch.bool:
        raise ValueError(
            f"targets of dtype {targets.dtype} and shape {tuple(targets.shape)} name no classes of "
            f"outputs {tuple(outputs.shape)}; give whole-number labels, or one-hot rows"
        )
    if targets.shape == (samples, *outputs.shape[2:]):
        scores = outputs.movedim(1, -1)
    elif targets.shape == outputs.shape[:-1]:
        scores = outputs
    else:
        raise ValueError(
            f"targets of shape {tuple(targets.shape)} do not label outputs of shape "
            f"{tuple(outputs.shape)}; give one label per sample or position"
        )
    classes = scores.shape[-1]
    labels = targets.reshape(-1).long()
    counted = labels != getattr(loss, "ignore_index", -100)
    scores, labels = scores.reshape(-1, classes)[counted], labels[counted]
    if ((labels < 0) | (labels >= classes)).any():
        wrong = int(labels[(labels < 0) | (labels >= classes)][0])
        raise ValueError(f"targets hold the label {wrong}; the model has {classes} outputs")
    return scores, labels


def _binary(outputs: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
    values = targets.reshape(-1)
    if values.shape != outputs.shape:
        raise ValueError(
            f"one output per sample needs one target per sample, got {tuple(outputs.shape)} and "
            f"{tuple(targets.shape)}"
        )
    present = set(values.unique().tolist())
    if not (present <= {0, 1} or present <= {-1, 1}):
        shown = sorted(present)[:4]
        raise ValueError(f"one output per sample needs targets 0 and 1, or -1 and +1, got {shown}")
    return torch.stack([-outputs / 2, outputs / 2], dim=1), (values > 0).long()
