"""Rules that divide by the root of a mean of squared gradients: RMSprop, Adam, AdamW and between.

One recursion with four choices, which the papers and PyTorch make differently (2205.10287).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import Literal, get_args

import torch
from torch import Tensor

from undertow.train.rules._rule import (
    Hyper,
    Rule,
    Scaling,
    State,
    Value,
    add_scaled,
    along_members,
    check_shapes,
    shrink,
)

EpsPlace = Literal["outside", "inside"]
Decay = Literal["coupled", "decoupled"]


@dataclass(frozen=True)
class _Form:
    """The choices of `adaptive`."""

    mean: bool
    bias_correction: bool
    eps: EpsPlace
    decay: Decay


def adaptive(
    *,
    mean: bool = True,
    bias_correction: bool = True,
    eps: EpsPlace = "outside",
    decay: Decay = "coupled",
) -> Rule:
    """A rule that divides by the root of a running mean of squared gradients.

    With g the gradient and t the number of the step, counted from 1:

        m <- beta1 m + (1 - beta1) g;    v <- beta2 v + (1 - beta2) g^2
        W <- W - lr m' / (sqrt(v') + eps)

    where m' = m / (1 - beta1^t) and v' = v / (1 - beta2^t).

    Args:
        mean: whether the numerator is the running mean m', as in Adam; else it is g, as in
            RMSprop, and `beta1` is not read.
        bias_correction: whether m and v are divided by 1 - beta^t; else m' = m and v' = v.
        eps: where eps stands: `outside` the root, sqrt(v') + eps as in PyTorch and in 2205.10287,
            or `inside`, sqrt(v' + eps).
        decay: `coupled` adds weight_decay W to the gradient; `decoupled` multiplies the weights by
            1 - lr weight_decay instead.

    Raises:
        ValueError: `eps` or `decay` is neither of its two words.
    """
    for name, value, words in (("eps", eps, EpsPlace), ("decay", decay, Decay)):
        if value not in get_args(words):
            raise ValueError(f"{name} must be {' or '.join(get_args(words))}, got {value!r}")
    defaults = {"mean": True, "bias_correction": True, "eps": "outside", "decay": "coupled"}
    form = _Form(mean, bias_correction, eps, decay)
    given = ", ".join(
        f"{name}={value!r}" for name, value in vars(form).items() if value != defaults[name]
    )
    return _rule(f"adaptive({given})", form)


def _rule(name: str, form: _Form) -> Rule:
    # The noise decides v, which grows with l^2: so does an eps under the root. A decoupled decay
    # must lose one power of l for lr x weight_decay x steps to stay; a coupled one is divided by
    # the root like the gradient, and stays with it.
    scaling = Scaling(
        steps=2,
        weight_decay=-1 if form.decay == "decoupled" else 0,
        forgetting=-2,
        eps=1 if form.eps == "outside" else 2,
    )
    reads = ("lr", "weight_decay", *(("beta1",) if form.mean else ()), "beta2", "eps")
    family = ("adamw" if form.decay == "decoupled" else "adam") if form.mean else "rmsprop"
    return Rule(
        name,
        partial(_init, form),
        partial(_update, form),
        scaling=scaling,
        reads=reads,
        family=family if form.mean or form.decay == "coupled" else None,
        denominator=partial(_denominator, form),
    )


def _init(form: _Form, params: Sequence[Tensor]) -> State:
    if any(param.is_complex() for param in params):
        raise ValueError(
            "a parameter is complex, and the square of its gradient no size; keep it as the real "
            "pairs of torch.view_as_real, as torch.optim does inside"
        )
    state = {"square": [torch.zeros_like(param) for param in params]}
    if form.mean:
        state["mean"] = [torch.zeros_like(param) for param in params]
    if form.bias_correction:
        state["step"] = [torch.zeros((), dtype=torch.float64)]
    return state


def _update(
    form: _Form,
    params: Sequence[Tensor],
    grads: Sequence[Tensor],
    state: State,
    hyper: Hyper,
    inplace: bool = False,
) -> tuple[list[Tensor], State]:
    check_shapes(params, grads, state)
    new_state: State = {name: [] for name in state}
    # In the precision of the hyperparameters, as 1 - beta cancels digits.
    gain1, gain2 = 1 - hyper.beta1, 1 - hyper.beta2
    scale: Value = -hyper.lr
    correction: Value = 1.0  # of the root
    if form.bias_correction:
        step = state["step"][0] + 1
        new_state["step"] = [step]
        correction = (1 - hyper.beta2 ** float(step)) ** 0.5
        if form.mean:
            scale = scale / (1 - hyper.beta1 ** float(step))
    new_params = []
    for place, (param, own) in enumerate(zip(params, grads, strict=True)):
        grad = own if form.decay == "decoupled" else _decayed(own, param, hyper.weight_decay)
        square = state["square"][place]
        square = torch.mul(
            square, along_members(hyper.beta2, square), out=square if inplace else None
        )
        if isinstance(gain2, Tensor):
            square = add_scaled(square, grad * grad, gain2, out=square)
        else:
            square = torch.addcmul(square, grad, grad, value=gain2, out=square)
        new_state["square"].append(square)
        root = _root(form, square, correction, hyper.eps)
        numerator = grad
        if form.mean:
            mean = state["mean"][place]
            numerator = torch.mul(
                mean, along_members(hyper.beta1, mean), out=mean if inplace else None
            )
            numerator = add_scaled(numerator, grad, gain1, out=numerator)
            new_state["mean"].append(numerator)
        direction = torch.div(numerator, root, out=root)
        out = param if inplace else None
        if form.decay == "decoupled":
            param = out = shrink(param, hyper, out=out)
        new_params.append(add_scaled(param, direction, scale, out=out))
    return new_params, new_state


def _denominator(form: _Form, state: State, hyper: Hyper) -> list[Tensor]:
    """What the running mean, or the gradient, was divided by in the last step."""
    mean = root = 1.0
    if form.bias_correction:
        step = float(state["step"][0])
        root = (1 - float(hyper.beta2) ** step) ** 0.5
        mean = 1 - float(hyper.beta1) ** step if form.mean else 1.0
    return [_root(form, square, root, hyper.eps) * mean for square in state["square"]]


def _decayed(grad: Tensor, param: Tensor, weight_decay: Value) -> Tensor:
    if not isinstance(weight_decay, Tensor) and not weight_decay:
        return grad
    return add_scaled(grad, param, weight_decay, out=None)


def _root(form: _Form, square: Tensor, correction: Value, eps: Value) -> Tensor:
    eps, correction = along_members(eps, square), along_members(correction, square)
    if form.eps == "inside":
        return square.div(correction).div_(correction).add_(eps).sqrt_()
    return square.sqrt().div_(correction).add_(eps)


rmsprop = _rule("rmsprop", _Form(False, False, "outside", "coupled"))
"""RMSprop with coupled decay; `eps` outside the root, as in PyTorch, whose `alpha` is `beta2`.

v <- beta2 v + (1 - beta2) grad^2; W <- W - lr grad / (sqrt(v) + eps), with weight_decay W added
to the gradient first. No bias correction: the first step is one of lr / sqrt(1 - beta2).
"""

adam = _rule("adam", _Form(True, True, "outside", "coupled"))
"""Adam with coupled decay; `eps` outside the root, after the bias correction, as in PyTorch.

m <- beta1 m + (1 - beta1) grad; v <- beta2 v + (1 - beta2) grad^2;
W <- W - lr m_hat / (sqrt(v_hat) + eps), with weight_decay W added to the gradient first.
"""

adamw = _rule("adamw", _Form(True, True, "outside", "decoupled"))
"""Adam with decoupled decay (Loshchilov & Hutter 2019); `eps` outside the root, as in PyTorch.

m <- beta1 m + (1 - beta1) grad; v <- beta2 v + (1 - beta2) grad^2;
W <- (1 - lr weight_decay) W - lr m_hat / (sqrt(v_hat) + eps).
"""
