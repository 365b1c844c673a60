"""Update rules: what an optimizer does in one step, as pure functions.

    new_params, new_state = rule.update(params, grads, state, hyper)

A rule knows nothing of models or data. Its tensors may carry a leading ensemble axis `E`; then any
field of `hyper` may be a tensor of shape `[E]`, one value a member. The optimizer front ends in
`undertow.train.optim` and the ensemble trainer call these same functions.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields

import torch
from torch import Tensor

Value = float | Tensor
State = dict[str, list[Tensor]]


@dataclass(frozen=True)
class Hyper:
    """What an update rule reads. A field is a number, or a tensor `[E]` with one value a member.

    Attributes:
        lr: learning rate.
        weight_decay: PyTorch's coefficient, twice the lambda of the papers that penalise
            lambda ||W||^2. Coupled (added to the gradient) in `sgd` and `momentum`, decoupled in
            `adamw`.
        momentum: heavy-ball coefficient of `momentum`.
        beta1: decay of the mean of gradients in `adamw`.
        beta2: decay of the mean of squared gradients in `adamw`.
        eps: added to the root of the mean squared gradient in `adamw`.
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


def _bounds(value: Value) -> tuple[float, float]:
    if isinstance(value, Tensor):
        return float(value.min()), float(value.max())
    return float(value), float(value)


def at_rate(hyper: Hyper, lr: Value) -> Hyper:
    """The same with another learning rate, unchecked: checking a tensor waits for its device."""
    changed = copy.copy(hyper)
    object.__setattr__(changed, "lr", lr)
    return changed


@dataclass(frozen=True)
class Rule:
    """A named update rule.

    Attributes:
        name: what the rule is called.
        init: params -> the state before the first step.
        update: (params, grads, state, hyper, inplace=False) -> (params, state). With
            `inplace=True` the memory of params and state is reused for the result.
    """

    name: str
    init: Callable[[Sequence[Tensor]], State]
    update: Callable[..., tuple[list[Tensor], State]]

    def __repr__(self) -> str:
        return f"rules.{self.name}"


def along_members(value: Value, like: Tensor) -> Value:
    """A per-member value shaped to broadcast against a tensor whose first axis is the ensemble."""
    if isinstance(value, Tensor) and value.ndim:
        return value.to(like.dtype).reshape(value.shape[0], *[1] * (like.ndim - 1))
    return value


def _no_state(params: Sequence[Tensor]) -> State:
    return {}


def _sgd(
    params: Sequence[Tensor],
    grads: Sequence[Tensor],
    state: State,
    hyper: Hyper,
    inplace: bool = False,
) -> tuple[list[Tensor], State]:
    new_params = []
    for param, grad in zip(params, grads, strict=True):
        shrunk = _shrink(param, hyper, out=param if inplace else None)
        new_params.append(add_scaled(shrunk, grad, -hyper.lr, out=shrunk))
    return new_params, state


def _shrink(param: Tensor, hyper: Hyper, *, out: Tensor | None) -> Tensor:
    """(1 - lr weight_decay) param.

    As a sum: the factor itself, rounded to float32, would err by up to 3e-8 in the same direction
    at every step, which is 0.3% of a decay of 1e-5.
    """
    return add_scaled(param, param, -(hyper.lr * hyper.weight_decay), out=out)


def add_scaled(base: Tensor, step: Tensor, scale: Value, *, out: Tensor | None) -> Tensor:
    """Base + scale x step, the scale being a number or one value a member."""
    scale = along_members(scale, base)
    if isinstance(scale, Tensor):
        return torch.addcmul(base, step, scale, out=out)
    return torch.add(base, step, alpha=scale, out=out)


def _momentum_state(params: Sequence[Tensor]) -> State:
    return {"velocity": [torch.zeros_like(param) for param in params]}


def _momentum(
    params: Sequence[Tensor],
    grads: Sequence[Tensor],
    state: State,
    hyper: Hyper,
    inplace: bool = False,
) -> tuple[list[Tensor], State]:
    new_params, new_velocity = [], []
    for param, grad, velocity in zip(params, grads, state["velocity"], strict=True):
        out = velocity if inplace else None
        faded = torch.mul(velocity, along_members(hyper.momentum, param), out=out)
        faded = torch.add(faded, grad, out=faded)
        faded = add_scaled(faded, param, hyper.weight_decay, out=faded)
        new_velocity.append(faded)
        new_params.append(add_scaled(param, faded, -hyper.lr, out=param if inplace else None))
    return new_params, {"velocity": new_velocity}


def _adamw_state(params: Sequence[Tensor]) -> State:
    return {
        "mean": [torch.zeros_like(param) for param in params],
        "square": [torch.zeros_like(param) for param in params],
        "step": [torch.zeros((), dtype=torch.float64)],
    }


def _adamw(
    params: Sequence[Tensor],
    grads: Sequence[Tensor],
    state: State,
    hyper: Hyper,
    inplace: bool = False,
) -> tuple[list[Tensor], State]:
    step = state["step"][0] + 1
    count = float(step)
    # The bias corrections; in the precision of the hyperparameters, as 1 - beta cancels digits.
    scale1 = -hyper.lr / (1 - hyper.beta1**count)
    scale2 = (1 - hyper.beta2**count) ** 0.5
    new_params, means, squares = [], [], []
    for param, grad, mean, square in zip(
        params, grads, state["mean"], state["square"], strict=True
    ):
        beta1, beta2 = along_members(hyper.beta1, param), along_members(hyper.beta2, param)
        new_mean = torch.mul(mean, beta1, out=mean if inplace else None)
        new_mean = add_scaled(new_mean, grad, 1 - hyper.beta1, out=new_mean)
        new_square = torch.mul(square, beta2, out=square if inplace else None)
        if isinstance(beta2, Tensor):
            new_square = add_scaled(new_square, grad * grad, 1 - hyper.beta2, out=new_square)
        else:
            new_square = torch.addcmul(new_square, grad, grad, value=1 - beta2, out=new_square)
        root = torch.sqrt(new_square).div_(along_members(scale2, param))
        root.add_(along_members(hyper.eps, param))
        shrunk = _shrink(param, hyper, out=param if inplace else None)
        direction = torch.div(new_mean, root, out=root)
        new_params.append(add_scaled(shrunk, direction, scale1, out=shrunk))
        means.append(new_mean)
        squares.append(new_square)
    return new_params, {"mean": means, "square": squares, "step": [step]}


sgd = Rule("sgd", _no_state, _sgd)
"""Stochastic gradient descent: W <- (1 - lr weight_decay) W - lr grad (2206.05794, section 2)."""

momentum = Rule("momentum", _momentum_state, _momentum)
"""Heavy ball with coupled decay: v <- momentum v + grad + weight_decay W; W <- W - lr v.

The same recursion as `torch.optim.SGD` with `dampening=0` and `nesterov=False`.
"""

adamw = Rule("adamw", _adamw_state, _adamw)
"""Adam with decoupled decay (Loshchilov & Hutter 2019); `eps` outside the root, as in PyTorch.

m <- beta1 m + (1 - beta1) grad; v <- beta2 v + (1 - beta2) grad^2;
W <- (1 - lr weight_decay) W - lr m_hat / (sqrt(v_hat) + eps).
"""
