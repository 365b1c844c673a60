"""Stochastic gradient descent and heavy ball, in the two forms of 2307.15196: PyTorch's and the
papers', whose velocity is a mean of gradients.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

import torch
from torch import Tensor

from undertow.train.rules._rule import (
    Hyper,
    Rule,
    Scaling,
    State,
    add_scaled,
    along_members,
    check_shapes,
    no_state,
    shrink,
)


def _sgd(
    params: Sequence[Tensor],
    grads: Sequence[Tensor],
    state: State,
    hyper: Hyper,
    inplace: bool = False,
) -> tuple[list[Tensor], State]:
    check_shapes(params, grads, state)
    new_params = []
    for param, grad in zip(params, grads, strict=True):
        shrunk = shrink(param, hyper, out=param if inplace else None)
        new_params.append(add_scaled(shrunk, grad, -hyper.lr, out=shrunk))
    return new_params, state


def _velocity(params: Sequence[Tensor]) -> State:
    return {"velocity": [torch.zeros_like(param) for param in params]}


def _heavy_ball(
    mean: bool,
    params: Sequence[Tensor],
    grads: Sequence[Tensor],
    state: State,
    hyper: Hyper,
    inplace: bool = False,
) -> tuple[list[Tensor], State]:
    """A velocity that sums gradients, or is their running `mean`."""
    check_shapes(params, grads, state)
    weight = 1 - hyper.momentum if mean else 1.0
    new_params, new_velocity = [], []
    for param, grad, velocity in zip(params, grads, state["velocity"], strict=True):
        out = velocity if inplace else None
        faded = torch.mul(velocity, along_members(hyper.momentum, param), out=out)
        faded = add_scaled(faded, grad, weight, out=faded)
        faded = add_scaled(faded, param, weight * hyper.weight_decay, out=faded)
        new_velocity.append(faded)
        new_params.append(add_scaled(param, faded, -hyper.lr, out=param if inplace else None))
    return new_params, {"velocity": new_velocity}


_READS = ("lr", "weight_decay", "momentum")

sgd = Rule("sgd", no_state, _sgd, scaling=Scaling(steps=1), reads=_READS[:2], family="sgd")
"""Stochastic gradient descent: W <- (1 - lr weight_decay) W - lr grad (2206.05794, section 2)."""

momentum = Rule(
    "momentum",
    _velocity,
    partial(_heavy_ball, False),
    scaling=Scaling(steps=1),
    reads=_READS,
    family="sgd",
)
"""Heavy ball with coupled decay: v <- momentum v + grad + weight_decay W; W <- W - lr v.

The same recursion as `torch.optim.SGD` with `dampening=0` and `nesterov=False`.
"""

ema_momentum = Rule(
    "ema_momentum",
    _velocity,
    partial(_heavy_ball, True),
    scaling=Scaling(steps=1),
    reads=_READS,
    family="ema_momentum",
)
"""Heavy ball as the papers write it: the velocity is a mean of gradients (2307.15196).

v <- momentum v + (1 - momentum) (grad + weight_decay W); W <- W - lr v. The same iterates as
`momentum` at the learning rate lr (1 - momentum), as long as neither of the two changes.
"""
