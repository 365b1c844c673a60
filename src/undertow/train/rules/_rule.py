"""What an update rule is: its hyperparameters, its state, and what a wrapper may change of it.

A rule is `new_params, new_state = rule.update(params, grads, state, hyper)`; see `train.rules`.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields

import torch
from torch import Tensor

Value = float | Tensor
State = dict[str, list[Tensor]]
"""What a rule keeps between steps: entry -> one tensor per parameter."""
Perturb = Callable[[Tensor, torch.Generator], Tensor]
"""Targets and a generator -> targets with noise."""

COUNTERS = ("step",)
"""The entries of a state that are shared by all parameters."""


@dataclass(frozen=True)
class Hyper:
    """What an update rule reads. A field is a number, or a tensor `[E]` with one value a member.

    Attributes:
        lr: learning rate.
        weight_decay: PyTorch's coefficient, twice the lambda of the papers that penalise
            lambda ||W||^2. Decoupled in `adamw`, elsewhere coupled (added to the gradient).
        momentum: coefficient of `momentum` and `ema_momentum`.
        beta1: decay of the mean of gradients in `adam` and `adamw`.
        beta2: decay of the mean of squared gradients in `rmsprop`, `adam` and `adamw`.
        eps: added to the root of the mean squared gradient in `rmsprop`, `adam` and `adamw`.

    Raises:
        ValueError: a value is negative or not finite, a coefficient of momentum or a beta is not
            below 1, or lr x weight_decay is not.
    """

    lr: Value
    weight_decay: Value = 0.0
    momentum: Value = 0.0
    beta1: Value = 0.9
    beta2: Value = 0.999
    eps: Value = 1e-8

    def __post_init__(self) -> None:
        for field in fields(self):
            value = getattr(self, field.name)
            low, high = _bounds(value)
            if not (low >= 0 and high < float("inf")):
                raise ValueError(
                    f"{field.name} must be finite and not negative, got {value}; "
                    "a diverging run is not cured by a negative coefficient"
                )
            if field.name in ("momentum", "beta1", "beta2") and high >= 1:
                raise ValueError(f"{field.name} must be below 1, got {value}")
        if _bounds(self.lr * self.weight_decay)[1] >= 1:
            raise ValueError(
                f"lr x weight_decay must be below 1, got {self.lr} x {self.weight_decay}: each "
                "step would overshoot zero; lower either"
            )


HYPER = tuple(field.name for field in fields(Hyper))
"""The names of all hyperparameters."""


def _bounds(value: Value) -> tuple[float, float]:
    if isinstance(value, Tensor):
        return float(value.min()), float(value.max())
    return float(value), float(value)


def with_values(hyper: Hyper, **values: Value) -> Hyper:
    """The same with other values, unchecked: checking a tensor waits for its device."""
    changed = copy.copy(hyper)
    for name, value in values.items():
        object.__setattr__(changed, name, value)
    return changed


def has_members(hyper: Hyper) -> bool:
    """Whether any value is one a member, so that all tensors carry the ensemble axis."""
    return any(isinstance(value, Tensor) and value.ndim for value in vars(hyper).values())


@dataclass(frozen=True)
class Scaling:
    """How a rule's hyperparameters scale in `svag`, as powers of its `l`; lr goes with l^-1.

    Attributes:
        steps: the covariance of the noise and the number of steps grow with l to this power.
        weight_decay: the power that the coefficient of weight decay goes with.
        forgetting: the power that 1 - beta1 and 1 - beta2 go with.
        eps: the power that eps goes with.
    """

    steps: int
    weight_decay: int = 0
    forgetting: int = 0
    eps: int = 0

    def apply(self, hyper: Hyper, l: float) -> Hyper:  # noqa: E741 - the paper's letter
        """The hyperparameters of the finer rule."""
        scaled: dict[str, Value] = {"lr": hyper.lr / l}
        if self.weight_decay:
            scaled["weight_decay"] = hyper.weight_decay * l**self.weight_decay
        if self.forgetting:
            scaled["beta1"] = 1 - (1 - hyper.beta1) * l**self.forgetting
            scaled["beta2"] = 1 - (1 - hyper.beta2) * l**self.forgetting
        if self.eps:
            scaled["eps"] = hyper.eps * l**self.eps
        return with_values(hyper, **scaled)


@dataclass(frozen=True)
class Rule:
    """A named update rule.

    Attributes:
        name: what the rule is called.
        init: params -> the state before the first step.
        update: (params, grads, state, hyper, inplace=False) -> (params, state). With
            `inplace=True` the memory of params and state is reused for the result. `hyper` holds
            the hyperparameters of the rule inside all wrappers. Vectors must be updated entry by
            entry: the fused ensemble trainer gives those of all layers as one.
        batch_weights: a step needs the gradients of as many independent batches; `update` takes
            their sum with these weights, see `combine`.
        perturb: (targets, generator) -> the targets as the loss sees them at a training step, for
            any number of samples along the first axis; None where they are left alone.
        steps_per_step: how many steps of this rule make one of the rule inside.
        scaling: how the hyperparameters scale in `svag`; None where that is not known.
        wrappers: the wrappers around the rule, the outermost last.
        reads: the fields of `Hyper` that `update` reads. An optimizer refuses the others.
        family: the optimizer of `predict.edge` whose recursion it is with what it divides by held
            still; None where that is not known.
        denominator: (state, hyper) -> what the update is divided by, for each parameter; None
            where that is 1.
    """

    name: str
    init: Callable[[Sequence[Tensor]], State]
    update: Callable[..., tuple[list[Tensor], State]]
    batch_weights: tuple[float, ...] = (1.0,)
    perturb: Perturb | None = None
    steps_per_step: float = 1.0
    scaling: Scaling | None = None
    wrappers: tuple[str, ...] = ()
    reads: tuple[str, ...] = HYPER
    family: str | None = None
    denominator: Callable[[State, Hyper], list[Tensor]] | None = None

    def combine(self, grads: Sequence[Sequence[Tensor]]) -> list[Tensor]:
        """The gradient that `update` takes, from those of one batch for each of the weights.

        Raises:
            ValueError: there are not as many batches as `batch_weights`.
        """
        if len(grads) != len(self.batch_weights):
            raise ValueError(
                f"{self!r} needs the gradients of {len(self.batch_weights)} independent batches "
                f"a step, got {len(grads)}"
            )
        if self.batch_weights == (1,):
            return list(grads[0])
        first, *others = self.batch_weights
        combined = [own * first for own in grads[0]]
        for weight, batch in zip(others, grads[1:], strict=True):
            for total, own in zip(combined, batch, strict=True):
                total.add_(own, alpha=weight)
        return combined

    def __repr__(self) -> str:
        return f"rules.{self.name}"


def no_state(params: Sequence[Tensor]) -> State:
    """The state of a rule that remembers nothing."""
    return {}


def check_shapes(params: Sequence[Tensor], grads: Sequence[Tensor], state: State) -> None:
    """Refuse gradients or a state of other parameters, which might broadcast.

    Raises:
        ValueError: names the first parameter, counted from 0, whose gradient or state differs.
    """
    shapes = [param.shape for param in params]
    for name, values in (("gradient", grads), *state.items()):
        if name in COUNTERS or [value.shape for value in values] == shapes:
            continue
        what = name if name == "gradient" else f"state {name!r}"
        if len(values) != len(shapes):
            raise ValueError(f"{len(shapes)} parameters were given, but {what} for {len(values)}")
        for place, (own, value) in enumerate(zip(params, values, strict=True)):
            if own.shape != value.shape:
                raise ValueError(
                    f"parameter {place} has shape {tuple(own.shape)}, but its {what} has "
                    f"{tuple(value.shape)}; a state belongs to the parameters that made it"
                )


def along_members(value: Value, like: Tensor) -> Value:
    """A per-member value shaped to broadcast against a tensor whose first axis is the ensemble."""
    if isinstance(value, Tensor) and value.ndim:
        return value.to(like.dtype).reshape(value.shape[0], *[1] * (like.ndim - 1))
    return value


def add_scaled(base: Tensor, step: Tensor, scale: Value, *, out: Tensor | None) -> Tensor:
    """Base + scale x step, the scale being a number or one value a member."""
    scale = along_members(scale, base)
    if isinstance(scale, Tensor):
        return torch.addcmul(base, step, scale, out=out)
    return torch.add(base, step, alpha=scale, out=out)


def shrink(param: Tensor, hyper: Hyper, *, out: Tensor | None) -> Tensor:
    """(1 - lr weight_decay) param.

    As a sum: the factor itself, rounded to float32, would err by up to 3e-8 in the same direction
    at every step, which is 0.3% of a decay of 1e-5.
    """
    return add_scaled(param, param, -(hyper.lr * hyper.weight_decay), out=out)
